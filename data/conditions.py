"""Image conditions: what of an image a model is conditioned on, made from the image itself in training and from files
afterwards.

A condition is `{"image": (b, C', H, W)}`: values of about [-1, 1], and as last channel where they say something, 1, or
nothing, 0, where they are 0 too. All zero is therefore no condition, whatever the values' range.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from data.stream import random_numbers, whole

# What a sample's random numbers are for; `data.stream` has 1 and 2.
_LEVEL, _NOISE, _BLUR, _HOLE = 3, 4, 5, 6


class ImageCondition(ABC):
    """A way to make a condition from images.

    `leveled`: whether it has "level" (b,) too, the standard deviation of the noise in its values. `takes_mask`: whether
    a picture needs a mask beside it.
    """

    leveled: bool = False
    takes_mask: bool = False

    @abstractmethod
    def channels(self, shape: Sequence[int]) -> int:
        """C' for images of this shape (C, H, W); raises ValueError if it cannot be made from such."""

    @abstractmethod
    def __call__(self, x: Tensor, seed: int, serials: Tensor) -> dict[str, Tensor]:
        """The condition of images (b, C, H, W), as the network is to see them.

        Whatever is random in it is a function of (seed, serial), so that a resumed run makes the same again.
        """

    def augmented(self, x: Tensor, seed: int, serials: Tensor) -> dict[str, Tensor]:
        """The condition that a model is trained and validated with; the same unless it says otherwise."""
        return self(x, seed, serials)

    def takes(self, size: Sequence[int], shape: Sequence[int]) -> bool:
        """Whether a picture of this size (h, w) can condition images of this shape (C, H, W): one of their own size."""
        return tuple(size) == tuple(shape[1:])

    @abstractmethod
    def of_picture(self, picture: Tensor, shape: Sequence[int], mask: Tensor | None = None) -> dict[str, Tensor]:
        """The condition of one file, with b = 1.

        Args:
            picture: (C, h, w) in [-1, 1], with the data's channels.
            shape: (C, H, W) of the images to be drawn.
            mask: (1, H, W), 1 where something is to be made, if `takes_mask`.

        Raises:
            ValueError: the picture is of no use for such images.
        """


class Enlarging(ImageCondition):
    """One whose models enlarge small images, as the later stages of a cascade do.

    `noise`: the highest standard deviation of the noise in small images that they are trained with.
    """

    noise: float

    @abstractmethod
    def small(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """The shape of the small image, for images of this shape."""

    @abstractmethod
    def enlarged(self, low: Tensor, level: Tensor) -> dict[str, Tensor]:
        """The condition that small images (b, C, h, w) make, which have noise of these levels (b,) in them."""


class LowRes(Enlarging):
    """The image at a lower resolution (the mean of each square of pixels), enlarged again: super-resolution.

    With `noise` or `blur`, the conditioning augmentation of cascades (Ho et al. 2021, arXiv 2106.15282, section 4): in
    training the small image is blurred, which the network is not conditioned on, and gets Gaussian noise, whose level
    it is conditioned on, so that it learns how far to trust what an earlier stage will draw.

    Args:
        factor: how many times smaller.
        mode: how it is enlarged, "bilinear" or "bicubic".
        noise: standard deviations are drawn evenly from 0 to this; 0 for none and for a network that knows no level.
        blur: half of the images are blurred, by standard deviations drawn evenly from 0 to this, in the small image's
            pixels.
    """

    def __init__(self, factor: int, mode: str = "bilinear", noise: float = 0.0, blur: float = 0.0) -> None:
        self.factor = whole("factor", factor, 2)
        if mode not in ("bilinear", "bicubic"):
            raise ValueError(f"mode must be bilinear or bicubic, got {mode!r}")
        if not 0 <= noise <= 1 or not 0 <= blur <= 10:
            raise ValueError(f"noise must lie in [0, 1] and blur in [0, 10], got {noise} and {blur}")
        self.mode, self.noise, self.blur = mode, noise, blur
        self.leveled = noise > 0

    def channels(self, shape: Sequence[int]) -> int:
        return self.small(shape)[0] + 1

    def small(self, shape: Sequence[int]) -> tuple[int, int, int]:
        channels, height, width = _image_shape("lowres", shape)
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"dataset.condition=lowres: factor={self.factor} does not divide images of {width}x{height} pixels"
            )
        return channels, height // self.factor, width // self.factor

    def __call__(self, x: Tensor, seed: int, serials: Tensor) -> dict[str, Tensor]:
        return self.enlarged(F.avg_pool2d(x, self.factor), torch.zeros(len(x)))

    def augmented(self, x: Tensor, seed: int, serials: Tensor) -> dict[str, Tensor]:
        low = F.avg_pool2d(x, self.factor)
        if self.blur:
            coin, width = random_numbers(torch.rand, (2,), seed, serials, _BLUR).unbind(1)
            low = blurred(low, torch.where(coin < 0.5, self.blur * width, 0))
        level = torch.zeros(len(x))
        if self.noise:
            level = self.noise * random_numbers(torch.rand, (), seed, serials, _LEVEL)
            low = low + level[:, None, None, None] * random_numbers(torch.randn, low.shape[1:], seed, serials, _NOISE)
        return self.enlarged(low, level)

    def enlarged(self, low: Tensor, level: Tensor) -> dict[str, Tensor]:
        cond = _conditions(F.interpolate(low, scale_factor=self.factor, mode=self.mode, align_corners=False))
        return cond | {"level": level} if self.leveled else cond

    def takes(self, size: Sequence[int], shape: Sequence[int]) -> bool:
        """Whether it is the small image's size or a multiple of that."""
        _, height, width = self.small(shape)
        times = size[0] // height
        return times > 0 and tuple(size) == (times * height, times * width)

    def of_picture(self, picture: Tensor, shape: Sequence[int], mask: Tensor | None = None) -> dict[str, Tensor]:
        """From a picture of the small image's size, or of a multiple of that, which is reduced to it."""
        _, height, width = self.small(shape)
        if not self.takes(picture.shape[1:], shape):
            raise ValueError(
                f"it has {_size(picture)} pixels (width x height), and this model enlarges {width}x{height}: give a "
                f"picture of that size or of a multiple, or add resize=true"
            )
        times = picture.shape[1] // height
        return self.enlarged(F.avg_pool2d(picture[None], times), torch.zeros(1))


class Grey(ImageCondition):
    """The luminance of a colour image, 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601): colourisation."""

    def channels(self, shape: Sequence[int]) -> int:
        if _image_shape("grey", shape)[0] != 3:
            raise ValueError("dataset.condition=grey takes the colours away, and these images have none")
        return 2

    def __call__(self, x: Tensor, seed: int, serials: Tensor) -> dict[str, Tensor]:
        return _conditions(luminance(x))

    def of_picture(self, picture: Tensor, shape: Sequence[int], mask: Tensor | None = None) -> dict[str, Tensor]:
        """From a picture of the image's size, in colour or not."""
        return _conditions(luminance(_of_size(picture, shape)[None]))


class Masked(ImageCondition):
    """The image with a hole, a rectangle anywhere: completion. Grey in the hole, and the last channel says where it is.

    Args:
        smallest: each side of the hole is drawn evenly from this share of the image's
        largest: to this one.
    """

    takes_mask = True

    def __init__(self, smallest: float = 0.25, largest: float = 0.75) -> None:
        if not 0 < smallest <= largest <= 1:
            raise ValueError(f"smallest and largest need 0 < smallest <= largest <= 1, got {smallest} and {largest}")
        self.smallest, self.largest = smallest, largest

    def channels(self, shape: Sequence[int]) -> int:
        return _image_shape("masked", shape)[0] + 1

    def __call__(self, x: Tensor, seed: int, serials: Tensor) -> dict[str, Tensor]:
        u = random_numbers(torch.rand, (4,), seed, serials, _HOLE)
        rows = self._within(u[:, 0], u[:, 1], x.shape[2])[:, :, None]
        columns = self._within(u[:, 2], u[:, 3], x.shape[3])[:, None]
        return _conditions(x, 1 - (rows * columns)[:, None])

    def _within(self, place: Tensor, share: Tensor, side: int) -> Tensor:
        """(b, side): 1 in the hole's rows, or columns."""
        length = (
            (torch.lerp(torch.tensor(self.smallest), torch.tensor(self.largest), share) * side).round().clamp(min=1)
        )
        begin = (place * (side - length + 1)).floor()
        at = torch.arange(side)
        return ((at >= begin[:, None]) & (at < (begin + length)[:, None])).float()

    def of_picture(self, picture: Tensor, shape: Sequence[int], mask: Tensor | None = None) -> dict[str, Tensor]:
        """From a picture of the image's size and the mask of what is to be made."""
        if mask is None:
            raise ValueError("this model completes pictures: add mask=mask.png, white where something is to be made")
        return _conditions(_of_size(picture, shape)[None], 1 - mask[None])


class Edges(ImageCondition):
    """A line drawing: dark lines on white where the luminance changes, by Sobel's operator.

    The value is `1 - 2 min(|gradient|, 1)`, a step from black to white having the gradient 1.
    """

    def channels(self, shape: Sequence[int]) -> int:
        _image_shape("edges", shape)
        return 2

    def __call__(self, x: Tensor, seed: int, serials: Tensor) -> dict[str, Tensor]:
        across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8  # the gradient a pixel
        padded = F.pad(luminance(x), (1, 1, 1, 1), mode="replicate")
        gradient = F.conv2d(padded, torch.stack((across, across.T))[:, None])
        return _conditions(1 - 2 * gradient.norm(dim=1, keepdim=True).clamp(max=1))

    def of_picture(self, picture: Tensor, shape: Sequence[int], mask: Tensor | None = None) -> dict[str, Tensor]:
        """From a drawing of the image's size, dark lines on white."""
        return _conditions(luminance(_of_size(picture, shape)[None]))


def luminance(x: Tensor) -> Tensor:
    """(b, 1, H, W) of images (b, 1 or 3, H, W)."""
    return x if x.shape[1] == 1 else 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]


def blurred(x: Tensor, width: Tensor) -> Tensor:
    """Images (b, C, H, W), each blurred by a Gaussian of its own standard deviation (b,) in pixels; 0 is none.

    Its weights are cut off at the image's edges and sum to one.
    """

    def weights(side: int) -> Tensor:
        at = torch.arange(side, device=x.device)
        distance = at[:, None] - at
        return (-0.5 * (distance / width.clamp(min=0.01)[:, None, None]) ** 2).softmax(-1)

    return torch.einsum("bih,bchw,bjw->bcij", weights(x.shape[2]), x, weights(x.shape[3]))


def _conditions(values: Tensor, known: Tensor | None = None) -> dict[str, Tensor]:
    """Values (b, C, H, W) where they are known, (b, 1, H, W) of 0 and 1; everywhere if that is not given."""
    known = torch.ones_like(values[:, :1]) if known is None else known
    return {"image": torch.cat((values * known, known), dim=1)}


def _image_shape(name: str, shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ValueError(f"dataset.condition={name} is made from images, and these data are points")
    channels, height, width = shape
    return channels, height, width


def _of_size(picture: Tensor, shape: Sequence[int]) -> Tensor:
    if picture.shape[1:] != tuple(shape[1:]):
        raise ValueError(
            f"it has {_size(picture)} pixels (width x height), and this model draws {shape[2]}x{shape[1]}: crop it, or "
            f"add resize=true"
        )
    return picture


def _size(picture: Tensor) -> str:
    return f"{picture.shape[2]}x{picture.shape[1]}"
