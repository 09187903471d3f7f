"""The table of samplers says of each what it is."""

import subprocess
import sys
from pathlib import Path

import pytest

import cli
from diffusion.samplers import DDIMSampler, Sampler
from diffusion.samplers.__main__ import source, table

ROOT = Path(__file__).parents[2]


def test_the_command_lists_every_sampler_that_can_be_chosen() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "diffusion.samplers"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines()[1:] if line}
    assert rows.keys() - {"order"} == set(cli.choices_of("sampler"))


@pytest.mark.parametrize(
    ("name", "order", "stochastic", "calls", "paper"),
    [
        ("ddpm", "1", "yes", "1", "2006.11239"),
        ("ddim", "1", "no", "1", "2010.02502"),
        ("euler_ancestral", "1", "yes", "1", "2010.02502"),
        ("heun", "2", "no", "2", "2206.00364"),
        ("unipc", "3", "no", "1", "2302.04867"),
        ("ipndm", "4", "no", "1", "2204.13902"),
        ("predictor_corrector", "0", "yes", "2", "2011.13456"),
        ("annealed_langevin", "0", "yes", "6", "1907.05600"),
        ("adaptive", "5", "no", "varies", "2011.13456"),
        ("langevin", "0", "yes", "100", "1907.05600"),
        ("consistency", "0", "yes", "1", "2303.01469"),
    ],
)
def test_its_columns_are_order_stochastic_calls_settings_and_source(
    name: str, order: str, stochastic: str, calls: str, paper: str
) -> None:
    (row,) = [line for line in table().splitlines() if line.split()[:1] == [name]]
    assert row.split()[1:4] == [order, stochastic, calls]
    assert paper in row
    assert ("eta=1.0" in row) == (name == "euler_ancestral")


def test_a_sampler_without_a_source_has_a_dash_and_each_of_the_project_has_a_source() -> None:
    class Own(DDIMSampler):
        """A method of one's own (unpublished)."""

    own: Sampler = Own()
    assert source(own) == "-"
    assert "eq. 12 and 16" in source(DDIMSampler())
    assert not [line for line in table().splitlines() if line.endswith(" -")]


def test_without_configs_the_reason_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="in a checkout of the project"):
        table(tmp_path)
