"""The step on static buffers: it freezes nothing that changes, leaves no trace of its warm-up, and trains as the eager
step does. On a CPU the functions run in the place of the graphs that CUDA would make of them."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from support.configs import resolved
from support.recorded import Recorded, changed
from torch import Tensor

from data.stream import Batches
from diffusion.machine import graphs
from diffusion.noise import TRAINING, Noise
from diffusion.objectives import Objective, optimizer_of
from diffusion.runs.parts import Parts
from diffusion.training.compiling import compile_network
from diffusion.training.data import data_module
from diffusion.training.run import Run
from diffusion.training.static import StaticStep, first_divergence, move_average, requested, trained

COUNT, STEPS = 4, 50
CPU = torch.device("cpu")
CAPTURED = graphs.captured  # itself, which the tests replace
TINY = ("network.widths=[4]", "network.blocks=1", "network.attention=[]", "timesteps=50")
RESIDUAL = ("denoiser=residual", "denoiser.clusters=2", "denoiser.components=4")


@pytest.fixture(autouse=True)
def uncaptured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "captured", lambda function, device: function)


class Course:
    """A run's module with an optimizer, its batches and a changing learning rate."""

    def __init__(self, *overrides: str, accumulated: int = 1) -> None:
        torch.manual_seed(0)
        config = resolved(*overrides)
        self.module = Run(Parts(config), None).module.train()  # type: ignore[arg-type]
        self.config, self.accumulated = config, accumulated
        for part in self.module.objective.modules():  # it asks the CPU, which a GPU does not wait for
            if isinstance(part, Objective):
                part.check = lambda model: None  # type: ignore[method-assign]
        self.optimizer = optimizer_of(self.module.optimizer, self.module.denoiser, self.module.objective, fused=True)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]

    def batch(self, number: int) -> dict[str, Tensor]:
        serial = torch.arange(COUNT) + number * COUNT
        shape = self.config["dataset"]["shape"]
        x = torch.stack([torch.rand(shape, generator=torch.Generator().manual_seed(int(s))) for s in serial]) * 2 - 1
        batch = {"x": x, "label": serial % 10, "serial": serial}
        if (parts := Parts(self.config)).condition is not None:
            batch |= parts.condition.augmented(x, 0, serial)
        return batch

    def rates(self, number: int) -> tuple[list[float], list[float]]:
        """Learning rates and averaging weights of step number `number`, from 1."""
        averaging = self.module.averaging
        factor = number / 10 if number < 10 else 1 - number / (STEPS + 1)
        return [factor * peak for peak in self.peaks], [] if averaging is None else averaging.weights(number)

    def static(self, served: Batches | None = None) -> StaticStep:
        module = self.module
        step = StaticStep(
            module.denoiser, module.objective, self.optimizer, module.averages, self.batch(99), self.accumulated, 1.0,
            module.seed, lambda: torch.autocast("cpu", enabled=False), served,
        )  # fmt: skip
        step.capture()
        return step

    def batches(self, number: int) -> Iterator[dict[str, Tensor]]:
        """Of step number `number`; dropout is seeded before each."""
        for i in range(self.accumulated):
            torch.manual_seed(number * self.accumulated + i)
            yield self.batch(number * self.accumulated + i)

    def eager_step(self, number: int) -> Tensor:
        module, losses = self.module, []
        self.optimizer.zero_grad()
        for batch in self.batches(number):
            out = module.objective(module.denoiser, batch, Noise(module.seed, batch["serial"], TRAINING))
            (out["loss"].mean() / self.accumulated).backward()
            losses.append(out["loss"].mean().detach())
        torch.nn.utils.clip_grad_norm_(trained(module.denoiser, module.objective), 1.0)
        lrs, weights = self.rates(number)
        for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr
        self.optimizer.step()
        with torch.no_grad():
            for average, weight in zip(module.averages, weights, strict=True):
                move_average(average, module.denoiser, weight)
        return torch.stack(losses).mean()

    def static_step(self, step: StaticStep, number: int) -> Tensor:
        for batch in self.batches(number):
            step.fill_batch(batch)
            step.accumulate()
        step.fill(number, *self.rates(number))
        step.update()
        return step.last_loss


CASES = [
    *((f"denoiser={name}",) for name in ("eps", "x0", "v", "score", "flow", "edm")),
    *((*RESIDUAL, f"objective={name}") for name in ("lognormal", "simple")),
    *((f"objective={name}", "denoiser=eps") for name in ("min_snr", "lognormal", "logit_normal")),
    *((f"objective={name}", "denoiser=learned") for name in ("hybrid", "vlb")),
    ("objective=likelihood", "schedule=vp", "steps=5"),
    ("schedule=cosine",),
    *((f"schedule={name}", "steps=5") for name in ("ve", "flow")),
    *((f"optimizer={name}", f"ema={ema}") for name in ("adamw", "muon") for ema in ("none", "exponential", "power")),
    ("optimizer=muon", "optimizer.weight_decay=0.1"),
    ("optimizer.weight_decay=0.1", "objective.distance=huber"),
    ("network.dropout=0.2",),
    ("network.num_classes=10", "condition_dropout=0.5", *RESIDUAL),
    ("network.num_classes=10", "condition_dropout=0.5"),
    *((f"dataset/condition={name}",) for name in ("lowres", "augmented")),
    ("network=dit_mini", "network.depth=1", "network.width=16", "network.heads=2"),
    ("experiment=classifier_digits",),
    ("experiment=few_step_matching", "objective.steps=2", "objective.warmup_images=8"),
    ("dataset=swissroll", "network=mlp", "network.width=8"),
]


def marked(cases: list[tuple[str, ...]]) -> list[Any]:
    """Every fourth by default, and those whose steps change most from one to the next."""
    always = {*cases[::4], *(case for case in cases if "optimizer=muon" in case or "objective=vlb" in case)}
    return [case if case in always else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def overrides(case: tuple[str, ...]) -> list[str]:
    chosen = {text.partition("=")[0] for text in case}
    names = (
        ()
        if "network" in chosen or case[0] == "experiment=few_step_matching"
        else TINY[:3]
        if "experiment" in chosen
        else TINY
    )
    if any(text in case for text in ("schedule=vp", "schedule=ve", "schedule=flow", "experiment=classifier_digits")):
        names = tuple(name for name in names if not name.startswith("timesteps"))
    return [*names, *case]


def state(course: Course) -> dict[str, Tensor]:
    found = dict(course.module.state_dict())
    for i, moments in enumerate(course.optimizer.state.values()):
        found |= {f"moment {i} {name}": value for name, value in moments.items()}
    return found


@pytest.mark.parametrize("case", marked(CASES), ids=" ".join)
def test_nothing_that_changes_between_two_steps_is_frozen_and_nothing_is_asked(case: tuple[str, ...]) -> None:
    course = Course(*overrides(case))
    step = course.static()
    recorded = []
    for number in (3, 17):
        torch.manual_seed(number)
        step.fill_batch(course.batch(number))
        step.fill(number, *course.rates(number))
        with Recorded() as operations, graphs.Unasked(CPU):
            step.accumulate()
            step.update()
        recorded.append(operations)
    assert len(recorded[0].calls) > 100
    assert changed(*recorded) == []


@pytest.mark.slow
@pytest.mark.parametrize("accumulated", [1, 3])
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_fifty_static_steps_equal_fifty_eager_ones(case: tuple[str, ...], accumulated: int) -> None:
    assert_equal_courses(overrides(case), accumulated, STEPS)


@pytest.mark.parametrize(
    ("case", "accumulated"),
    [
        (("network.dropout=0.2",), 2),
        (("optimizer=muon", "optimizer.weight_decay=0.1", "ema=power"), 1),
        (("objective=vlb", "denoiser=learned"), 1),
    ],
)
def test_a_few_static_steps_equal_as_many_eager_ones(case: tuple[str, ...], accumulated: int) -> None:
    assert_equal_courses(overrides(case), accumulated, 5)


def assert_equal_courses(settings: list[str], accumulated: int, steps: int) -> None:
    eager, static = (Course(*settings, accumulated=accumulated) for _ in range(2))
    step = static.static()
    for number in range(1, steps + 1):
        expected, found = eager.eager_step(number), static.static_step(step, number)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    expected, found = state(eager), state(static)
    assert expected.keys() == found.keys()
    # Muon's orthogonalisation brings small singular values, and so the rounding in them, to 1.
    orthogonalised = {"optimizer=muon", "experiment=few_step_matching"} & set(settings)
    tolerance = 1e-3 if orthogonalised else 1e-5
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance / 2)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_warm_up_of_a_course_on_its_way_leaves_no_trace(optimizer: str) -> None:
    course = Course(*TINY, f"optimizer={optimizer}", "ema=power", "objective=vlb", "denoiser=learned")
    for number in (1, 2):
        course.eager_step(number)
    before = {name: value.clone() for name, value in state(course).items()}
    options = [dict(group) for group in course.optimizer.param_groups]
    step = course.static()
    after = state(course)
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert options == course.optimizer.param_groups
    assert not step.last_loss and not step.grad_norm and step.diverged_at == -1


def test_a_compiled_network_is_what_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        def run(*values: Any) -> Any:
            runs.append(1)
            return graph.forward(*values)

        return run

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    course = Course(*TINY)
    compile_network(course.module.denoiser)
    step = course.static()
    assert len(runs) == 3  # one finds the parameters, and two warm up
    step.accumulate()
    step.accumulate()
    assert len(runs) == 5


def test_a_capture_that_fails_leaves_the_course_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    torch.manual_seed(0)
    course, untouched = Course(*TINY), Course(*TINY)
    monkeypatch.setattr(graphs, "captured", failing)
    with pytest.raises(RuntimeError, match="not permitted"):
        course.static()
    for number in range(1, 4):
        assert torch.equal(course.eager_step(number), untouched.eager_step(number))
    mine, theirs = state(course), state(untouched)
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("operation not permitted when stream is capturing"), graphs.CaptureFailed),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), torch.OutOfMemoryError),
    ],
)
def test_after_a_capture_that_cuda_refuses_the_stream_is_the_one_of_before(
    error: RuntimeError, kind: type[RuntimeError], monkeypatch: pytest.MonkeyPatch
) -> None:
    current = ["before"]

    @contextmanager
    def graph(made: object, stream: str, capture_error_mode: str) -> Iterator[None]:  # as torch's where it cannot end
        current[0] = stream
        yield

    def refused() -> None:
        assert current == ["side"]
        raise error

    card = {
        "device": lambda device: nullcontext(),
        "CUDAGraph": object,
        "current_stream": lambda: current[0],
        "current_device": lambda: 0,
        "set_stream": lambda stream: current.__setitem__(0, stream),
        "graph": graph,
    }
    for name, value in card.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(graphs, "_side_stream", lambda index: "side")
    with pytest.raises(kind):
        CAPTURED(refused, torch.device("cuda"))
    assert current == ["before"]


def test_a_step_that_asks_the_device_for_a_value_is_refused() -> None:
    course = Course("experiment=swissroll")
    with pytest.raises(graphs.NotCapturable, match="wait for the device"):
        course.static()


@pytest.mark.parametrize(
    "question",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.masked_fill_(x > 0, 0)[x > 0],
        lambda x: x.to("meta"),
        lambda x: torch.ones(2, device="meta").copy_(x[:2]),
    ],
)
def test_each_question_to_the_device_is_noticed(question: Callable[[Tensor], Any]) -> None:
    with pytest.raises(graphs.NotCapturable), graphs.Unasked(CPU):
        question(torch.arange(3.0))


def test_a_number_that_changes_is_noticed() -> None:
    recorded = []
    for lr in (0.1, 0.2):
        with Recorded() as operations:
            torch.ones(3).sub_(torch.ones(3), alpha=lr)
            torch.ones(3) * torch.tensor(lr)
        recorded.append(operations)
    assert [line.split(":")[0] for line in changed(*recorded)] == ["aten.sub_.Tensor", "aten.lift_fresh.default"]


def test_the_first_step_that_is_not_finite_stays_the_first() -> None:
    diverged_at = torch.tensor(-1)
    for number, norm in enumerate((1.0, float("inf"), 1.0, float("nan")), start=1):
        diverged_at = first_divergence(torch.tensor(norm), torch.tensor(number), diverged_at)
    assert diverged_at == 2


def test_data_on_the_device_are_the_batches_that_the_loader_serves() -> None:
    parts = Parts(resolved(*TINY, "dataset.flip=true", "batch_size=8"))
    loader, device = data_module(parts), data_module(parts)
    served = device.served_on(torch.device("cpu"), free=10**9)
    assert served is not None
    for requests, expected, _ in zip(device.train_dataloader(), loader.train_dataloader(), range(3), strict=False):
        assert set(requests) == {"indices", "serials", "flip"}
        made = requested(served, requests)
        assert made.keys() == expected.keys()
        assert all(torch.equal(made[name], value) for name, value in expected.items())


def test_data_that_do_not_fit_or_have_an_image_condition_stay_where_they_are() -> None:
    plain, conditioned = (data_module(Parts(resolved(*TINY, *more))) for more in ((), ("dataset/condition=lowres",)))
    assert plain.served_on(torch.device("cpu"), free=1000) is None
    assert conditioned.served_on(torch.device("cpu"), free=10**9) is None
    assert "x" in next(iter(plain.train_dataloader()))


def test_a_step_that_fetches_its_batch_freezes_nothing_and_trains_as_one_that_is_given_it() -> None:
    settings = (*TINY, "dataset.flip=true", "batch_size=4")
    given, fetching = Course(*settings), Course(*settings)
    data = data_module(Parts(given.config))
    batches = iter(data.train_dataloader())
    given.batch = lambda number: next(batches)  # type: ignore[method-assign, assignment]
    other = data_module(Parts(given.config))
    served = other.served_on(torch.device("cpu"), free=10**9)
    requests = iter(other.train_dataloader())
    fetching.batch = lambda number: next(requests)  # type: ignore[method-assign, assignment]
    steps = given.static(), fetching.static(served)
    for number in range(1, 4):
        losses = [course.static_step(step, number) for course, step in zip((given, fetching), steps, strict=True)]
        assert torch.equal(*losses)
    recorded = []
    for _ in range(2):
        steps[1].fill_batch(fetching.batch(0))
        with Recorded() as operations, graphs.Unasked(CPU):
            steps[1].accumulate()
        recorded.append(operations)
    assert changed(*recorded) == []
