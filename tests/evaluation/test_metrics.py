"""Scores of feature vectors and of points, against closed forms, other libraries and cases worked by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from diffusion.evaluation.metrics import (
    NEARLY_ALL,
    Score,
    copying_share,
    frechet_distance,
    gaussian_frechet,
    histogram_distance,
    kernel_distance,
    least_rows,
    neighbour_scores,
    random_parts,
    share,
)
from diffusion.evaluation.points import sliced_wasserstein, two_sample_test


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Identity(nn.Module):
    """Features that are given as images already, (N, 3, 1, 1)."""

    num_features = 3

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def test_frechet_distance_of_commuting_gaussians_is_that_of_their_axes() -> None:
    # In a common basis it is the distance of the means and of the standard deviations along each axis.
    rotation = torch.linalg.qr(normal(4, 4)).Q
    a, b = torch.tensor([1.0, 2.0, 0.5, 0.0]).double(), torch.tensor([2.0, 2.0, 0.1, 3.0]).double()
    mean = normal(4, seed=1)
    covs = [rotation @ torch.diag(std**2) @ rotation.T for std in (a, b)]
    exact = (mean**2).sum() + ((a - b) ** 2).sum()
    torch.testing.assert_close(gaussian_frechet(mean, covs[0], torch.zeros(4).double(), covs[1]), exact)


def test_frechet_distance_of_correlated_gaussians_in_the_plane_is_the_closed_form() -> None:
    # tr (C_x C_y)^(1/2) = (tr C_x C_y + 2 sqrt(det C_x C_y))^(1/2) for 2x2 matrices.
    x, y = torch.tensor([[2.0, 0.9], [0.9, 0.5]]).double(), torch.tensor([[1.0, -0.6], [-0.6, 3.0]]).double()
    cross = torch.sqrt(torch.trace(x @ y) + 2 * torch.sqrt(torch.det(x) * torch.det(y)))
    exact = torch.trace(x + y) - 2 * cross
    torch.testing.assert_close(gaussian_frechet(torch.zeros(2), x, torch.zeros(2), y), exact)


def test_frechet_distance_of_samples_is_torchmetrics_and_that_of_their_moments() -> None:
    x, y = normal(50, 3), normal(60, 3, seed=1) @ torch.tensor([[1, 0.5, 0], [0, 2, 0], [0.3, 0, 1.0]]).double() + 5
    metric = FrechetInceptionDistance(feature=Identity(), normalize=True, input_img_size=(3, 1, 1)).double()
    metric.set_dtype(torch.float64)
    metric.update(x[..., None, None], real=False)
    metric.update(y[..., None, None], real=True)
    value = frechet_distance(x, y).value
    assert value == pytest.approx(metric.compute().item(), rel=1e-9)
    assert value == pytest.approx(gaussian_frechet(x.mean(0), x.T.cov(), y.mean(0), y.T.cov()).item(), rel=1e-9)
    assert frechet_distance(y, y).value == pytest.approx(0, abs=1e-9)


def test_kernel_distance_is_torchmetrics_over_all_pairs() -> None:
    x, y = normal(40, 5), 1 + 0.5 * normal(40, 5, seed=1)
    assert kernel_distance(x, y).value == pytest.approx(poly_mmd(y, x).item(), rel=1e-10)


def test_kernel_distance_is_unbiased_and_the_biased_form_is_not() -> None:
    sets = [(normal(12, 2, seed=2 * i), normal(12, 2, seed=2 * i + 1)) for i in range(300)]
    values = torch.tensor([kernel_distance(x, y, replicates=0).value for x, y in sets])
    error = values.std() / math.sqrt(len(values))
    assert values.mean().abs() < 4 * error
    diagonal = ((normal(2000, 2, seed=7) ** 2).sum(1) / 2 + 1) ** 3
    off = (normal(2000, 2, seed=8) * normal(2000, 2, seed=9)).sum(1) / 2 + 1
    bias_with_pairs_of_itself = 2 * (diagonal.mean() - (off**3).mean()) / 12
    assert bias_with_pairs_of_itself > 10 * error


@pytest.mark.parametrize("metric", [frechet_distance, kernel_distance, sliced_wasserstein, copying_share])
def test_an_interval_is_of_the_same_score_of_random_parts_of_both_sets(
    metric: Callable[..., Score], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusion.evaluation.metrics.REPLICATES", 3)
    monkeypatch.setattr("diffusion.evaluation.points.REPLICATES", 3)
    x, y = normal(60, 2), 1 + normal(60, 2, seed=1)
    if metric is copying_share:
        x, y = x[:, 0], y[:, 0]
    kept = 0.9 if metric is frechet_distance else 0.5
    halves = [random_parts(60, 3, seed, kept)[1:].bool() for seed in (0, 1)]
    values = [metric(x[in_x], y[in_y]).value for in_x, in_y in zip(*halves, strict=True)]
    score = metric(x, y)
    half_width = 1.959964 * torch.tensor(values).std().item() * math.sqrt(kept / (1 - kept))
    assert score.high - score.value == pytest.approx(half_width, rel=1e-4)


def test_precision_recall_density_coverage_of_points_on_a_line() -> None:
    real = torch.arange(8.0)[:, None]
    # Radii of third neighbours: 3 2 2 2 2 2 2 3; of fifth: 5 4 3 3 3 3 4 5.
    fake = torch.tensor([-3.5, -2.5, 3.5, 3.6, 3.4, 3.3])[:, None]
    scores = neighbour_scores(fake, real, replicates=0)
    assert scores["precision"].value == pytest.approx(5 / 6)  # -3.5 is 3.5 from 0
    inside = [1, 2, 7, 7, 7, 7]  # which of the balls |0| <= 5, |1| <= 4, 3, 3, 3, 3, 4, 5 each fake is in
    by_hand = [
        sum(abs(f - r) <= k for r, k in zip(range(8), [5, 4, 3, 3, 3, 3, 4, 5], strict=True))
        for f in fake[:, 0].tolist()
    ]
    assert by_hand[:2] == inside[:2]
    assert scores["density"].value == pytest.approx(sum(by_hand) / 5 / 6)
    assert scores["coverage"].value == 1
    # Third neighbours of the fakes: |-3.5 - 3.4| = 6.9, 5.9, 0.2, 0.3, 0.2, 0.3.
    radii = [6.9, 5.9, 0.2, 0.3, 0.2, 0.3]
    recalled = sum(
        any(abs(f - r) <= k + 1e-6 for f, k in zip(fake[:, 0].tolist(), radii, strict=True)) for r in range(8)
    )
    assert scores["recall"].value == pytest.approx(recalled / 8)


def test_a_share_of_all_or_none_still_has_an_interval_within_0_and_1() -> None:
    near, far = (neighbour_scores(normal(30, 2) + shift, normal(30, 2, seed=1)) for shift in (0.0, 90.0))
    assert (far["precision"].value, far["coverage"].value) == (0, 0)
    for score in (far["precision"], far["coverage"]):
        assert score.low == 0
        assert score.high == pytest.approx(share(0, 30).high)
    for name in ("precision", "recall", "coverage"):
        assert 0 <= near[name].low <= near[name].value <= near[name].high <= 1


def test_a_lost_mode_costs_recall_and_coverage_and_not_precision() -> None:
    real = torch.cat((normal(100, 2), normal(100, 2, seed=1) + 50))
    scores = neighbour_scores(normal(200, 2, seed=2), real)
    assert scores["precision"].value > 0.9
    assert 0.3 < scores["recall"].value <= 0.5
    assert 0.3 < scores["coverage"].value <= 0.5


def test_a_far_outlier_among_the_reals_fools_precision_and_not_density() -> None:
    real = torch.cat((normal(199, 2), torch.tensor([[1000.0, 0.0]]).double()))
    scores = neighbour_scores(normal(200, 2, seed=2) + torch.tensor([900.0, 0.0]), real)
    assert scores["precision"].value == 1
    assert scores["density"].value == pytest.approx(1 / 5)


def covers(truth: float, scores: list[Score]) -> float:
    return sum(score.low <= truth <= score.high for score in scores) / len(scores)


@pytest.mark.parametrize(("metric", "d"), [(frechet_distance, 4), (kernel_distance, 16), (sliced_wasserstein, 2)])
def test_intervals_cover_what_other_sets_of_the_size_give(metric: Callable[..., Score], d: int) -> None:
    sets = [(normal(100, d, seed=2 * i), 0.5 + 1.2 * normal(100, d, seed=2 * i + 1)) for i in range(40)]
    scores = [metric(x, y, replicates=60) for x, y in sets]
    truth = sum(score.value for score in scores) / len(scores)
    assert 0.85 <= covers(truth, scores) <= 1
    widths = [score.high - score.low for score in scores]
    spread = torch.tensor([score.value for score in scores]).std().item()
    assert 0.6 < sum(widths) / len(widths) / (2 * 1.96 * spread) < 1.6


def test_intervals_of_neighbour_scores_cover_what_other_sets_give() -> None:
    # With the balls of the whole set held fixed they covered 72 to 84 % (density), as other sets have other balls.
    found = [neighbour_scores(normal(80, 3, seed=2 * i), normal(80, 3, seed=2 * i + 1)) for i in range(60)]
    for name in ("precision", "recall", "density", "coverage"):
        scores = [one[name] for one in found]
        assert covers(sum(score.value for score in scores) / len(scores), scores) > 0.88, name
        spread = torch.tensor([score.value for score in scores]).std().item()
        assert sum(score.high - score.low for score in scores) / len(scores) < 2 * 1.96 * spread * 1.6, name


def test_parts_that_keep_more_find_less_of_the_variance_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    # Where both sets are alike a Frechet distance is a square of differences: 1 + 1/k times its variance.
    def mean_variance(kept: float) -> float:
        monkeypatch.setattr("diffusion.evaluation.metrics.NEARLY_ALL", kept)
        sets = [(normal(80, 3, seed=2 * i), normal(80, 3, seed=2 * i + 1)) for i in range(30)]
        scores = [frechet_distance(x, y, replicates=40) for x, y in sets]
        return sum((score.high - score.value) ** 2 for score in scores) / len(scores)

    assert mean_variance(0.9) / mean_variance(0.5) == pytest.approx((1 + 1 / 0.9) / 3, rel=0.12)


def test_intervals_of_shares_cover_the_truth() -> None:
    draws = [torch.rand(100, generator=torch.Generator().manual_seed(i)) < 0.3 for i in range(300)]
    assert covers(0.3, [share(draw.sum().item(), 100) for draw in draws]) > 0.92
    assert share(0, 20).low == 0 < share(0, 20).high < 0.2
    assert share(20, 20).high == 1 > share(20, 20).low > 0.8


def test_copying_share_is_the_mann_whitney_statistic() -> None:
    fake, real = torch.tensor([1.0, 2.0, 2.0]), torch.tensor([2.0, 3.0, 0.5, 2.0])
    pairs = [1.0 if f < r else 0.5 if f == r else 0.0 for f in fake.tolist() for r in real.tolist()]
    assert copying_share(fake, real).value == pytest.approx(sum(pairs) / 12)
    assert copying_share(torch.zeros(5), real).value == 1


def test_histogram_distance_of_disjoint_and_shifted_labels() -> None:
    labels = torch.arange(4).repeat(5)
    assert histogram_distance(labels, labels, 4).value == 0
    assert histogram_distance(torch.zeros(9).long(), torch.ones(3).long(), 4).value == 1
    assert histogram_distance(torch.zeros(9).long(), labels, 4).value == pytest.approx(0.75)


def test_sliced_wasserstein_of_shifted_and_scaled_clouds_is_exact() -> None:
    x = normal(500, 2)
    shift = torch.tensor([3.0, -4.0]).double()
    # A shift projects to |shift| cos: the mean of cos^2 over directions is 1/2.
    assert sliced_wasserstein(x, x + shift).value == pytest.approx(5 / math.sqrt(2), rel=1e-12)
    # Scaling moves each point by itself, whose mean square over directions is half of |x|^2.
    assert sliced_wasserstein(x, 3 * x).value == pytest.approx(2 * math.sqrt((x**2).sum(1).mean() / 2), rel=1e-12)
    assert sliced_wasserstein(x, x[torch.randperm(500)]).value == 0


def test_two_sample_test_is_a_coin_for_equal_clouds_and_sure_for_distant_ones() -> None:
    same = [two_sample_test(normal(200, 2, seed=2 * i), normal(200, 2, seed=2 * i + 1), seed=i) for i in range(60)]
    assert covers(0.5, same) > 0.88
    assert two_sample_test(normal(200, 2), normal(200, 2, seed=1) + 20).value == 1
    # For N(0, 1) against N(m, 1) the best accuracy is Phi(m / 2).
    best = 0.5 * (1 + math.erf(0.5 / math.sqrt(2)))
    seen = two_sample_test(normal(4000, 2), normal(4000, 2, seed=1) + torch.tensor([1.0, 0.0]))
    assert seen.low < best + 0.01
    assert seen.value > best - 0.03


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: frechet_distance(normal(3, 3), normal(9, 3)), "n=3 is too small for a Frechet distance of 3 features"),
        (lambda: kernel_distance(normal(1, 3), normal(9, 3)), "at least 2 samples"),
        (lambda: neighbour_scores(normal(11, 3), normal(99, 3)), "n=11 is too small for precision and .*: at least 12"),
        (lambda: neighbour_scores(normal(5, 3), normal(9, 3), replicates=0), "n=5 is too small .*: at least 6"),
        (lambda: sliced_wasserstein(normal(5, 2), normal(6, 2)), "as many points"),
        (lambda: two_sample_test(normal(8, 2), normal(9, 2)), "as many points"),
        (lambda: share(0, 0), "at least one trial"),
    ],
)
def test_too_few_samples_are_refused(call: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize("d", [11, 64, 84, 2048])
def test_from_the_least_number_of_rows_a_parts_covariance_has_full_rank(d: int) -> None:
    n = least_rows(d)
    assert random_parts(n, 1, 0, NEARLY_ALL)[1].sum() > d
    assert random_parts(n - 2, 1, 0, NEARLY_ALL)[1].sum() <= d  # one fewer may be rounded up


def test_the_least_number_of_rows_has_scores_of_neighbours() -> None:
    assert len(neighbour_scores(normal(least_rows(2), 2), normal(least_rows(2), 2))) == 4


def test_verbatim_copies_have_the_density_of_prdc_1_and_all_precision_recall_and_coverage() -> None:
    # prdc counts a neighbour whose distance is below the radius, not equal to it: of five, four and the row itself.
    real = normal(300, 8)
    for fake in (real.clone(), real[torch.randperm(300, generator=torch.Generator().manual_seed(0))]):
        found = {name: score.value for name, score in neighbour_scores(fake, real, replicates=0).items()}
        assert found == {"precision": 1, "recall": 1, "density": 1, "coverage": 1}


def test_neighbour_scores_are_those_of_open_balls_as_in_prdc() -> None:
    fake, real = normal(40, 3).round(decimals=1), normal(50, 3, seed=1).round(decimals=1)  # with ties
    between = torch.cdist(real, fake, compute_mode="donot_use_mm_for_euclid_dist")

    def radius(x: Tensor, k: int) -> Tensor:
        return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").sort(1).values[:, k]

    expected = {
        "precision": (between < radius(real, 3)[:, None] * (1 - 1e-9)).any(0).double().mean().item(),
        "recall": (between < radius(fake, 3) * (1 - 1e-9)).any(1).double().mean().item(),
        "density": (between < radius(real, 5)[:, None] * (1 - 1e-9)).sum(0).double().mean().item() / 5,
        "coverage": (between.min(1).values < radius(real, 5) * (1 - 1e-9)).double().mean().item(),
    }
    found = neighbour_scores(fake, real, replicates=0)
    assert {name: score.value for name, score in found.items()} == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shift", [0.0, 3.0, 90.0])
def test_intervals_stay_where_their_scores_can_be(shift: float) -> None:
    x, y = normal(30, 2), normal(30, 2, seed=1) + shift
    labels = (x[:, 0] > 0).long(), (y[:, 0] > 0).long()
    from_zero = [frechet_distance(x, y), sliced_wasserstein(x, y), neighbour_scores(x, y)["density"]]
    shares = [copying_share(x[:, 0], y[:, 0]), histogram_distance(*labels, 2)]
    shares += [score for name, score in neighbour_scores(x, y).items() if name != "density"]
    assert all(0 <= score.low <= score.value <= score.high for score in (*from_zero, *shares))
    assert all(score.high <= 1 for score in shares)


def test_equal_rows_are_no_neighbours_within_a_ball_of_radius_zero() -> None:
    same = torch.full((12, 5), 7.3, dtype=torch.float64)
    found = neighbour_scores(same, same, replicates=0)
    assert {name: score.value for name, score in found.items()} == dict.fromkeys(found, 0)


def test_one_feature_has_a_frechet_distance() -> None:
    x = torch.linspace(-1, 1, 50, dtype=torch.float64)[:, None]
    found = frechet_distance(x, 3 + 2 * x, replicates=0).value
    assert found == pytest.approx(9 + x.std().item() ** 2, rel=1e-6)
