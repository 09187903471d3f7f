"""A network for points in the plane."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffusion.networks.embedding import LabelEmbedding, sinusoidal


class MLP(nn.Module):
    """A residual perceptron for vectors, with the noise level's embedding added in every layer.

    Args:
        shape: (d,), of its input.
        width: of the hidden layers.
        depth: number of residual layers.
        num_classes: labels in cond["label"] condition the network, -1 being none; 0 for a network without classes.
        embedding: length of the vectors in cond["embedding"] that condition the network; 0 for none.
        in_channels: length of its input; None is d.
        out_channels: length of its output; None is d.
    """

    ends = ("first", "last")

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 128,
        depth: int = 4,
        num_classes: int = 0,
        embedding: int = 0,
        in_channels: int | None = None,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        if len(shape) != 1:
            raise ValueError(f"an mlp needs vectors of shape (d,), got shape {tuple(shape)}")
        if width < 2 or width % 2 or depth < 1:
            raise ValueError(f"mlp needs an even width and a depth of at least 1, got {width=} and {depth=}")
        if min(num_classes, embedding) < 0:
            raise ValueError(f"num_classes and embedding must not be negative, got {num_classes=} and {embedding=}")
        c_in, c_out = (shape[0] if given is None else given for given in (in_channels, out_channels))
        if min(c_in, c_out) < 1:
            raise ValueError(f"in_channels and out_channels must be at least 1, got {in_channels=} and {out_channels=}")
        self.num_classes, self.embedding = num_classes, embedding
        self.width = width
        self.embed_label = LabelEmbedding(num_classes, width) if num_classes else None
        self.embed_vector = nn.Linear(embedding, width, bias=False) if embedding else None  # zero says nothing
        self.embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.first = nn.Linear(c_in, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(depth)
        )
        self.last = nn.Linear(width, c_out)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """F, (B, out_channels), from x (B, in_channels); c_noise (B,)."""
        emb = self.embed(sinusoidal(c_noise, self.width).to(x.dtype))
        if self.embed_label is not None:
            emb = emb + self.embed_label(cond["label"])
        if self.embed_vector is not None:
            emb = emb + self.embed_vector(cond["embedding"].to(x.dtype))
        h = self.first(x)
        for layer in self.layers:
            h = h + layer(h + emb)
        return self.last(torch.nn.functional.silu(h))
