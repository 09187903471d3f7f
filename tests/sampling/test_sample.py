"""`python sample.py` as a user sees it: every kind of output, the same image k however it is drawn, what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support.scripts import TINY, Outcome, assert_refused, call

import cli
import diffusion.sampling
import sample
import train
from diffusion.sampling import Pipeline
from diffusion.sampling.parallel import frames_on
from diffusion.settings.sampling import Options

RUN, CONDITIONAL, CLOUD = (
    f"lightning_logs/{name}" for name in ("digits/version_0", "digits/version_1", "moons/version_0")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tiny runs: an unconditional model of digits, a class-conditional one, and one of points."""
    folder = tmp_path_factory.mktemp("runs")
    for arguments in (
        TINY,
        (*TINY, "network.num_classes=10", "lr=0.03", "learning_rate.warmup_images=0", "ema=power"),
        ("dataset=moons", *TINY[3:]),
    ):
        assert call(train, folder, *arguments).code == 0
    return folder


def draw(folder: Path, *arguments: str) -> Outcome:
    """A command that has to succeed, without the noise of progress bars."""
    outcome = call(sample, folder, *arguments)
    assert outcome.code == 0, outcome.err
    return outcome


def arrays(folder: Path, *arguments: str) -> dict[str, Any]:
    """What a command writes to .npz."""
    draw(folder, *arguments, "out=arrays.npz")
    with np.load(folder / "arrays.npz") as file:
        return dict(file)


def test_a_drawing_says_what_was_drawn_and_whether_it_replaced_a_file(folder: Path) -> None:
    command = ("ckpt=1", "n=1", "steps=2", "seed=5", "sampler=ddim", "weights=raw", "out=said.png")
    first, second = draw(folder, *command), draw(folder, *command)
    said = f"1 sample of {CONDITIONAL}/checkpoints/last.ckpt at step 4: weights raw, seed 5, DDIMSampler, 2 steps"
    assert said in first.err.splitlines()
    assert "replaced" not in first.err
    assert "replaced the said.png that was there; out=... gives another name" in second.err.splitlines()
    assert first.out == second.out == "said.png\n"


def test_the_checkpoint_alone_gives_a_gif_in_the_runs_folder(folder: Path) -> None:
    outcome = draw(folder, f"ckpt={RUN}")
    assert Path(outcome.out.strip()) == Path(RUN, "samples", "pred.gif")
    with Image.open(folder / RUN / "samples/pred.gif") as gif:
        assert gif.n_frames == 21
        assert gif.info["loop"] == 0
        assert gif.width == gif.height >= 3 * 96
        durations = []
        for frame in range(gif.n_frames):
            gif.seek(frame)
            durations.append(gif.info["duration"])
    assert durations == [200] * 20 + [2000]


def test_last_is_the_newest_run_and_a_number_names_one(folder: Path) -> None:
    assert Path(draw(folder, "ckpt=last", "steps=2").out.strip()).parts[1] == "moons"
    assert Path(draw(folder, "ckpt=1", "steps=2").out.strip()).parts[1:3] == ("digits", "version_1")


@pytest.mark.parametrize(("name", "frames"), [("a.gif", 5), ("a.webp", 5), ("a.png", 1)])
def test_the_suffix_decides_what_is_written(folder: Path, name: str, frames: int) -> None:
    own = ["rows=2", "frames=5"] if frames > 1 else ["rows=2"]
    draw(folder, f"ckpt={RUN}", "steps=6", "n=5", *own, f"out=new/{name}")
    with Image.open(folder / "new" / name) as picture:
        assert getattr(picture, "n_frames", 1) == frames
        assert picture.width > picture.height  # 2 rows of 3, the last cell empty


def test_arrays_are_what_evaluation_suites_read(folder: Path) -> None:
    images = arrays(folder, f"ckpt={CONDITIONAL}", "steps=3", "n=12")
    assert images["arr_0"].dtype == np.uint8
    assert images["arr_0"].shape == (12, 8, 8, 1)
    assert images["arr_1"].tolist() == [*range(10), 0, 1]  # each class in turn
    points = arrays(folder, f"ckpt={CLOUD}", "steps=3", "n=7")
    assert (points["arr_0"].dtype, points["arr_0"].shape) == (np.float32, (7, 2))


def test_points_are_drawn_as_a_cloud(folder: Path) -> None:
    draw(folder, f"ckpt={CLOUD}", "steps=3", "n=50", "out=cloud.png")
    with Image.open(folder / "cloud.png") as picture:
        assert picture.size == (320, 320)


def test_a_folder_that_was_cut_off_goes_on_with_the_same_images(folder: Path) -> None:
    command = (f"ckpt={RUN}", "steps=4", "sampler=ddpm", "n=6", "out=images", "batch_size=2")
    draw(folder, *command)
    files = {path.name: path.read_bytes() for path in (folder / "images").glob("*.png")}
    assert sorted(files) == [f"{i:05d}.png" for i in range(6)]
    for name in ("00001.png", "00004.png", "00005.png"):
        (folder / "images" / name).unlink()
    record = folder / "images" / "settings.json"
    record.write_text(json.dumps(json.loads(record.read_text()), sort_keys=True))  # the order of names says nothing
    assert "3 of 6 samples were there already" in draw(folder, *command).err
    assert {path.name: path.read_bytes() for path in (folder / "images").glob("*.png")} == files
    assert "6 of 6 samples were there already" in draw(folder, *command).err
    for change in ("seed=1", "steps=5", "sampler=ddim", "weights=raw", "wrapper=dynamic_threshold"):
        assert_refused(call(sample, folder, *command, change), "images holds samples of other settings")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    return Pipeline.load(str(folder / CONDITIONAL), steps=5)


def test_image_k_is_the_same_however_it_is_drawn(pipeline: Pipeline) -> None:
    reference = pipeline.frames(7, seed=3, keep=[0, -1])
    for other in (
        pipeline.frames(9, seed=3, keep=[0, -1])[:, :7],
        pipeline.frames(7, seed=3, keep=[0, -1], batch_size=2),
        pipeline.frames([6, 5, 4, 3, 2, 1, 0], seed=3, keep=[0, -1]).flip(1),
    ):
        assert torch.equal(other[0], reference[0])  # the noise, to the bit
        assert (other[1] - reference[1]).abs().max() < 2 / 255


def test_image_k_does_not_depend_on_the_devices(pipeline: Pipeline) -> None:
    reference = pipeline.frames(5, seed=3, keep=[0, -1])
    shared = frames_on(["cpu", "cpu"], pipeline, range(5), seed=3, keep=[0, -1])
    assert torch.equal(shared[0], reference[0])
    assert (shared[1] - reference[1]).abs().max() < 2 / 255


def test_more_devices_than_images_are_no_trouble(pipeline: Pipeline) -> None:
    assert frames_on(["cpu"] * 4, pipeline, [3]).shape == (1, 1, 1, 8, 8)


def test_each_option_has_an_effect(folder: Path) -> None:
    base = (f"ckpt={CONDITIONAL}", "steps=5", "n=2")
    reference = arrays(folder, *base)["arr_0"]
    assert np.array_equal(arrays(folder, *base, "batch_size=1")["arr_0"], reference)
    for change in ("seed=1", "steps=4", "sampler=ddim", "grid=log_snr", "label=7", "weights=raw", "clip=false"):
        assert not np.array_equal(arrays(folder, *base, change)["arr_0"], reference), change
    ddim = arrays(folder, *base, "sampler=ddim")["arr_0"]
    assert not np.array_equal(arrays(folder, *base, "sampler=ddim", "eta=1")["arr_0"], ddim)
    assert np.array_equal(arrays(folder, *base, "sampler=ddim", "eta=0")["arr_0"], ddim)


def test_eta_is_for_the_models_own_ddim_too(folder: Path, tmp_path: Path) -> None:
    assert call(train, tmp_path, *TINY, "sampler=ddim", "steps=4").code == 0
    plain, noisy = (arrays(tmp_path, "ckpt=last", "n=1", f"eta={eta}")["arr_0"] for eta in (0, 1))
    assert not np.array_equal(plain, noisy)


def test_an_animation_shows_the_state_or_the_predicted_data(folder: Path) -> None:
    base = (f"ckpt={RUN}", "steps=5", "n=1", "frames=6")
    draw(folder, *base, "out=x_t.webp")
    draw(folder, *base, "out=x0.webp", "show=x0")
    frames = {}
    for name in ("x_t", "x0"):
        with Image.open(folder / f"{name}.webp") as picture:
            frames[name] = [np.asarray((picture.seek(i), picture.convert("L"))[1]) for i in range(picture.n_frames)]
    assert np.array_equal(frames["x_t"][-1], frames["x0"][-1])
    assert not np.array_equal(frames["x_t"][0], frames["x0"][0])


def test_three_lines_of_a_notebook_give_a_tensor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert diffusion.sampling.__doc__
    lines = [line.strip() for line in diffusion.sampling.__doc__.splitlines() if line.startswith("    ")]
    assert len(lines) == 3
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    images = names["images"]
    assert images.shape == (16, 1, 8, 8)
    assert images.abs().max() <= 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", ["ckpt= is missing", "ckpt", "last"]),
        ("ckpt=null", ["ckpt= is missing"]),
        ("ckpt=nowhere", ["there is no checkpoint nowhere", "last", "a version number"]),
        (f"ckpt={RUN} n=1,2 -m", ["-m is an option of train.py alone"]),
        ("ckpt=9", ["there is no run version_9"]),
        ("ckpt=https://example.org/a.ckpt", ["is an address"]),
        ("ckpt=lightning_logs/digits", ["is a folder of runs, name one", "lightning_logs/digits/version_0"]),
        ("ckpt=lightning_logs", ["is a folder of runs, name one", "lightning_logs/digits/version_0"]),
        (f"ckpt={RUN}/config.yaml", ["is a file of a run and no checkpoint: give the run folder"]),
        (f"ckpt={RUN}/metrics.csv", ["metrics.csv"]),
        (f"ckpt={RUN} n=0", ["n must be at least 1, got 0"]),
        (f"ckpt={RUN} n=x", ["n must be a whole number or null, got 'x'"]),
        (f"ckpt={RUN} n=1.5", ["n must be a whole number or null, got 1.5"]),
        (f"ckpt={RUN} rows=10", ["rows=10 is more than n=9"]),
        (f"ckpt={RUN} steps=51", ["steps=51 is more than the 50 timesteps"]),
        (f"ckpt={RUN} steps=0", ["steps must be at least 1, got 0"]),
        (f"ckpt={RUN} seed=-1", ["seed must be from 0"]),
        (f"ckpt={RUN} batch_size=0", ["batch_size must be at least 1"]),
        (f"ckpt={RUN} label=1", ["label=1: this model is unconditional"]),
        (f"ckpt={CONDITIONAL} label=10", ["label must be a whole number from 0 to 9, got 10"]),
        (f"ckpt={CONDITIONAL} label=-1", ["label must be a whole number from 0 to 9, got -1"]),
        (f"ckpt={CONDITIONAL} label=cat", ["label must be a whole number, a list of them, or all, got 'cat'"]),
        (f"ckpt={RUN} weights=avg", ["weights must be ema or raw, or the width", "got 'avg'"]),
        (
            f"ckpt={RUN} weights=0.5",
            ["or the width of an average, above 0 and at most 0.28, or the step of a snapshot, got 0.5"],
        ),
        (f"ckpt={RUN} weights=0.07", ["weights=0.07 is an average", "needs a run with ema=power"]),
        (f"ckpt={RUN} show=x1", ["show must be x_t or x0 or both or condition, got 'x1'"]),
        (f"ckpt={RUN} fps=0", ["fps must be above 0", "got 0"]),
        (f"ckpt={RUN} frames=0", ["frames must be at least 1"]),
        (f"ckpt={RUN} eta=1", ["eta=1 belongs to the ddim sampler: add sampler=ddim"]),
        (f"ckpt={RUN} sampler=ddim eta=3", ["eta must lie in [0, 1], got 3"]),
        (f"ckpt={RUN} sampler=langevin steps=9", ["stays at the lowest noise level", "on a uniform grid"]),
        (f"ckpt={RUN} sampler=ddmi", ["sampler=ddmi does not exist", "ddim"]),
        (f"ckpt={RUN} sampler.eta=1", ["sampler.eta does not belong"]),
        (f"ckpt={RUN} stepz=1", ["no setting stepz (did you mean steps?)"]),
        (f"ckpt={RUN} devices=[0,1]", ["devices=[0, 1] names GPUs"]),
        (f"ckpt={RUN} devices=0", ["devices must be at least 1"]),
        (f"ckpt={RUN} out=a.jpg", ["out=a.jpg ends in .jpg", ".gif", ".npz"]),
        (f"ckpt={RUN} out=lightning_logs/.gitkeep/a.png", [".gitkeep is a file, not a folder"]),
        (f"ckpt={CLOUD} out=points", ["out=points is a folder of images", "2-D points"]),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_written(
    folder: Path, arguments: str, said: list[str]
) -> None:
    (folder / "lightning_logs/.gitkeep").touch()
    before = sorted(folder.rglob("*"))
    assert_refused(call(sample, folder, *arguments.split()), *said)
    assert sorted(folder.rglob("*")) == before


def torn(file: Path, path: Path) -> None:
    path.write_bytes(file.read_bytes()[:5000])


def foreign(file: Path, path: Path) -> None:
    torch.save({"model": torch.zeros(3)}, path)


def other_shape(file: Path, path: Path) -> None:
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["config"]["network"]["widths"] = [8, 24]
    torch.save(checkpoint, path)


def crafted(file: Path, path: Path) -> None:
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["config"]["network"] = {"_target_": "os.system", "command": "touch owned"}
    torch.save(checkpoint, path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (torn, "torn"),
        (foreign, "another program"),
        (other_shape, "and its network has float32 of shape"),
        (crafted, "not a class of this project"),
    ],
)
def test_a_bad_checkpoint_is_named_with_what_is_wrong(folder: Path, tmp_path: Path, make: Any, said: str) -> None:
    make(folder / RUN / "checkpoints/last.ckpt", tmp_path / "bad.ckpt")
    assert_refused(call(sample, tmp_path, "ckpt=bad.ckpt"), "bad.ckpt", said)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.ckpt"]


def test_samples_that_are_not_finite_leave_no_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pipeline, "frames", lambda *_, **__: torch.full((1, 1, 1, 8, 8), torch.nan))
    outcome = call(sample, folder, f"ckpt={RUN}", "n=1", "steps=3", "out=diverged")
    assert_refused(outcome, "1 of 1 samples are not finite")
    assert not (folder / "diverged").exists()


def test_the_record_of_a_folder_says_how_its_images_were_made(folder: Path) -> None:
    draw(folder, f"ckpt={RUN}", "steps=3", "n=1", "seed=5", "sampler=ddim", "eta=0.5", "out=recorded")
    record = json.loads((folder / "recorded/settings.json").read_text())
    assert (record["seed"], record["step"], record["sampler"], record["eta"]) == (5, 4, "DDIMSampler", 0.5)
    assert record["times"] == [1.0, 0.66, 0.34, 0.0]


@pytest.mark.parametrize(
    ("typed", "out", "refused"),
    [
        (("fps", "hold", "frames", "rows"), "a.gif", None),
        (("rows",), "a.png", None),
        (("fps",), "a.png", "fps= does nothing for out=a.png: leave it out, or write .gif or .webp"),
        (("frames",), "a.png", "frames= does nothing for out=a.png"),
        (("hold",), "a.npz", "hold= does nothing for out=a.npz"),
        (("rows",), "a.npz", "rows= does nothing for out=a.npz: leave it out, or write .gif, .webp or .png"),
        (("rows",), "folder", "rows= does nothing for out=folder"),
        (("show",), "a.gif", None),
        (("show",), "a.png", "show= does nothing for out=a.png"),
        (("show",), "a.npz", "show= does nothing for out=a.npz"),
    ],
)
def test_settings_of_another_kind_of_file_are_refused(typed: tuple[str, ...], out: str, refused: str | None) -> None:
    defaults = yaml.safe_load((cli.CONFIGS / "sample.yaml").read_text())
    values = {field.name: defaults[field.name] for field in dataclasses.fields(Options)} | {"ckpt": "last"}
    options = Options(**values | ({"show": "x0"} if "show" in typed else {}))
    if refused is None:
        options.refuse_idle(typed, Path(out), (1, 8, 8))
        return
    with pytest.raises(ValueError, match=refused):
        options.refuse_idle(typed, Path(out), (1, 8, 8))


def test_an_adaptive_sampler_is_not_said_to_take_the_grids_steps(folder: Path) -> None:
    adaptive = ("sampler=adaptive", "sampler.rtol=0.1", "sampler.atol=0.1", "grid=log_snr", "steps=3")
    outcome = call(sample, folder, f"ckpt={RUN}", *adaptive, "n=1", "out=adaptive.png")
    assert outcome.code == 0
    assert any(line.endswith("AdaptiveSampler, adaptive steps") for line in outcome.err.splitlines())
