"""What networks for images share: the conditions that they take, and sizes that they do not divide."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.networks.embedding import LabelEmbedding, sinusoidal


class ImageNetwork(nn.Module, ABC):
    """A network for images, `F = body(x, emb)`; emb is one vector for the noise level and all conditions but images.

    Args:
        shape: (C, H, W) of its input.
        multiple: of what height and width have to be in `body`; an image of another size is padded, and F is cropped.
        frequencies: length of the sinusoids that the noise level becomes first, even.
        width: of emb.
        num_classes: labels 0..num_classes-1 in cond["label"] condition the network, -1 being none; 0 for a network
            without classes.
        embedding: length of the vectors in cond["embedding"] that condition the network; 0 for none.
        in_channels: channels of its input; None is C.
        out_channels: channels of its output; None is C.
        condition_channels: of cond["image"], which stands beside the input; 0 for none.
        condition_level: whether cond["level"] tells the noise in that image, from 0 to about 1.
        augmentation: length of the vectors cond["augmentation"] that state how training images were transformed; 0 for
            none. Without one in cond nothing was done.
    """

    def __init__(
        self,
        shape: Sequence[int],
        multiple: int,
        frequencies: int,
        width: int,
        num_classes: int,
        embedding: int,
        in_channels: int | None,
        out_channels: int | None,
        condition_channels: int,
        condition_level: bool,
        augmentation: int,
    ) -> None:
        super().__init__()
        c_in, c_out = (shape[0] if given is None else given for given in (in_channels, out_channels))
        if min(num_classes, embedding, condition_channels, augmentation) < 0 or min(c_in, c_out) < 1:
            raise ValueError(
                f"a network for images needs num_classes, embedding, condition_channels and augmentation >= 0 and "
                f"in_channels and out_channels >= 1, got {num_classes=}, {embedding=}, {condition_channels=}, "
                f"{augmentation=}, {in_channels=} and {out_channels=}"
            )
        self.num_classes, self.embedding, self.condition_channels = num_classes, embedding, condition_channels
        self.multiple, self.frequencies = multiple, frequencies
        self.c_in, self.c_out = c_in + condition_channels, c_out

        def embed_level() -> nn.Sequential:
            return nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

        self.embed = embed_level()
        self.embed_condition_level = embed_level() if condition_level else None
        self.embed_label = LabelEmbedding(num_classes, width) if num_classes else None
        self.embed_vector = nn.Linear(embedding, width, bias=False) if embedding else None  # zero says nothing
        self.embed_augmentation = nn.Linear(augmentation, width, bias=False) if augmentation else None  # likewise

    @abstractmethod
    def body(self, x: Tensor, emb: Tensor) -> Tensor:
        """F, (B, c_out, H, W), from x (B, c_in, H, W), H and W multiples of `multiple`, and emb (B, width)."""

    def forward(self, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """F, (B, out_channels, H, W), from x (B, in_channels, H, W); c_noise (B,); cond["label"] (B,),
        cond["embedding"] (B, d), cond["image"] (B, C', H, W) and cond["level"] (B,) if the network has them, and
        cond["augmentation"] (B, 9) in training."""
        emb = self.embed(sinusoidal(c_noise, self.frequencies).to(x.dtype))
        if self.embed_label is not None:
            emb = emb + self.embed_label(cond["label"])
        if self.embed_vector is not None:
            emb = emb + self.embed_vector(cond["embedding"].to(x.dtype))
        if self.embed_augmentation is not None and "augmentation" in cond:
            emb = emb + self.embed_augmentation(cond["augmentation"].to(x.dtype))
        if self.embed_condition_level is not None:  # the sinusoids are made for numbers up to 1000
            emb = emb + self.embed_condition_level(sinusoidal(1000 * cond["level"], self.frequencies).to(x.dtype))
        if self.condition_channels:
            x = torch.cat((x, cond["image"].to(x.dtype)), dim=1)
        around = margins(x.shape[-2:], self.multiple)
        return cropped(self.body(padded(x, around), F.silu(emb)), around)


Margins = tuple[int, int, int, int]


def margins(size: Sequence[int], multiple: int) -> Margins:
    """Left, right, top, bottom: what (H, W) lacks to the next multiples, half of it on either side."""
    height, width = (-side % multiple for side in size)
    return width // 2, width - width // 2, height // 2, height - height // 2


def padded(x: Tensor, around: Margins) -> Tensor:
    """x with zeros around it."""
    return F.pad(x, around) if any(around) else x


def cropped(x: Tensor, around: Margins) -> Tensor:
    """x without its margins: the inverse of `padded`."""
    return F.pad(x, [-margin for margin in around]) if any(around) else x


def check_size(
    name: str, shape: Sequence[int], multiple: int, settings: str, pad: bool | None, remedy: str = ""
) -> int:
    """What height and width of an image have to be multiples of in a network, 1 where it pads none.

    Args:
        name: the network's.
        shape: (C, H, W).
        multiple: that the network needs.
        settings: those that it follows from, as they were typed.
        pad: whether other sizes are padded; None for a network that cannot.
        remedy: what else to change.

    Raises:
        ValueError: the network cannot take such images.
    """
    if len(shape) != 3:
        raise ValueError(f"{name} needs images of shape (channels, height, width), got shape {tuple(shape)}")
    _, height, width = shape
    if not pad and (height % multiple or width % multiple):
        padding = "" if pad is None else "pad them (pad=true), "
        raise ValueError(
            f"an image of {height}x{width} cannot pass {name} with {settings}: height and width must be "
            f"multiples of {multiple}; {padding}change the image size{f', or {remedy}' if remedy else ''}"
        )
    return multiple if pad else 1
