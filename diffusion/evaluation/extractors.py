"""What turns images into features: a small classifier, random convolutions, Inception, or any torch module.

An extractor takes images (n, C, H, W) in [-1, 1], quantised to 8 bits, and gives features (n, d). Two of different
kinds are used side by side, so that no model looks good by pleasing one of them.
"""

import importlib
import math
import re
import sys
import urllib.error
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.media import quantised
from diffusion.noise import Noise
from diffusion.terminal.progress import progress

CLASSIFIER, RANDOM, INCEPTION = "classifier", "random", "inception"
FEATURES = 64
LARGEST = 64  # pixels a side that the classifier sees
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
_BATCH = 250


class Classifier(nn.Module):
    """A convolutional network of 108,466 weights, for one channel and ten classes.

    The features, (n, 64), are its last layer's mean over the image.

    A mean, because features that know the place of everything scatter more: at the same n they see noise less clearly.

    Args:
        shape: (C, H, W) of the images; those with a side above 64 pixels are averaged down to it.
        num_classes: it tells apart.
    """

    def __init__(self, shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        scale = min(1.0, LARGEST / max(height, width))
        self.size = (max(1, round(height * scale)), max(1, round(width * scale)))
        layers: list[nn.Module] = []
        side, before = min(self.size), channels
        for after in (24, 48, 96, FEATURES):
            stride = 2 if side > 4 else 1
            side = -(-side // stride)
            layers += [nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.GELU()]
            before = after
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(FEATURES, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, 64) of images (n, C, H, W)."""
        x = x if x.shape[2:] == self.size else F.interpolate(x, self.size, mode="area")
        features: Tensor = self.body(x).mean((2, 3))
        return features

    def logits(self, x: Tensor) -> Tensor:
        """(n, num_classes)."""
        scores: Tensor = self.head(self(x))
        return scores


class RandomConvolutions(nn.Module):
    """Three layers of random 3x3 filters, each halving the image; nothing is trained, nothing knows of classes.

    Features (n, 84): the means of the responses of 8 and 12 filters over the image, and of 16 over each quarter of it.
    The first filters have mean zero and no bias, so that flat areas stay silent and noise in them is heard. The weights
    come from a counter-based generator: they are the same everywhere but for rounding.

    Args:
        channels: of the images.
        seed: of the filters.
    """

    def __init__(self, channels: int, seed: int = 0) -> None:
        super().__init__()
        before = channels
        for layer, after in enumerate((8, 12, 16)):
            filters = Noise(seed, torch.arange(after)).normal((before, 3, 3), step=layer)
            if layer == 0:
                filters = filters - filters.mean((2, 3), keepdim=True)
            norms = filters.flatten(1).norm(dim=1)[:, None, None, None]
            self.register_buffer(f"filters{layer}", filters / norms * math.sqrt(2))
            before = after

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, 84) of images (n, C, H, W)."""
        means = []
        for layer, parts in enumerate((1, 1, 2)):
            x = F.relu(F.conv2d(x, self.get_buffer(f"filters{layer}"), padding=1))
            means.append(F.adaptive_avg_pool2d(x, parts).flatten(1))
            x = F.avg_pool2d(x, 2) if min(x.shape[2:]) >= 2 else x  # very small images run out of pixels
        return 10 * torch.cat(
            means, dim=1
        )  # variances of some tenths, where the kernel distance's kernel is neither flat nor steep


class Inception(nn.Module):
    """The 2,048 pooled features of the Inception network behind the published FID and KID, of images as bytes."""

    def __init__(self) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ModuleNotFoundError as error:
            raise ValueError("extractor=inception needs torch-fidelity: pip install torch-fidelity") from error
        self.network = FeatureExtractorInceptionV3("inception", ["2048"], str(inception_weights()))

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, 2048) of images (n, C, H, W) in [-1, 1], grey ones repeated to three channels."""
        pixels = quantised(x).expand(-1, 3, -1, -1)
        features: Tensor = self.network(pixels)[0]
        return features


def inception_weights() -> Path:
    """The file with Inception's weights, from torch's cache or else downloaded to it.

    Raises:
        ValueError: it is not there and cannot be downloaded; says where to put it.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(INCEPTION_URL, str(path), hash_prefix="6726825d", progress=False)
        except (OSError, RuntimeError, urllib.error.URLError) as error:
            raise ValueError(
                f"extractor=inception: cannot download its weights ({' '.join(str(error).split())}); "
                f"fetch {INCEPTION_URL} and put it at {path}"
            ) from error
    return path


def imported(name: str) -> nn.Module:
    """The torch module that a person named, `package.module.Name`: an instance, or a class or function that makes one.

    The current folder is searched too. This imports code: the name comes from the command line, never from a file.

    Raises:
        ValueError: there is no such module, or it is none of torch's.
    """
    module_name, _, attribute = name.rpartition(".")
    sys.path.insert(0, str(Path.cwd()))
    try:
        with blamed_on(name, f"cannot import {module_name}"):
            found = vars(importlib.import_module(module_name)).get(attribute)
    finally:
        sys.path.pop(0)
    if found is None:
        raise ValueError(f"extractor={name}: {module_name} has no {attribute}")
    made = found
    if callable(found) and not isinstance(found, nn.Module):
        # Weights that it draws are the same each time, or no two evaluations would compare.
        with blamed_on(name, f"{attribute}() fails"), torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(0)
            made = found()
    if not isinstance(made, nn.Module):
        raise ValueError(f"extractor={name} is {type(made).__name__}, not a torch module")
    return made


@contextmanager
def blamed_on(name: str, what: str) -> Iterator[None]:
    """Whatever an extractor's own code raises becomes a ValueError, one line that names the extractor."""
    try:
        yield
    # A user's own code may raise anything, and it is theirs to mend, not ours to trace.
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())[:200]
        raise ValueError(f"extractor={name}: {what} ({type(error).__name__}: {text})") from error


def check_name(name: str) -> None:
    """Raises ValueError, one line, if an extractor has a name that none can have."""
    if name not in (CLASSIFIER, RANDOM, INCEPTION) and not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", name):
        raise ValueError(
            f"extractor {name!r} does not exist: choose {CLASSIFIER}, {RANDOM}, {INCEPTION}, or a torch module of your "
            f"own as package.module.Name"
        )


def untrained(name: str, channels: int) -> nn.Module:
    """An extractor other than the classifier, ready for use."""
    check_name(name)
    module = RandomConvolutions(channels) if name == RANDOM else Inception() if name == INCEPTION else imported(name)
    return module.eval().requires_grad_(False)


def dequantised(pixels: Tensor) -> Tensor:
    """uint8 images as float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


@torch.no_grad()
def features(
    module: nn.Module, pixels: Tensor, device: str = "cpu", after_batch: Callable[[int], object] = lambda images: None
) -> Tensor:
    """Features (n, d) float32 on the CPU of images as bytes (n, C, H, W); `after_batch` gets the number of images of
    each batch that is done.

    Raises:
        ValueError: the module gives anything but (n, d) finite numbers.
    """
    module, parts = module.to(device), []
    for part in pixels.split(_BATCH):
        parts.append(module(dequantised(part.to(device))).float().cpu())
        after_batch(len(part))
    found = torch.cat(parts)
    if found.shape[:1] != pixels.shape[:1] or found.ndim != 2:
        raise ValueError(
            f"{type(module).__name__} gives features of shape {tuple(found.shape)} for {len(pixels)} images: "
            f"an extractor gives (n, d)"
        )
    if not found.isfinite().all():
        raise ValueError(f"{type(module).__name__} gives features that are not finite")
    return found


@torch.no_grad()
def predicted(classifier: Classifier, pixels: Tensor) -> Tensor:
    """The most likely label (n,) of images as bytes."""
    return torch.cat([classifier.logits(dequantised(part)).argmax(1) for part in pixels.split(_BATCH)])


def train_classifier(
    pixels: Tensor, labels: Tensor, num_classes: int, steps: int, seed: int = 0, batch_size: int = 64
) -> Classifier:
    """A classifier trained on images as bytes (N, C, H, W) with labels (N,), the same for the same arguments, with the
    progress on stderr.

    Torch's own random numbers are left as they were.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        classifier = Classifier(pixels.shape[1:], num_classes).train()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3, weight_decay=0.01)
    order = np.random.RandomState(seed)
    with progress(steps, "step", "training a classifier") as advance:
        for step in range(steps):
            for group in optimizer.param_groups:  # a tenth of warm-up, then down to 0 along a line
                group["lr"] = 3e-3 * min(1.0, 10 * (step + 1) / steps, (steps - step) / (0.9 * steps))
            rows = torch.from_numpy(order.randint(len(pixels), size=batch_size))
            x, y = dequantised(pixels[rows]), labels[rows]
            loss = F.cross_entropy(classifier.logits(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            advance(1)
    return classifier.eval().requires_grad_(False)


def random_rows(n: int, seed: int = 0) -> Tensor:
    """A permutation of 0..n-1 that is the same on every machine."""
    return torch.from_numpy(np.random.RandomState(seed).permutation(n))


def names(extractors: str | Sequence[str] | None) -> list[str] | None:
    """The extractors that were typed, one or several, each checked; None leaves the choice to the data.

    Raises:
        ValueError: none, one twice, or one that does not exist.
    """
    if extractors is None:
        return None
    found = [extractors] if isinstance(extractors, str) else list(extractors)
    for name in found:
        check_name(name)
    if not found or len(set(found)) < len(found):
        raise ValueError(f"extractors must name at least one, each once, got {found}")
    return found
