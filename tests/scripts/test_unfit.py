"""Parts that do not go together are refused with the choices that would, found by trying them."""

from pathlib import Path

import pytest
from support.scripts import assert_refused, call, on_digits

import cli
import train


@pytest.mark.parametrize(
    ("typed", "said", "passing"),
    [
        (
            "objective=vlb schedule=vp",
            "this schedule is continuous",
            {"schedule": ["cosine", "geometric", "linear", "quadratic", "sigmoid"]},
        ),
        ("denoiser=step schedule=vp objective=vlb", "", {"schedule": ["linear"]}),
        (
            "denoiser=learned",
            "does not train the variance",
            {"objective": ["hybrid", "vlb"], "denoiser": ["eps", "x0", "v"]},
        ),
        ("objective=elbo", "ELBOObjective is a loss of a Autoencoder", {"objective": ["simple", "vlb"]}),
        ("network=mlp", "an mlp needs vectors of shape (d,), got shape (1, 8, 8)", {"network": ["unet", "tutorial"]}),
        ("objective=hybrid", "a HybridObjective trains the variance", {"denoiser": ["learned"]}),
    ],
)
def test_what_would_go_with_the_rest_is_named_and_does(
    typed: str, said: str, passing: dict[str, list[str]], tmp_path: Path
) -> None:
    outcome = call(train, tmp_path, *on_digits(typed), "accelerator=cpu")
    assert_refused(outcome, said)
    line = outcome.err.removesuffix("\n")
    _, _, would = line.partition("; with all else as it is, this would do: ")
    named = {group: names.split(", ") for group, _, names in (part.partition("=") for part in would.split("; or "))}
    for group, names in passing.items():
        assert set(names) <= set(named[group])
    assert all(set(names) <= set(cli.choices_of(group)) for group, names in named.items())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            "denoiser=edm denoiser.precond.sigma_data=-1",
            "denoiser.precond.sigma_data must be positive and finite, got -1",
        ),
        ("schedule=geometric schedule.sigma_max=-1", "got sigma_min=0.02 and sigma_max=-1"),
        ("objective=elbo objective.eight_bit=abc", "objective.eight_bit must be true or false, got 'abc'"),
    ],
)
def test_a_setting_whose_default_points_to_the_data_is_named(typed: str, said: str, tmp_path: Path) -> None:
    outcome = call(train, tmp_path, *on_digits(typed), "accelerator=cpu")
    assert_refused(outcome, said)


def test_what_was_typed_for_the_group_counts_in_what_would_go(tmp_path: Path) -> None:
    # schedule=linear has 1,000 timesteps by itself.
    outcome = call(train, tmp_path, *on_digits("timesteps=10"), "accelerator=cpu")
    assert_refused(outcome, "timesteps=10 is too few", "use more timesteps", "schedule=cosine, geometric\n")
    assert list(tmp_path.iterdir()) == []


def test_a_group_of_which_something_was_typed_is_not_offered(tmp_path: Path) -> None:
    outcome = call(train, tmp_path, *on_digits("schedule.zero_terminal_snr=true"), "accelerator=cpu")
    assert_refused(outcome, "EpsPreconditioner says nothing of the data at t = 1", "would do: denoiser=flow, v, x0\n")
