"""Pages in a real browser draw what `sample.py` draws: headless Chromium against Python.

They need Chromium, and onnxruntime-web in node_modules: npm install onnxruntime-web@1.30.0 in the checkout.
"""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.scripts import call

import export
import train
from diffusion.exchange.page import SAMPLERS
from diffusion.media.pictures import quantised
from diffusion.sampling import Pipeline
from diffusion.settings.sampling import Steering
from docs.pictures.page import CHROMIUM, Browser, browser

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
PACKAGE = ROOT / "node_modules" / "onnxruntime-web"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(not PACKAGE.is_dir(), reason="onnxruntime-web is not in node_modules"),
]
WITHIN = 1  # of 255 levels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of each kind of model, in full precision."""
    made = tmp_path_factory.mktemp("pages")
    for name in ("residual", "digits", "learned", "latent", "points"):
        checkpoint = FIXTURES / f"{name}.ckpt" if name != "points" else _points(made)
        done = call(export, made, f"ckpt={checkpoint}", f"out={name}.html", "half=false", f"runtime={PACKAGE}")
        assert done.code == 0, done.err
    return made


def _points(folder: Path) -> Path:
    """A checkpoint of a swiss roll's model, trained for a moment."""
    done = call(train, folder, "experiment=fast_swissroll", "trainer.max_steps=20", "accelerator=cpu", "workers=0")
    assert done.code == 0, done.err
    return folder / "lightning_logs/swissroll/version_0/checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


def canvas(chromium: Browser, name: str) -> np.ndarray:
    """The pixels of a canvas, (H, W, 3)."""
    address = chromium.evaluate(f"document.getElementById('{name}').toDataURL()")
    picture = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    return np.asarray(picture.convert("RGB"))


def cells(picture: np.ndarray, shape: tuple[int, ...], n: int) -> np.ndarray:
    """The images of a near-square table with one pixel between them, (n, C, H, W)."""
    channels, height, width = shape
    columns = int(np.ceil(np.sqrt(n)))
    found = [picture[(k // columns) * (height + 1) :, (k % columns) * (width + 1) :][:height, :width] for k in range(n)]
    return np.stack(found).transpose(0, 3, 1, 2)[:, :channels]


def difference(chromium: Browser, canvas_name: str, expected: torch.Tensor) -> int:
    """The largest difference in levels between a canvas and images (n, C, H, W) in [-1, 1]."""
    found = cells(canvas(chromium, canvas_name), tuple(expected.shape[1:]), len(expected))
    return int(np.abs(found.astype(int) - quantised(expected).numpy().astype(int)).max())


@pytest.mark.parametrize(
    ("name", "settings", "steering"),
    [
        ("residual", {"sampler": "dpmpp_2m", "steps": 10, "seed": 5}, Steering()),
        ("residual", {"sampler": "heun", "steps": 8, "seed": 0, "label": 3, "guidance": 2}, Steering(guidance=2.0)),
        ("digits", {"sampler": "ddim", "steps": 20, "seed": 9007199254740991}, Steering()),
        ("digits", {"sampler": "ddpm", "steps": 50, "seed": 2}, Steering()),
        ("learned", {"sampler": "ddim", "steps": 10, "seed": 1}, Steering()),
        ("latent", {"sampler": "dpmpp_2m", "steps": 10, "seed": 1}, Steering()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_image_k_of_a_page_is_image_k_of_sample_py(
    name: str, settings: dict[str, int | str], steering: Steering, folder: Path, chromium: Browser
) -> None:
    hash_ = "&".join(f"{key}={value}" for key, value in ({"n": 5} | settings).items())
    chromium.open("about:blank")
    chromium.open(f"file://{folder / name}.html#{hash_}")
    chromium.drawn()
    assert chromium.evaluate("document.getElementById('sampler').value") == settings["sampler"]
    assert chromium.evaluate("document.getElementById('steps').value") == str(settings["steps"])
    pipeline = Pipeline.load(str(FIXTURES / f"{name}.ckpt"), steering=steering, steps=settings["steps"])
    pipeline.sampler = SAMPLERS[str(settings["sampler"])]
    label = settings.get("label")
    assert label is None or isinstance(label, int)
    frames = pipeline.frames(5, int(settings["seed"]), label, keep=(0, -1))
    assert difference(chromium, "x", frames[-1]) <= WITHIN
    chromium.evaluate("time.value = 0; time.dispatchEvent(new Event('input'))")
    assert difference(chromium, "x", frames[0]) <= WITHIN
    x0 = pipeline.frames(5, int(settings["seed"]), label, keep=(0,), show="x0")[0]
    assert difference(chromium, "x0", x0) <= WITHIN


def test_a_painted_part_is_completed_as_sample_py_completes_it(folder: Path, chromium: Browser, tmp_path: Path) -> None:
    chromium.open("about:blank")
    chromium.open(f"file://{folder / 'residual'}.html#n=4&seed=3&sampler=ddim&steps=10")
    chromium.drawn()
    known = cells(canvas(chromium, "x"), (1, 8, 8), 4)[2]
    chromium.evaluate("taken.value = 2; take.click(); brush.value = 2; painter.focus()")
    for key in ("ArrowLeft", "ArrowUp", " "):  # by keyboard, from the middle
        chromium.evaluate(f"painter.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}'}}))")
    # The brush at (3.5, 3.5) with a radius of 2 pixels marks what lies within that distance.
    row, column = np.mgrid[:8, :8]
    mask = np.hypot(row + 0.5 - 3.5, column + 0.5 - 3.5) <= 2
    chromium.evaluate("complete.click()")
    chromium.drawn()
    Image.fromarray(known[0]).save(tmp_path / "known.png")
    Image.fromarray((255 * mask).astype(np.uint8)).save(tmp_path / "mask.png")
    steering = Steering(init=str(tmp_path / "known.png"), mask=str(tmp_path / "mask.png"))
    pipeline = Pipeline.load(str(FIXTURES / "residual.ckpt"), steering=steering, steps=10)
    pipeline.sampler = SAMPLERS["ddim"]
    assert difference(chromium, "x", pipeline.sample(4, 3)) <= WITHIN
    found = cells(canvas(chromium, "x"), (1, 8, 8), 4)
    assert (found[:, :, ~mask] == known[:, ~mask]).all()


def test_points_are_shown_as_a_cloud_without_a_painter(folder: Path, chromium: Browser) -> None:
    chromium.open("about:blank")
    chromium.open(f"file://{folder / 'points'}.html#n=300&steps=10")
    chromium.drawn()
    assert len(np.unique(canvas(chromium, "x").reshape(-1, 3), axis=0)) > 2
    assert chromium.evaluate("document.querySelector('[data-for=painting]').hidden")


def test_a_drawing_is_saved_as_a_gif_that_holds_its_states(folder: Path, chromium: Browser) -> None:
    chromium.open("about:blank")
    chromium.open(f"file://{folder / 'residual'}.html#n=4&seed=3&sampler=ddim&steps=5")
    chromium.drawn()
    chromium.evaluate(
        """window.saved = new Promise((resolve) => {
          const original = URL.createObjectURL;
          URL.createObjectURL = (blob) => (blob.type === "image/gif" && resolve(blob), original(blob));
        }); undefined"""
    )
    chromium.evaluate("document.getElementById('gif').click()")
    text = chromium.evaluate(
        """saved.then((blob) => new Promise((resolve) => {
          const reader = new FileReader();
          reader.onload = () => resolve(reader.result.split(",")[1]);
          reader.readAsDataURL(blob);
        }))"""
    )
    with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        pipeline = Pipeline.load(str(FIXTURES / "residual.ckpt"), steps=5)
        assert picture.n_frames == len(pipeline.shown(41))
        picture.seek(picture.n_frames - 1)
        last = np.asarray(picture.convert("RGB"))
    shown = canvas(chromium, "x")
    scale = last.shape[0] // shown.shape[0]
    assert (last[scale // 2 :: scale, scale // 2 :: scale] == shown).all()
