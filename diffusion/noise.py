"""Random numbers that are a pure function of their use.

A draw depends on (seed, index, step, draw) and on nothing else: not on the batch it is computed in, on the number of
devices, or on what was drawn before. So a resumed run, an accumulated batch and a sharded one see the same noise, and
image k of a sampling run is the same image whatever n and batch_size are.

The generator is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", table 2), a
counter-based one: the counter's four words are (block, index, step, draw), the key is the seed.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Streams: uses with the same seed and sample numbers that must not share random numbers.
TRAINING, VALIDATION, PREVIEW, SAMPLING, EVALUATION, CASCADE = range(6)  # CASCADE and above: a cascade's later stages
GENERATOR = 1 << 15  # added to the stream of an objective that draws samples on its way

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: Sequence[Tensor], key: tuple[int, int], rounds: int = 10) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32: four words of 32 random bits for each counter.

    Args:
        counter: four int64 tensors that broadcast against each other, with values in [0, 2^32).
        key: two integers in [0, 2^32).

    Returns:
        Four int64 tensors of values in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # The product of two 32-bit words fills 64 bits; int64 wraps, which leaves all of them right. Only what is
        # multiplied next has to be a word: c1 and c3 keep what stands above one until the end.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) ^ c1 ^ k0) & _MASK, p1, ((p0 >> 32) ^ c3 ^ k1) & _MASK, p0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1 & _MASK, c2, c3 & _MASK


def cumulative(probabilities: Tensor) -> Tensor:
    """Their sums along the last dimension, (..., K), to 2^-52.

    Of whole numbers, since float sums depend on their order: torch.cumsum of floats is none of the deterministic
    algorithms of a GPU.
    """
    return (probabilities * 2.0**52).round().long().cumsum(-1).to(probabilities) * 2.0**-52


class Noise:
    """The random numbers of a batch: those of sample b belong to `index[b]`.

    Args:
        seed: any integer; its low 64 bits count.
        index: (B,) int64, non-negative: which sample each row is (a training sample's serial number, an image's
            number).
        stream: separates uses that share seed and index (training, validation, a cascade's stages), in [0, 2^16).
    """

    def __init__(self, seed: int, index: Tensor, stream: int = 0) -> None:
        self.seed, self.index, self.stream = seed, index.long(), stream

    def uniform(self, shape: Sequence[int] = (), step: int = 0, draw: int = 0) -> Tensor:
        """(B, *shape) float64 in the open interval (0, 1); on MPS float32, where 1 in 2^25 is rounded to 1."""
        count = math.prod(shape)
        words = torch.stack(self._words((count + 3) // 4, step, draw), dim=-1)
        return self._to_unit(words.flatten(1)[:, :count]).reshape(-1, *shape)

    def normal(self, shape: Sequence[int], step: int = 0, draw: int = 0) -> Tensor:
        """(B, *shape) float32 from N(0, 1), by the Box-Muller transform."""
        count = math.prod(shape)
        w0, w1, w2, w3 = self._words((count + 3) // 4, step, draw)
        radius = torch.sqrt(-2 * torch.log(self._to_unit(torch.stack((w0, w2), dim=-1)).float()))
        angle = (2 * math.pi / 2**32) * torch.stack((w1, w3), dim=-1).float()
        pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
        return pairs.flatten(1)[:, :count].reshape(-1, *shape)

    def _words(self, blocks: int, step: int, draw: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        block = torch.arange(blocks, device=self.index.device)[None]
        low, high = (self.index & _MASK)[:, None], (self.index >> 32)[:, None]
        # A counter word holds both the draw and the stream; an index beyond 2^32 goes on in the step's upper half.
        counter = (block, low, (step & _MASK) ^ (high << 16), torch.full_like(block, draw << 16 | self.stream))
        return philox(counter, (self.seed & _MASK, self.seed >> 32 & _MASK))

    @staticmethod
    def _to_unit(words: Tensor) -> Tensor:
        """The centre of each of 2^32 equal cells, so that neither 0 nor 1 comes up."""
        wide = words.float() if words.device.type == "mps" else words.double()
        return (wide + 0.5) * 2.0**-32
