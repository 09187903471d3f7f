"""Random numbers: the published Philox answers, and draws that depend on nothing but their address."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from diffusion import noise as noise_module
from diffusion.noise import Noise, cumulative, philox

KNOWN_ANSWERS = [  # Random123's kat_vectors for philox4x32 with 10 rounds: counter, key, result
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def _words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter: str, key: str, expected: str) -> None:
    k0, k1 = _words(key)
    result = philox([torch.tensor([word]) for word in _words(counter)], (k0, k1))
    assert [word.item() for word in result] == _words(expected)


def test_philox_works_elementwise() -> None:
    rows = torch.tensor([_words(counter) for counter, key, _ in KNOWN_ANSWERS[:1]] * 3) + torch.arange(3)[:, None]
    together = philox(rows.unbind(1), (5, 7))
    for i, row in enumerate(rows):
        alone = philox(row[:, None].unbind(0), (5, 7))
        assert [w[i] for w in together] == [w[0] for w in alone]


@pytest.mark.parametrize("shape", [(), (1,), (2,), (7,), (3, 5, 5)])
def test_a_sample_has_the_same_numbers_in_any_batch(shape: tuple[int, ...]) -> None:
    index = torch.tensor([3, 0, 2**40 + 1, 12, 3])
    noise = Noise(11, index)
    uniform, normal = noise.uniform(shape, step=2, draw=1), noise.normal(shape, step=2, draw=1)
    assert uniform.shape == normal.shape == (5, *shape)
    for b in range(5):
        alone = Noise(11, index[b : b + 1])
        assert torch.equal(alone.uniform(shape, step=2, draw=1)[0], uniform[b])
        assert torch.equal(alone.normal(shape, step=2, draw=1)[0], normal[b])


def test_a_longer_draw_begins_with_the_shorter_one() -> None:
    noise = Noise(0, torch.arange(3))
    assert torch.equal(noise.normal((5,)), noise.normal((64,))[:, :5])
    assert torch.equal(noise.uniform((5,)), noise.uniform((64,))[:, :5])


def test_every_part_of_the_address_changes_the_numbers() -> None:
    index = torch.tensor([0, 1, 2**32, 2**32 + 1, 2**33])
    seeds = (0, 1, 2**32, 2**63, -1)
    rows = [
        Noise(seed, index, stream).uniform((4,), step, draw)
        for seed, stream, step, draw in itertools.product(seeds, (0, 1, 65535), (0, 1, 999), (0, 1, 2))
    ]
    flat = torch.cat(rows)
    assert len(flat.flatten().unique()) == flat.numel() == 5 * 3 * 3 * 3 * 5 * 4


def test_only_the_low_64_bits_of_the_seed_count() -> None:
    index = torch.arange(4)
    assert torch.equal(Noise(-1, index).normal((8,)), Noise(2**64 - 1, index).normal((8,)))


def test_drawing_leaves_torchs_own_generator_alone() -> None:
    before = torch.get_rng_state()
    Noise(0, torch.arange(2)).normal((3,))
    assert torch.equal(torch.get_rng_state(), before)


def test_uniform_has_the_moments_and_the_distribution() -> None:
    u = Noise(1, torch.arange(2000)).uniform((100,)).flatten()
    n = len(u)
    assert u.dtype == torch.float64
    for power in (1, 2, 3, 4):
        exact = 1 / (power + 1)
        std = math.sqrt(1 / (2 * power + 1) - exact**2)
        assert abs((u**power).mean() - exact) < 4 * std / math.sqrt(n)
    kolmogorov_smirnov = (u.sort().values - (torch.arange(n) + 0.5) / n).abs().max()
    assert kolmogorov_smirnov < 1.63 / math.sqrt(n)  # the 1 % point


def test_normal_has_the_moments_and_the_distribution() -> None:
    x = Noise(2, torch.arange(2000)).normal((100,))
    n = x.numel()
    assert x.dtype == torch.float32
    flat = x.double().flatten()
    for power, exact, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((flat**power).mean() - exact) < 4 * math.sqrt(variance / n)
    kolmogorov_smirnov = (torch.special.ndtr(flat.sort().values) - (torch.arange(n) + 0.5) / n).abs().max()
    assert kolmogorov_smirnov < 1.63 / math.sqrt(n)


def test_normals_of_one_sample_and_of_neighbours_are_uncorrelated() -> None:
    x = Noise(3, torch.arange(20000)).normal((8,)).double()
    correlation = (x.T @ x) / len(x)  # Box-Muller pairs included
    assert (correlation - torch.eye(8)).abs().max() < 4.5 * math.sqrt(2 / len(x))
    assert ((x[1:] * x[:-1]).mean(0)).abs().max() < 4.5 / math.sqrt(len(x))


@pytest.mark.parametrize("word", [0, 2**32 - 1])
def test_extreme_words_stay_inside_the_open_interval(word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def constant(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
        return tuple(torch.full((1, 1), word) for _ in range(4))

    monkeypatch.setattr(noise_module, "philox", constant)
    noise = Noise(0, torch.tensor([0]))
    assert 0 < noise.uniform() < 1
    assert noise.normal((4,)).isfinite().all()


def test_sums_of_probabilities_are_those_of_exact_fractions() -> None:
    shares = torch.rand(3, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shares /= shares.sum(1, keepdim=True)
    sums = [[float(total) for total in itertools.accumulate(map(Fraction, row))] for row in shares.tolist()]
    exact = torch.tensor(sums, dtype=torch.float64)
    torch.testing.assert_close(cumulative(shares), exact, rtol=0, atol=1000 * 2.0**-53)
