"""How the tests run, and what their modules share: a schedule of each kind, data whose exact denoiser is known."""

import gc
import os
import sys
from collections.abc import Callable, Generator

import pytest
import torch
from support import composing
from torch import Tensor

from diffusion.denoisers import GaussianMixtureDenoiser
from diffusion.schedules import (
    ContinuousCosineSchedule,
    CosineSchedule,
    FlowSchedule,
    LinearSchedule,
    Schedule,
    SubVPSchedule,
    VarianceExplodingSchedule,
    VPSchedule,
)

# The scripts run as in a user's shell: the order of their lines has to be theirs, and modules are compiled once.
for variable in ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"):
    os.environ.pop(variable, None)
sys.dont_write_bytecode = False

# One thread for each worker and for the processes that it starts: two on one core wait for each other, and numbers
# that are compared to the last bit come from equally many threads.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# The suite proves the mathematics on the CPU, in places to the last bit, so its processes see no GPU. The `gpu` tests
# start a process that sees those of TEST_GPUS. Workers inherit both variables.
if "TEST_GPUS" not in os.environ:
    count = torch.cuda.device_count()
    every = ",".join(str(index) for index in range(count))
    os.environ["TEST_GPUS"] = (os.environ.get("CUDA_VISIBLE_DEVICES") or every) if count else ""
os.environ["CUDA_VISIBLE_DEVICES"] = ""

composing.read_once()

# No test loses power, and waiting for the disk takes a tenth of the suite's time. Runs that are killed are processes of
# their own, in which files are synced.
os.fsync = os.fstat  # which refuses what is no open file, too

# More gain nothing, since a file stays in one worker.
MAX_WORKERS = 8

# The files that take longest. They start first, so that all workers end together.
LONGEST = (
    *("docs", "train", "meta_training", "resume", "cascade", "evaluate", "ddp", "configs", "samplers", "sample"),
    *("steering", "meta_sampling", "latents", "faults", "scores", "validation", "compiling", "guides", "memory"),
    *("export", "unfit", "likelihood", "posthoc", "tuning", "compare"),
)


@pytest.hookimpl(wrapper=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> Generator[None, int, int]:
    """How many workers `-n auto` starts: none for one file, whose tests begin sooner in this process."""
    cores = yield
    if config.option.markexpr == "gpu":
        return 0
    files = {argument.partition("::")[0] for argument in config.args}
    most = min(cores, MAX_WORKERS, len(files) if all(file.endswith(".py") for file in files) else cores)
    return most if most > 1 else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first."""
    names = [f"test_{name}" for name in LONGEST]
    items.sort(key=lambda item: names.index(item.path.stem) if item.path.stem in names else len(names))


def pytest_collection_finish() -> None:
    """Modules and tests live to the end: the garbage collector need not go through them again and again."""
    gc.collect()
    gc.freeze()


SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "linear": LinearSchedule,
    "cosine": CosineSchedule,
    "continuous_cosine": ContinuousCosineSchedule,
    "variance_exploding": VarianceExplodingSchedule,
    "vp": VPSchedule,
    "sub_vp": SubVPSchedule,
    "flow": FlowSchedule,
}


@pytest.fixture(params=SCHEDULES)
def schedule(request: pytest.FixtureRequest) -> Schedule:
    """One schedule of each kind, in turn."""
    return SCHEDULES[request.param]()


@pytest.fixture
def times(schedule: Schedule) -> Tensor:
    """Nine float64 times from t_min to 1; on a discrete schedule on its grid."""
    t = torch.linspace(schedule.t_min, 1, 9, dtype=torch.float64)
    return t if schedule.timesteps is None else (t * schedule.timesteps).round() / schedule.timesteps


@pytest.fixture
def mixture(schedule: Schedule) -> GaussianMixtureDenoiser:
    """The exact denoiser of three unequal, correlated Gaussians in the plane, float64."""
    means = torch.tensor([[1.0, -0.5], [-1.2, 0.3], [0.1, 0.9]], dtype=torch.float64)
    factors = torch.tensor(
        [[[0.5, 0.0], [0.2, 0.3]], [[0.2, 0.0], [-0.3, 0.6]], [[0.4, 0.0], [0.0, 0.1]]], dtype=torch.float64
    )
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    return GaussianMixtureDenoiser(schedule, means, factors @ factors.mT, weights)


@pytest.fixture
def gaussian(schedule: Schedule) -> GaussianMixtureDenoiser:
    """The exact denoiser of one correlated Gaussian in the plane, float64."""
    factor = torch.tensor([[0.7, 0.0], [0.4, 0.3]], dtype=torch.float64)
    mean = torch.tensor([[0.6, -0.3]], dtype=torch.float64)
    return GaussianMixtureDenoiser(schedule, mean, (factor @ factor.mT)[None])
