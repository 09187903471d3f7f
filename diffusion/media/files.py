"""Every way in which samples are written; `diffusion.settings.outputs` says which suffix means what.

Each file is written beside its final name and then renamed, so that a file that exists is whole.
"""

import io
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import imageio.v3 as iio
import numpy as np
from PIL import Image
from torch import Tensor

from diffusion.media.atomic import atomic, check_regular, reason, remove_parts
from diffusion.media.pictures import Pixels, animation, picture, to_uint8
from diffusion.settings.outputs import suffix_of

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary


def _pil(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels)


def _one_palette(frames: Sequence[Pixels]) -> list[Image.Image]:
    """RGB frames (H, W, 3) on one palette of 256 colours: lossless where no more occur, else the nearest colours.

    A palette of its own for each frame would make the colours flicker.
    """
    stack = np.stack(frames)
    codes = (stack.astype(np.uint32) << np.array([16, 8, 0], np.uint32)).sum(axis=-1, dtype=np.uint32)
    colours, indices = np.unique(codes, return_inverse=True)
    if len(colours) <= 256:
        table = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=-1).astype(np.uint8).tobytes()
        images = [Image.fromarray(index) for index in indices.reshape(codes.shape).astype(np.uint8)]
        for image in images:
            image.putpalette(table)
        return images
    # Half of the colours are found in the last frame: it is what people look at, and noise has colours without end.
    last = stack[-1].reshape(-1, 3)
    others = stack[:-1].reshape(-1, 3)
    chosen = np.concatenate([last, others[:: max(1, len(others) // len(last))]])
    palette = Image.fromarray(chosen[None]).quantize(256, Image.Quantize.MEDIANCUT)
    return [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]


def _write_animation(file: BinaryIO, kind: str, frames: Sequence[Pixels], fps: float, hold: int) -> None:
    if not frames:
        raise ValueError("there is nothing to animate: 0 frames")
    if not 0 < fps <= 50:
        raise ValueError(f"fps={fps} is not possible: choose a number above 0 and up to 50, the most that viewers show")
    if hold < 1:
        raise ValueError(f"hold={hold} is not possible: the last frame is shown for at least 1 frame")
    shapes = {frame.shape for frame in frames}
    if len(shapes) > 1:
        raise ValueError(f"the frames of an animation have one size, not {sorted(shapes)}")
    colour = frames[0].shape[-1] == 3 and frames[0].ndim == 3
    stack = [np.asarray(image.convert("RGB")) for image in _one_palette(frames)] if colour and kind == "GIF" else frames
    longest_ms = 655350  # a GIF counts hundredths of a second in 16 bits
    step_ms = min(10 * round(100 / fps), longest_ms)
    # The last frame is held by its duration, because writers merge equal frames.
    durations_ms = [step_ms] * (len(frames) - 1) + [min(hold * step_ms, longest_ms)]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {"optimize": False}
    pixels = np.stack([frame[..., 0] if frame.shape[2:] == (1,) else frame for frame in stack])
    iio.imwrite(file, pixels, plugin="pillow", extension=f".{kind.lower()}", duration=durations_ms, loop=0, **options)


def save_gif(path: str | Path, frames: Sequence[Pixels], fps: float = 5, hold: int = 10) -> None:
    """Writes frames (H, W), (H, W, 1) or (H, W, 3) as a GIF, or as a lossless WebP if the suffix is `.webp`.

    It loops forever, and the last frame stays as long as `hold` frames. A frame lasts 1000 / fps ms, rounded to the
    GIF's 10 ms. Grey GIFs are exact, coloured ones have the same 256 colours in all frames. Equal neighbours are merged
    into one longer frame. Raises ValueError for no frames, unequal sizes, fps outside (0, 50] or hold < 1.
    """
    kind = "WEBP" if Path(path).suffix.lower() == ".webp" else "GIF"
    with atomic(Path(path)) as file:
        _write_animation(file, kind, frames, fps, hold)


def gif_bytes(frames: Sequence[Pixels], fps: float = 5, hold: int = 10) -> bytes:
    """The bytes that `save_gif` would write to a `.gif`."""
    buffer = io.BytesIO()
    _write_animation(buffer, "GIF", frames, fps, hold)
    return buffer.getvalue()


def tensorboard_gif(tag: str, frames: Sequence[Pixels], fps: float = 5, hold: int = 10) -> "Summary":
    """A TensorBoard summary that shows the frames as a moving image; give it to the event writer's `add_summary`.

    TensorBoard hands an image's bytes to the browser as they are, so no video encoder is needed.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary  # here, so that sampling does not wait for TensorBoard

    encoded = gif_bytes(frames, fps, hold)
    height, width = frames[0].shape[:2]
    colorspace = frames[0].shape[2] if frames[0].ndim == 3 else 1
    image = Summary.Image(height=height, width=width, colorspace=colorspace, encoded_image_string=encoded)
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def _check_shape(path: Path, shape: Sequence[int]) -> None:
    suffix = suffix_of(path)
    if len(shape) == 1 and suffix == "":
        raise ValueError(f"out={path} is a folder of images, but these samples are 2-D points: use .npz, .png or .gif")
    drawable = tuple(shape) == (2,) or (len(shape) == 3 and shape[0] in (1, 3))
    if suffix != ".npz" and not drawable:
        raise ValueError(f"out={path}: samples of shape {tuple(shape)} cannot be drawn, only written as .npz")


def check_out(path: str | Path, shape: Sequence[int] | None = None) -> Path:
    """Says before anything slow whether `save(path, ...)` can work, and creates nothing; returns the path.

    `shape` is that of one sample, (C, H, W) or (2,), where it is known. Raises ValueError for an unknown suffix or
    samples that it cannot hold, and OSError (one line, naming the path) for a place that cannot be written.
    """
    suffix, path = suffix_of(path), Path(path)
    if shape is not None:
        _check_shape(path, shape)
    if suffix and path.is_dir():
        raise IsADirectoryError(f"out={path} is a folder: name a file, or a folder without {suffix}")
    if suffix:
        check_regular(path)
    check_writable(path.parent if suffix else path, path)
    return path


def check_writable(folder: Path, out: Path | None = None) -> None:
    """Raises OSError (one line, naming `out`) unless files can be written into a folder, existing or not; creates
    nothing."""
    path = out or folder
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(f"out={path} cannot be written: {folder} is a file, not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"out={path} cannot be written: no permission to write in {folder}; choose another place")
    try:  # permissions say nothing of read-only or virtual file systems
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(f"out={path} cannot be written: {folder}: {reason(error)}; choose another place") from error


def image_name(index: int) -> str:
    """The file name of image `index` in a folder of samples: 7 -> `00007.png`."""
    return f"{index:05d}.png"


def missing(folder: str | Path, n: int) -> list[int]:
    """The indices in 0..n-1 that have no PNG in `folder` yet: all that a run that was cut off still has to draw.

    Drawing them alone gives the same images, because the noise of an image depends on its index only.
    """
    return [index for index in range(n) if not (Path(folder) / image_name(index)).exists()]


def save_picture(path: str | Path, pixels: Pixels) -> None:
    """Writes one picture (H, W, C) as a PNG; parents are created."""
    with atomic(Path(path)) as file:
        _pil(pixels).save(file, "PNG")


def check_claim(folder: str | Path, settings: Mapping[str, object]) -> None:
    """Raises ValueError if the folder holds images that other settings made, or something else."""
    folder = Path(folder)
    record = folder / "settings.json"
    check_regular(record)
    if record.exists() and _read(record) != json.loads(_record(settings)):
        raise ValueError(f"{folder} holds samples of other settings (see {record}): give another folder, or remove it")
    if not record.exists():
        others = [path.name for path in folder.glob("[!.]*") if path.suffix != ".part"]
        if others:
            raise ValueError(f"out={folder} holds other files ({min(others)}): name a new folder, or an empty one")


def _read(record: Path) -> object:
    """What a folder records; None if it is damaged."""
    try:
        return json.loads(record.read_text())
    except ValueError:
        return None


def claim(folder: str | Path, settings: Mapping[str, object]) -> Path:
    """Makes the folder for these settings, or finds it again, so that a run that was cut off goes on with its own
    images; raises ValueError as `check_claim` does."""
    folder = Path(folder)
    record = folder / "settings.json"
    check_claim(folder, settings)
    if not record.exists():
        with atomic(record) as file:
            file.write(_record(settings).encode())
    remove_parts(folder, older_than_s=3600)  # another process may be drawing into it just now
    return folder


def _record(settings: Mapping[str, object]) -> str:
    return json.dumps(settings, indent=1)


def save_folder(folder: str | Path, samples: Tensor, indices: Iterable[int]) -> None:
    """Writes images (n, C, H, W) as one PNG each, named by `indices` (n,), each whole or not at all."""
    for index, pixels in zip(indices, to_uint8(samples), strict=True):
        with atomic(Path(folder) / image_name(index)) as file:
            _pil(pixels).save(file, "PNG")


def save(
    path: str | Path,
    samples: Tensor,
    states: Sequence[Tensor] | None = None,
    rows: int | None = None,
    labels: Tensor | None = None,
    fps: float = 5,
    hold: int = 10,
) -> None:
    """Writes samples (n, C, H, W) in [-1, 1] or (n, 2) as the suffix of `path` says; parents are created.

    - `.gif`, `.webp`: the animation of `states` (without them one frame); see `save_gif` for `fps` and `hold`.
    - `.png`: one grid of `rows` rows, or a cloud.
    - `.npz`: `arr_0` is uint8 (n, H, W, C), or float32 (n, 2) for points, and `arr_1` the labels (n,) if given: what
      the evaluation suite of ADM (Dhariwal and Nichol, "Diffusion Models Beat GANs", arXiv 2105.05233) reads.
    - no suffix: a folder with one PNG an image.

    Raises ValueError for any other suffix, or samples that it cannot hold; a failure leaves no half-written file.
    """
    path = Path(path)
    _check_shape(path, samples.shape[1:])
    match suffix_of(path):
        case ".gif" | ".webp":
            save_gif(path, animation(states or [samples], rows), fps, hold)
        case ".png":
            save_picture(path, picture(samples, rows))
        case ".npz":
            points = samples.ndim == 2
            arrays = [samples.detach().float().cpu().numpy() if points else to_uint8(samples)]
            if labels is not None:
                arrays.append(labels.detach().cpu().numpy())
            with atomic(path) as file:
                np.savez(file, *arrays)
        case _:
            save_folder(path, samples, range(len(samples)))
