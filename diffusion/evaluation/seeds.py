"""Means over training runs that differ by their seed alone, and the names of what else they differ in."""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusion.evaluation.results import Result
from diffusion.settings.idle import GO_TO

CONFIDENCE = 0.95
_LARGEST = 1e150  # a score whose square is finite
# Places whose values come from a shorthand, which is what people type.
_TYPED = {place: name for name, places in GO_TO.items() if "recipe" not in name for place in places}
_MISSING = object()


@dataclass(frozen=True)
class Mean:
    """A mean over n runs with the half-width of its interval; None of a single run, and where a value is NaN or has
    no finite square."""

    value: float
    half_width: float | None
    n: int


@dataclass(frozen=True)
class Row:
    """Runs that differ by seed alone.

    Args:
        name: the settings in which they differ from others, as they are typed.
        scores: name -> one value for each run, in the order of the seeds.
        seeds: of the runs.
        calls: of the network, a sample; None where that varies or nobody knows.
        seconds: that samples took, mean over the runs; None where nobody knows.
        images: that were seen in training, mean over the runs; likewise.
    """

    name: str
    scores: Mapping[str, list[float]]
    seeds: list[int | None]
    calls: int | None
    seconds: float | None
    images: float | None


@dataclass(frozen=True)
class Comparison:
    """Rows whose scores compare, because they are judged by the same data in the same way.

    Args:
        judged_by: name -> value.
        rows: the best by the first score first.
        notes: what else has to be known to read them, a line each.
    """

    judged_by: Mapping[str, Any]
    rows: list[Row]
    notes: list[str]


def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """The t with `P(|T| <= t) = confidence` of Student's distribution with so many degrees of freedom, from 1 on.

    By bisection of the closed form of A(t | degrees), Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
    """
    if degrees < 1:
        raise ValueError(f"a t distribution has at least one degree of freedom, got {degrees}")
    low, high = 0.0, math.pi / 2  # of theta = arctan(t / sqrt(degrees)), on which A rises from 0 to 1
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < confidence else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _within(theta: float, degrees: int) -> float:
    """`P(|T| <= sqrt(degrees) tan theta)`."""
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = degrees % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(degrees // 2):  # odd: cos + 2/3 cos^3 + 2*4/(3*5) cos^5 ...; even: 1 + 1/2 cos^2 + 1*3/(2*4) cos^4
        total += term
        term *= cosine**2 * (2 * k + 1 + odd) / (2 * k + 2 + odd)
    return 2 / math.pi * (theta + sine * total) if odd else sine * total


def is_moderate(value: float) -> bool:
    """Whether a score can be averaged and drawn: it is no NaN, and its square is finite."""
    return abs(value) < _LARGEST


def mean(values: Sequence[float]) -> Mean:
    """The mean of independent runs with its 95 % interval, `mean +- t s / sqrt(n)` with t of n - 1 degrees of freedom
    (Student 1908, Biometrika 6, 1)."""
    n = len(values)
    if not all(map(is_moderate, values)):  # samples diverged
        return Mean(sum(values) / n, None, n)
    centre = math.fsum(values) / n
    if n < 2:
        return Mean(centre, None, n)
    s = math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (n - 1))
    return Mean(centre, t_quantile(n - 1) * s / math.sqrt(n), n)


def comparisons(results: Sequence[Result]) -> list[Comparison]:
    """One for each way of judging, with a row for all runs that differ by seed alone.

    Results of one run that differ by the noise alone are no independent runs: their mean counts as one.
    """
    found = []
    for those in _grouped(results, lambda result: result.judged_by).values():
        groups = list(_grouped(those, lambda result: tuple(sorted(result.settings.items()))).values())
        notes: list[str] = []
        rows = [
            _row(name, group, notes)
            for name, group in zip(names([group[0].settings for group in groups]), groups, strict=True)
        ]
        devices = sorted({result.device for result in those if result.device is not None})
        if len(devices) > 1:
            notes.append(f"seconds were measured on different devices and do not compare: {', '.join(devices)}")
        found.append(Comparison(dict(those[0].judged_by), rows, notes))
    return found


def _grouped(results: Sequence[Result], key: Any) -> dict[Hashable, list[Result]]:
    groups: dict[Hashable, list[Result]] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    return groups


def _row(name: str, group: Sequence[Result], notes: list[str]) -> Row:
    """The mean over the seeds of one run each, and over each run's repeated samples."""
    runs = []
    for seed, of_seed in _grouped(group, lambda result: result.seed if result.seed is not None else result.run).items():
        by_run = list(_grouped(sorted(of_seed, key=_age), lambda result: result.run).values())
        if len(by_run) > 1:
            left = ", ".join(same[0].run for same in by_run[:-1])
            notes.append(f"{left} repeats {by_run[-1][0].run}, seed {seed}, and is left out")
        # The newest of those with the same noise.
        runs.append(list({result.noise_seed: result for result in by_run[-1]}.values()))
    runs.sort(key=lambda repeated: (repeated[0].seed is None, repeated[0].seed))
    every = [result for repeated in runs for result in repeated]
    scores = {
        score: [
            mean([result.scores[score] for result in repeated]).value
            for repeated in runs
            if all(score in result.scores for result in repeated)
        ]
        for score in dict.fromkeys(score for result in every for score in result.scores)
    }
    calls = {result.calls for result in every}
    return Row(
        name=name,
        scores={score: values for score, values in scores.items() if values},
        seeds=[repeated[0].seed for repeated in runs],
        calls=calls.pop() if len(calls) == 1 else None,
        seconds=_mean_of([result.seconds for result in every]),
        images=_mean_of([repeated[0].images for repeated in runs]),
    )


def _age(result: Result) -> int:
    return result.file.stat().st_mtime_ns


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def names(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells each of several settings from the others, as it is typed: different settings have different names.

    A setting inside a part counts among those with the same choice of this part: no sampler lacks another one's eta.
    """
    keys = list(dict.fromkeys(key for group in groups for key in group))
    shown = [list(_differing(group, groups, keys)) for group in groups]
    return [
        " ".join(f"{_TYPED.get(key, key)}={_as_typed(group.get(key, '-'))}" for key in chosen) or "these runs"
        for group, chosen in zip(groups, shown, strict=True)
    ]


def _differing(group: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Iterator[str]:
    for key in keys:
        parts = key.split(".")
        above = [".".join(parts[:depth]) for depth in range(1, len(parts))]
        alike = [
            other for other in groups if all(other.get(part, _MISSING) == group.get(part, _MISSING) for part in above)
        ]
        if any(other.get(key, _MISSING) != group.get(key, _MISSING) for other in alike):
            yield key


def _as_typed(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(map(_as_typed, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return repr(value) if isinstance(value, float) else str(value)
