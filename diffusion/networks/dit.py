"""A transformer on patches, steered by the noise level and the conditions in every block (Peebles & Xie 2023, Scalable
Diffusion Models with Transformers, arXiv 2212.09748)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.networks.embedding import sinusoidal
from diffusion.networks.image import ImageNetwork, check_size

FREQUENCIES = 256  # length of the sinusoids of the noise level, as in the authors' code


class DiTBlock(nn.Module):
    """Self-attention and a perceptron, each behind a normalisation that the conditions scale and shift, and before a
    gate that they open: the "adaLN-Zero" block (section 3.2).

        h <- h + gate_1 attention(norm(h) (1 + scale_1) + shift_1)
        h <- h + gate_2 mlp(norm(h) (1 + scale_2) + shift_2)

    All six are linear in emb with weights that begin at zero, so that a new block is the identity.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.norm_attention, self.norm_mlp = _norm(width), _norm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        """(B, N, width), from h of this shape and emb (B, width)."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(emb)[:, None].chunk(6, dim=2)
        h = h + gate_1 * self._attention(torch.addcmul(shift_1, self.norm_attention(h), 1 + scale_1))
        return h + gate_2 * self.mlp(torch.addcmul(shift_2, self.norm_mlp(h), 1 + scale_2))

    def _attention(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, width / heads)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class DiT(ImageNetwork):
    """The transformer, for images of one size.

    Squares of patch x patch pixels become tokens, with a fixed embedding of their place; blocks; the tokens become
    squares again.

    Args:
        shape: (C, H, W) of its input.
        patch: side of the squares, which divides H and W.
        width: of a token, a multiple of 4 and of heads.
        depth: number of blocks.
        heads: of the self-attention.
        num_classes: see `ImageNetwork`, as for all that is not described here.
        pad: images whose height or width the patch does not divide are padded by zeros, and the output is cropped.
    """

    ends = ("patches_in", "patches_out")
    places: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        num_classes: int = 0,
        embedding: int = 0,
        in_channels: int | None = None,
        out_channels: int | None = None,
        condition_channels: int = 0,
        condition_level: bool = False,
        pad: bool = False,
        augmentation: int = 0,
    ) -> None:
        if min(patch, width, depth, heads) < 1 or width % 4 or width % heads:
            raise ValueError(
                f"dit needs patch, depth and heads of at least 1 and a width that is a multiple of 4 and of heads, got "
                f"{patch=}, {width=}, {depth=} and {heads=}"
            )
        multiple = check_size("dit", shape, patch, f"patch={patch}", pad, "choose a patch that divides it")
        super().__init__(
            shape,
            multiple,
            FREQUENCIES,
            width,
            num_classes,
            embedding,
            in_channels,
            out_channels,
            condition_channels,
            condition_level,
            augmentation,
        )
        rows, columns = (-(-side // patch) for side in shape[1:])
        self.fold, self.unfold = nn.PixelUnshuffle(patch), nn.PixelShuffle(patch)
        self.patches_in = nn.Linear(self.c_in * patch**2, width)
        blocks = [DiTBlock(width, heads) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm_out, self.modulation = _norm(width), nn.Linear(width, 2 * width)
        self.patches_out = nn.Linear(width, self.c_out * patch**2)
        self.register_buffer("places", places(rows, columns, width), persistent=False)
        self.apply(_begin)
        for zero in (*(block.modulation for block in blocks), self.modulation, self.patches_out):
            nn.init.zeros_(zero.weight)

    def body(self, x: Tensor, emb: Tensor) -> Tensor:
        squares = self.fold(x)  # (B, C patch^2, rows, columns)
        h = self.patches_in(squares.flatten(2).transpose(1, 2)) + self.places  # (B, N, width)
        for block in self.blocks:
            h = block(h, emb)
        shift, scale = self.modulation(emb)[:, None].chunk(2, dim=2)
        h = self.patches_out(torch.addcmul(shift, self.norm_out(h), 1 + scale))
        return self.unfold(h.transpose(1, 2).unflatten(2, squares.shape[2:]))


def _begin(module: nn.Module) -> None:
    """Weights as the authors' code draws them."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


def places(rows: int, columns: int, width: int) -> Tensor:
    """A vector for each place of a grid, row by row: the sinusoids of its row, then those of its column, (rows columns,
    width) float32."""
    row, column = sinusoidal(torch.arange(rows), width // 2), sinusoidal(torch.arange(columns), width // 2)
    grid = (row[:, None].expand(-1, columns, -1), column[None].expand(rows, -1, -1))
    return torch.cat(grid, dim=2).flatten(0, 1)


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
