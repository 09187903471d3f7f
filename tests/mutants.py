"""Does a test fail when the code is wrong? One-token mutants of the core, each run against its tests.

    python tests/mutants.py                 60 mutants with seed 0, about half an hour on two cores
    python tests/mutants.py 20 7            20 with seed 7

Draws as many operators (comparisons too), constants (indices too) and names in the modules of `TESTS`, changes one in a
copy of the project, and runs the module's tests there, and where those pass all of `ROOMS`. A survivor that
docs/mutants.md does not explain as equivalent makes it exit with 1. Docstrings, messages, annotations, imports and
default settings are left alone.
"""

import argparse
import ast
import contextlib
import difflib
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 900
SERVER = multiprocessing.get_context("forkserver")
KINDS = ("operator", "constant", "name")
ORDER = "samplers::test_the_measured_order_is_the_stated_one"
BENDS = "trial::test_heuns_step_is_kept_where_it_is_short_or_ends_a_hundredth_off_unit_variance"
NEAR = "trial::test_mean_and_spread_are_near_ddims_or_nearer_the_truth_on_any_grid"
HEADS = "step_denoiser::test_heads_behind_a_preconditioner_go_along_the_schedules_steps_alone"
# The module, and the tests that should notice; the likeliest first.
TESTS = {
    "diffusion/schedules/base.py": (
        "schedules",
        "denoisers",
        "meta_sampling::test_a_coefficient_multiplies_samples_of_another_device",
    ),
    "diffusion/schedules/discrete.py": ("schedules", "denoisers"),
    "diffusion/schedules/continuous.py": ("schedules", "denoisers"),
    "diffusion/forward.py": ("repaint", "variance", "exact", ORDER, "denoisers", "autoguidance", "stochastic"),
    "diffusion/denoisers/base.py": ("denoisers", "exact", "objectives", "autoguidance", HEADS, "guidance", "prior"),
    "diffusion/denoisers/network.py": ("denoisers", "exact", "objectives", HEADS),
    "diffusion/denoisers/mixture.py": ("mixture", "exact"),
    "diffusion/denoisers/fitted.py": ("residual", "prior"),
    "diffusion/denoisers/residual.py": ("residual",),
    "diffusion/denoisers/stepwise.py": ("step_denoiser",),
    "diffusion/objectives/base.py": (
        "objectives",
        "conditions",
        "capture::test_what_is_not_captured_has_a_reason",
    ),
    "diffusion/objectives/denoising.py": ("objectives", "variance"),
    "diffusion/objectives/bound.py": ("variance", "objectives"),
    "diffusion/samplers/base.py": (
        "samplers",
        "inversion",
        "adaptive::test_a_model_is_asked_whether_it_knows_the_times_between_the_grids_too",
    ),
    "diffusion/samplers/onestep.py": (ORDER, BENDS, "inversion", "samplers"),
    "diffusion/samplers/grids.py": (
        "grids",
        "steering::test_times_between_two_are_so_many_and_begin_and_end_there",
        "steering::test_times_from_noise_to_data_are_the_grids_own_to_the_last_bit",
    ),
    "diffusion/samplers/multistep.py": (ORDER, "inversion", "samplers", NEAR),
    "diffusion/samplers/stochastic.py": ("stochastic", "samplers::test_the_loop_yields_every_state"),
    "diffusion/ode.py": ("adaptive",),
    "diffusion/samplers/adaptive.py": ("adaptive",),
    "diffusion/likelihood.py": ("likelihood", "variance"),
    "diffusion/guidance.py": ("guidance", "measurements", "autoguidance", "repaint"),
    "diffusion/models/autoencoder.py": ("autoencoder",),
    "diffusion/models/latents.py": (
        "latents",
        "autoencoder",
        "steering::test_a_late_start_stays_near_its_image",
    ),
    "diffusion/samplers/repaint.py": ("repaint",),
    "diffusion/samplers/consistency.py": ("consistency",),
    "diffusion/objectives/consistency.py": ("consistency",),
    "diffusion/objectives/matching.py": ("matching",),
    "diffusion/objectives/tuning.py": ("consistency", "matching"),
    "diffusion/ranges.py": ("ranges",),
    "diffusion/runs/validation.py": (
        "validation",
        "posthoc::test_a_runs_snapshots_give_averages_of_any_width",
        "cascade::test_what_is_given_decides_and_twice_the_same_is_the_same",
        "exchange_safetensors::test_a_file_draws_what_its_checkpoint_draws",
    ),
    "diffusion/machine/memory.py": (
        "memory::test_every_sign_of_a_shortage_is_one_line_with_the_advice",
        "memory::test_other_errors_stay_what_they_are",
        "memory::test_samples_that_do_not_fit_are_one_line",
    ),
    "diffusion/runs/lock.py": ("lock",),
    "diffusion/media/atomic.py": ("runlog", "media", "faults"),
    "diffusion/training/events.py": ("runlog", "resume::test_killed_at_the_worst_moments"),
    "data/pictures.py": (
        "pictures",
        "media::test_image_files_are_read_as_they_look_or_refused",
        "data_folder::test_16_bits_are_scaled_not_clipped",
    ),
    "hints.py": ("hints",),
}
# Of the whole suite, those that run the modules above.
ROOMS = tuple(
    f"tests/{room}"
    for room in ("maths", "networks", "sampling", "runs", "training", "evaluation", "data", "media", "exchange")
)
OPERATORS = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.Pow: "*", ast.FloorDiv: "*", ast.MatMult: "*",
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.And: "or", ast.Or: "and", ast.Is: "is not", ast.IsNot: "is",
}  # fmt: skip
SYMBOLS = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**", ast.FloorDiv: "//", ast.MatMult: "@",
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
    ast.And: "and", ast.Or: "or", ast.Is: "is", ast.IsNot: "is not",
}  # fmt: skip


class Mutant(NamedTuple):
    """One token, at a character of a module's text, and what takes its place."""

    module: str
    start: int
    old: str
    new: str
    line: int

    @property
    def kind(self) -> str:
        """Of which as many are drawn as of the others."""
        return "name" if self.old.isidentifier() else "constant" if self.old[0].isdigit() else "operator"

    def __str__(self) -> str:
        text = (ROOT / self.module).read_text(encoding="utf-8").splitlines()[self.line - 1].strip()
        return f"{self.module}:{self.line}  `{self.old}` -> `{self.new}`  in  `{text}`"


def sites(module: str) -> list[Mutant]:
    """Every one-token mutant of a module that is not text, annotation, import, default or message."""
    source = (ROOT / module).read_text(encoding="utf-8")
    offsets = [0]
    for text in source.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(text))
    found: list[Mutant] = []

    def at(line: int, column: int) -> int:
        return offsets[line - 1] + len(source.splitlines()[line - 1].encode()[:column].decode())

    def add(start: int, old: str, new: str) -> None:
        assert source[start : start + len(old)] == old, (module, start, old)
        found.append(Mutant(module, start, old, new, source.count("\n", 0, start) + 1))

    def between(left: ast.expr, right: ast.expr, kind: type) -> None:
        """The operator's symbol between two operands, past brackets and line ends."""
        end, begin = at(left.end_lineno or 0, left.end_col_offset or 0), at(right.lineno, right.col_offset)
        place = re.search(rf"(?<!\w){re.escape(SYMBOLS[kind])}(?!\w)", source[end:begin]) if kind in (
            ast.And, ast.Or, ast.Is, ast.IsNot
        ) else re.search(re.escape(SYMBOLS[kind]), source[end:begin])  # fmt: skip
        if place:
            add(end + place.start(), SYMBOLS[kind], OPERATORS[kind])

    def visit(node: ast.AST, names: list[str]) -> None:
        if isinstance(node, ast.Raise | ast.Import | ast.ImportFrom | ast.JoinedStr):
            return
        if isinstance(node, ast.FunctionDef):
            local = {name.id for name in ast.walk(node) if isinstance(name, ast.Name) and name.id.islower()}
            arguments = {argument.arg for argument in node.args.args if argument.arg not in ("self", "cls")}
            stored = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            names = sorted(local & (arguments | stored))
            for child in node.body:
                visit(child, names)
            return
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            between(node.left, node.right, type(node.op))
        elif isinstance(node, ast.AugAssign) and type(node.op) in OPERATORS:
            between(node.target, node.value, type(node.op))
        elif isinstance(node, ast.BoolOp):
            between(node.values[0], node.values[1], type(node.op))
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in OPERATORS:
            between(node.left, node.comparators[0], type(node.ops[0]))
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            add(at(node.lineno, node.col_offset), "-", "+")
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            old = ast.get_source_segment(source, node) or ""
            add(at(node.lineno, node.col_offset), old, str(node.value + 1))
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            add(at(node.lineno, node.col_offset), str(node.value), str(not node.value))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in names and len(names) > 1:
            # The likeliest slips: sigma_s for sigma_t.
            nearest = difflib.get_close_matches(node.id, [name for name in names if name != node.id], n=3, cutoff=0)
            add(at(node.lineno, node.col_offset), node.id, nearest[len(found) % len(nearest)])
        for field, child in ast.iter_fields(node):
            if field in ("annotation", "returns", "keywords" if isinstance(node, ast.ClassDef) else ""):
                continue
            for part in child if isinstance(child, list) else [child]:
                if isinstance(part, ast.AST):
                    visit(part, names)

    visit(ast.parse(source), [])
    return found


def run_tests(project: Path, tests: tuple[str, ...], workers: int) -> None:
    """Ends this process with pytest's exit status, for the project in that folder."""
    os.chdir(project)
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        status = pytest.main(["-x", "-q", "-n", str(workers), "-p", "no:cacheprovider", *tests])
    sys.exit(int(status))


def its_tests(module: str) -> tuple[str, ...]:
    """Those of `TESTS`, as pytest takes them."""
    return tuple(
        str(next((ROOT / "tests").rglob(f"test_{file}.py")).relative_to(ROOT)) + colons + test
        for file, colons, test in (name.partition("::") for name in TESTS[module])
    )


def passes(mutant: Mutant, tests: tuple[str, ...], workers: int = 0) -> bool:
    """Whether the tests pass all the same; a test run that takes too long or cannot begin has noticed."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "raw", "lightning_logs", "__pycache__"))
        file = copy / mutant.module
        text = file.read_text(encoding="utf-8")
        end = mutant.start + len(mutant.old)
        file.write_text(text[: mutant.start] + mutant.new + text[end:], encoding="utf-8")
        # Forked from a server that has imported torch once, and nothing of the project.
        process = SERVER.Process(target=run_tests, args=(copy, tests, workers))
        process.start()
        process.join(TIMEOUT_S)
        process.kill()
        return process.exitcode == 0


def survives(mutant: Mutant) -> bool:
    """Whether the module's own tests pass."""
    return passes(mutant, its_tests(mutant.module))


def main(count: int, seed: int) -> int:
    """Draws and runs the mutants; the number of survivors that are not explained."""
    os.environ["OMP_NUM_THREADS"] = "1"
    SERVER.set_forkserver_preload(["torch", "torchdiffeq", "pytest"])
    modules = list(TESTS)
    everything = [mutant for name in modules for mutant in sites(name)]
    dice = random.Random(seed)
    kinds = [[mutant for mutant in everything if mutant.kind == kind] for kind in KINDS]
    drawn = [mutant for i, kind in enumerate(kinds) for mutant in dice.sample(kind, (count + i) // len(KINDS))]
    page = (ROOT / "docs/mutants.md").read_text(encoding="utf-8")
    with ThreadPoolExecutor(2) as pool:
        # A mutant that changes nothing has to survive, or every other would count as killed.
        unchanged = [mutant._replace(new=mutant.old) for mutant in (sites(name)[0] for name in modules)]
        broken = [
            mutant.module for mutant, good in zip(unchanged, pool.map(survives, unchanged), strict=True) if not good
        ]
        if broken:
            sys.exit(f"error: the tests of {', '.join(broken)} fail as the code stands; make them pass first")
        left: list[Mutant] = []
        for i, (mutant, survived) in enumerate(zip(drawn, pool.map(survives, drawn), strict=True), start=1):
            # Line numbers move: the page names the token and its line's text.
            known = str(mutant).split("  ", 1)[1] in page
            word = "killed" if not survived else "equivalent" if known else "left over"
            left += [mutant] if word == "left over" else []
            print(f"{i:3} {word:10}  {mutant}", flush=True)
    if left and not passes(unchanged[0], ROOMS, workers=2):
        sys.exit(f"error: of {', '.join(ROOMS)} some fail as the code stands; make them pass first")
    survivors = [mutant for mutant in left if passes(mutant, ROOMS, workers=2)]
    for mutant in left:
        print(f"{'SURVIVED' if mutant in survivors else 'killed by all':13}  {mutant}", flush=True)
    print(
        f"{len(everything)} possible, {count} drawn with seed {seed}, {len(survivors)} survived without an explanation"
    )
    return len(survivors)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, nargs="?", default=60, help="how many are drawn")
    parser.add_argument("seed", type=int, nargs="?", default=0, help="of the draw")
    given = parser.parse_args()
    sys.exit(main(given.count, given.seed) > 0)
