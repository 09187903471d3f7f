"""Web pages: their JavaScript computes what Python computes, and what would not draw the model's images is refused."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.scripts import assert_refused, call

import export
from diffusion.build import ConfigError
from diffusion.denoisers import GaussianMixtureDenoiser
from diffusion.exchange import onnx, page, runtime
from diffusion.media import atomic
from diffusion.noise import SAMPLING, Noise, philox
from diffusion.samplers import KarrasGrid, Sampler, TrailingGrid, prior
from diffusion.sampling.pipeline import visible
from diffusion.schedules import LinearSchedule, Schedule, VarianceExplodingSchedule

FIXTURES = Path(__file__).parents[1] / "fixtures"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="Node is not installed")


def node(script: str, folder: Path) -> Any:
    """What a module that imports the page's modules from `web` prints, as JSON."""
    assert NODE is not None
    file = folder / "script.mjs"
    for source in page.WEB.glob("*.js"):  # as modules, whatever package.json lies above
        text = source.read_text(encoding="utf-8").replace('.js";', '.mjs";')
        (folder / f"{source.stem}.mjs").write_text(text, encoding="utf-8")
    file.write_text(script, encoding="utf-8")
    done = subprocess.run([NODE, str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_node
def test_philox_in_javascript_gives_the_same_words(tmp_path: Path) -> None:
    counter, key = [0, 0xFFFFFFFF, 0x243F6A88, 0x85A308D3], (0xA4093822, 0x299F31D0)
    found = node(
        f'import {{ philox }} from "./noise.mjs"; console.log(JSON.stringify(philox({counter}, {list(key)})));',
        tmp_path,
    )
    assert found == [word.item() for word in philox([torch.tensor(c) for c in counter], key)]


@needs_node
@pytest.mark.parametrize(("seed", "step", "draw"), [(0, 0, 0), (2**53 - 1, 7, 0), (2**63 - 1, 1, 2)])
def test_noise_in_javascript_is_pythons_to_the_last_bits(seed: int, step: int, draw: int, tmp_path: Path) -> None:
    script = f"""import {{ normal }} from "./noise.mjs";
    console.log(JSON.stringify([0, 5].map((k) => [...normal({seed}n, k, 1023, {step}, {draw})])));"""
    found = torch.tensor(node(script, tmp_path))
    expected = Noise(seed, torch.tensor([0, 5]), SAMPLING).normal((1023,), step, draw)
    assert (found - expected).abs().max() < 1e-6
    assert (found == expected).float().mean() > 0.5


EXACT: dict[str, tuple[Schedule, Callable[[Schedule], torch.Tensor]]] = {
    "linear, trailing": (LinearSchedule(), lambda schedule: TrailingGrid()(schedule, 12)),
    "exploding, karras": (VarianceExplodingSchedule(), lambda schedule: KarrasGrid()(schedule, 12)),
    "zero terminal": (LinearSchedule(zero_terminal_snr=True), lambda schedule: TrailingGrid()(schedule, 12)),
    # Steps of very different lengths, which dpmpp_2m and heun take in another way.
    "linear, uneven": (LinearSchedule(), lambda _: torch.tensor([1, 0.99, 0.5, 0.48, 0.1, 0.002, 0]).double()),
}


PAIRS = [(name, grid) for name in page.SAMPLERS for grid in EXACT if (name, grid) != ("heun", "zero terminal")]


@needs_node
@pytest.mark.parametrize(("name", "grid"), PAIRS)
def test_samplers_in_javascript_go_where_pythons_go(name: str, grid: str, tmp_path: Path) -> None:
    """With the exact denoiser of N(m, v I), `D = m + alpha v (x - alpha m) / (alpha^2 v + sigma^2)`."""
    schedule, grid_of = EXACT[grid]
    times = grid_of(schedule)
    denoiser = GaussianMixtureDenoiser(schedule, torch.full((1, 3), 0.4), 0.3 * torch.eye(3)[None])
    noise = Noise(3, torch.arange(4), SAMPLING)
    sampler: Sampler = page.SAMPLERS[name]
    states = list(sampler(denoiser, prior(schedule, noise, (3,)), times, noise))
    rows = (
        torch.stack((times, *schedule(times), schedule.log_snr(times)), 1)
        .nan_to_num(posinf=1e300, neginf=-1e300)
        .tolist()
    )
    found = node(
        f"""import {{ normal }} from "./noise.mjs"; import {{ sample }} from "./samplers.mjs";
        const times = {rows}.map(([t, alpha, sigma, logSNR]) => ({{ t, alpha, sigma, logSNR }}));
        const noise = (step) => Float32Array.from([0, 1, 2, 3].flatMap((k) => [...normal(3n, k, 3, step)]));
        const denoise = async (x, {{ alpha, sigma }}) =>
          x.map((v) => 0.4 + (alpha * 0.3 * (v - alpha * 0.4)) / (alpha ** 2 * 0.3 + sigma ** 2));
        const states = [];
        const x = noise(0).map((v) => v * Math.fround(times[0].sigma));
        for await (const s of sample("{name if name != "ddpm" else "ddpm_beta"}", denoise, x, times, noise))
          states.push([[...s.x], [...s.x0]]);
        console.log(JSON.stringify(states));""",
        tmp_path,
    )
    expected = torch.stack([torch.stack((state.x_t, state.x0)).flatten(1) for state in states])
    difference = (torch.tensor(found) - expected).abs() / expected.abs().clamp(min=1)
    assert difference.max() < 2e-5


@needs_node
def test_guidance_masks_and_clipping_in_javascript_follow_their_formulas(tmp_path: Path) -> None:
    found = node(
        """import { clipped, guided, inpainted } from "./denoisers.mjs";
        const ask = async (x, time, labels) => x.map((v, i) => v + labels[Math.floor((i * labels.length) / x.length)]);
        const x = Float32Array.of(0, 0.5, 0.25, 1);
        const guide = await guided(ask, [2, 3], 1.5)(x, {});
        const same = await guided(ask, [2, 3], 1)(x, {});
        const masked = await inpainted(async (x) => x, Float32Array.of(-1, 1), [1, 0])(x, {});
        const clip = await clipped(async (x) => x.map((v) => 4 * v - 2))(x, {});
        console.log(JSON.stringify([guide, same, masked, clip].map((v) => [...v])));""",
        tmp_path,
    )
    # D_none + w (D_label - D_none) with D_none = x - 1
    assert found == [[3.5, 4, 5.25, 6], [2, 2.5, 3.25, 4], [0, 1, 0.25, 1], [-1, 0, -1, 1]]


@needs_node
@pytest.mark.parametrize("schedule", [LinearSchedule(timesteps=50), VarianceExplodingSchedule(0.02, 50.0)])
@pytest.mark.parametrize("frames", [2, 9, 41])
def test_the_pages_animation_has_the_states_of_pythons(schedule: Schedule, frames: int, tmp_path: Path) -> None:
    times = TrailingGrid()(schedule, 30)
    log_snr = schedule.log_snr(times)
    rows = log_snr.nan_to_num(posinf=1e300, neginf=-1e300).tolist()
    found = node(
        f"""import {{ evenly }} from "./pictures.mjs"; console.log(JSON.stringify(evenly({rows}, {frames})));""",
        tmp_path,
    )
    assert found == visible(log_snr, frames)


@needs_node
@pytest.mark.parametrize("colours", [1, 200, 5000])
def test_gifs_are_read_back_by_others(colours: int, tmp_path: Path) -> None:
    script = f"""import {{ gif }} from "./gif.mjs"; import {{ writeFileSync }} from "node:fs";
    const frames = [0, 1].map((k) => {{
      const data = new Uint8ClampedArray(4 * 90 * 70);
      for (let i = 0; i < 90 * 70; i++) {{
        const colour = ((i * 7919 + k) % {colours}) * 3271;
        data.set([colour & 255, (colour >> 8) & 255, (colour >> 16) & 255, 255], 4 * i);
      }}
      return {{ width: 90, height: 70, data }};
    }});
    const bytes = new Uint8Array(await gif(frames).arrayBuffer());
    writeFileSync({json.dumps(str(tmp_path / "a.gif"))}, bytes);
    console.log(JSON.stringify(frames.map((frame) => [...frame.data])));"""
    expected = np.array(node(script, tmp_path)).reshape(2, 70, 90, 4)[..., :3]
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.n_frames == 2
        for k in range(2):
            picture.seek(k)
            difference = np.abs(np.asarray(picture.convert("RGB")).astype(int) - expected[k]).max()
            assert difference <= (0 if colours <= 256 else 26)  # half of the cube's steps


def test_joined_scripts_import_and_export_nothing() -> None:
    for names in (page.WORKER, page.PAGE):
        text = page.joined(names)
        assert not re.search(r"^(import|export)\b", text, re.MULTILINE)
        assert "</script" not in text
        declared = re.findall(r"^(?:async )?(?:function\*?|const|let|class) (\w+)", text, re.MULTILINE)
        assert len(declared) == len(set(declared)), "two modules declare the same name"


def fake_package(folder: Path) -> Path:
    """A folder with the files of onnxruntime-web's package."""
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text('{"version": "9.9.9"}')
    for file in runtime.FILES.values():
        (folder / "dist" / file).write_bytes(file.encode())
    return folder


def test_an_installed_runtime_is_embedded_and_else_an_address_with_its_hash_is_written(tmp_path: Path) -> None:
    without = runtime.find_runtime(None, tmp_path)
    assert without.files is None
    assert "not embedded" in without.described()
    for source in without.sources().values():
        assert f"onnxruntime-web@{runtime.VERSION}/dist/" in source["address"]
        assert source["integrity"].startswith("sha384-")
    fake_package(tmp_path / "node_modules" / "onnxruntime-web")
    found = runtime.find_runtime(None, tmp_path)
    assert (found.version, found.sources()) == ("9.9.9", {})
    assert found.files == {name: file.encode() for name, file in runtime.FILES.items()}
    assert runtime.find_runtime(str(tmp_path)) == found  # the folder in which npm install ran will do
    assert runtime.find_runtime("cdn", tmp_path).files is None


def test_a_folder_without_the_runtime_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder of npm's onnxruntime-web"):
        runtime.find_runtime(str(tmp_path))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports without torch's exporter, which takes seconds."""
    monkeypatch.setattr(onnx, "denoiser_graph", lambda *_, **__: b"graph")
    monkeypatch.setattr(onnx, "halved", lambda graph: graph)


@pytest.mark.usefixtures("quick")
def test_a_page_says_what_it_holds(tmp_path: Path) -> None:
    done = call(export, tmp_path, f"ckpt={FIXTURES / 'residual.ckpt'}", "out=page.html", "runtime=cdn")
    assert (done.code, done.out) == (0, "page.html\n"), done.err
    assert "half precision" in done.err
    assert "not embedded" in done.err
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    model = json.loads(re.search(r'id="model">(.*?)</script>', text)[1])  # type: ignore[index]
    assert (model["shape"], model["num_classes"], model["paintable"]) == ([1, 8, 8], 10, True)
    assert set(model["samplers"]) == {"ddim", "dpmpp_2m", "heun", "ddpm"}
    assert {len(rows) - 1 for rows in model["grids"].values()} == {int(steps) for steps in model["grids"]}
    assert "<h1>digits: drawn in your browser</h1>" in text
    assert "Data: digits, 1 x 8 x 8." in text
    assert "Score: none yet." in text


@pytest.mark.usefixtures("quick")
def test_a_full_disk_leaves_no_half_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "page.html").write_text("the page before")
    monkeypatch.setattr(atomic.os, "fsync", full)
    done = call(export, tmp_path, f"ckpt={FIXTURES / 'residual.ckpt'}", "out=page.html", "half=false", "runtime=cdn")
    assert done.code == 1
    assert "cannot write page.html: No space left on device" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text() == "the page before"


@pytest.mark.usefixtures("quick")
def test_half_precision_is_refused_where_images_would_change(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(page, "LEVELS", -1)
    command = (f"ckpt={FIXTURES / 'residual.ckpt'}", "out=page.html", "runtime=cdn")
    assert_refused(
        call(export, tmp_path, *command, "half=true"), "half=true: with weights in half precision", "use half=f"
    )
    done = call(export, tmp_path, *command)
    assert done.code == 0
    assert "weights are in full precision: in half precision 16 images differ" in done.err


@pytest.mark.parametrize(
    ("checkpoint", "said"),
    [
        ("enlarging", "conditioned on images, which a page cannot make: export it as .onnx"),
        ("swissroll", "weights of their own for each noising step"),
        ("classifier", "classifier"),
    ],
)
def test_models_that_a_page_cannot_draw_from_are_refused(checkpoint: str, said: str, tmp_path: Path) -> None:
    done = call(export, tmp_path, f"ckpt={FIXTURES / checkpoint}.ckpt", "out=page.html", "runtime=cdn")
    assert_refused(done, said)
    assert list(tmp_path.iterdir()) == []
