"""A model as one HTML file that draws from it in a browser: no server, no install, nothing sent anywhere.

The page's own sources are in `web/`: modules of JavaScript without a framework, which are joined here, and tested under
Node and in a browser against Python. Networks run in onnxruntime-web (see `diffusion.exchange.runtime`).
"""

import copy
import html
import json
import re
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.build import ConfigError
from diffusion.denoisers import ClippedDenoiser, Condition, Conditioned, Denoiser
from diffusion.exchange import onnx
from diffusion.exchange.runtime import Runtime, packed
from diffusion.media.atomic import atomic
from diffusion.media.pictures import axis_limit, quantised
from diffusion.models import Codec, decoded
from diffusion.noise import SAMPLING, Noise
from diffusion.samplers import DDIMSampler, DDPMSampler, DPMSolverPP2MSampler, Grid, HeunSampler, Sampler, prior

WEB = Path(__file__).parent / "web"
# In the order in which they need each other.
WORKER = ("noise.js", "samplers.js", "denoisers.js", "worker.js")
PAGE = ("gif.js", "pictures.js", "painter.js", "app.js")
SAMPLERS: dict[str, Sampler] = {
    "ddim": DDIMSampler(),
    "dpmpp_2m": DPMSolverPP2MSampler(),
    "heun": HeunSampler(),
    "ddpm": DDPMSampler(),
}
STEPS = (3, 5, 8, 10, 15, 20, 30, 50, 100, 200, 500, 1000)
MOST_STEPS = 1000
LEVELS = 2  # of 255: by how much images may differ that weights in half precision draw
_PATIENCE = 100  # steps that a visitor is made to wait for at first
_PROBED = 64  # numbers of one answer that a page compares with its own


@dataclass(frozen=True)
class Drawable:
    """What a page draws with.

    Args:
        denoiser: without guidance and clipping.
        codec: turns latents into images; None for a model of data.
        shape: of one sample.
        clip: whether the predicted data are clamped to [-1, 1].
        guidable: whether the model was trained with dropped labels.
        sampler: its own.
        grid: its own.
        steps: its own.
    """

    denoiser: Denoiser
    codec: Codec | None
    shape: tuple[int, ...]
    clip: bool
    guidable: bool
    sampler: Sampler
    grid: Grid
    steps: int

    def check(self) -> None:
        """Raises ConfigError, one line, if a page cannot draw from such a model."""
        onnx.check_exportable(self.denoiser)
        if self.denoiser.condition_channels:
            raise ConfigError("this model is conditioned on images, which a page cannot make: export it as .onnx")
        if self.denoiser.embedding:
            raise ConfigError("this model is conditioned on vectors, which a page cannot make: export it as .onnx")
        if self.shape != (2,) and (len(self.shape) != 3 or self.shape[0] not in (1, 3)):
            raise ConfigError(f"a page shows images with 1 or 3 channels and points in the plane, not {self.shape}")
        if not self.offered:
            raise ConfigError(f"no sampler of a page ({', '.join(SAMPLERS)}) can go along this model's grid")

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Of what the denoiser sees."""
        return self.shape if self.codec is None else tuple(self.codec.latent_shape)

    @cached_property
    def grids(self) -> dict[int, Tensor]:
        """The times of each number of steps that the model's grid has."""
        found = {}
        for steps in sorted({*STEPS, min(self.steps, MOST_STEPS)}):
            try:
                found[steps] = self.grid(self.denoiser.schedule, steps)
            except ValueError:
                continue
        return found

    @cached_property
    def offered(self) -> dict[str, list[int]]:
        """The samplers that can draw from the model, each with its numbers of steps."""
        # The page draws steps of fixed variance alone.
        names = [name for name in SAMPLERS if name != "ddpm" or self.denoiser.variance != "learned"]
        found = {name: [steps for steps, times in self.grids.items() if self._goes(name, times)] for name in names}
        return {name: steps for name, steps in found.items() if steps}

    def _goes(self, name: str, times: Tensor) -> bool:
        try:
            SAMPLERS[name].check(self.denoiser, times)
        except ValueError:
            return False
        return True

    @cached_property
    def first(self) -> tuple[str, int]:
        """Sampler and steps that a page begins with: the model's own if it has them, and they are few."""
        own = [name for name, sampler in SAMPLERS.items() if type(sampler) is type(self.sampler)]
        stochastic = isinstance(self.sampler, DDIMSampler) and self.sampler.stochastic
        if own and not stochastic and own[0] in self.offered and self.steps <= _PATIENCE:
            return own[0], self.steps
        name = next(name for name in ("dpmpp_2m", "ddim", "heun", "ddpm") if name in self.offered)
        return name, min(self.offered[name], key=lambda steps: abs(steps - 20))

    def condition(self, n: int) -> Condition:
        """Each class in turn."""
        classes = self.denoiser.num_classes
        return {"label": torch.arange(n) % classes} if classes else {}

    @torch.no_grad()
    def states(self, n: int) -> Tensor:
        """What the page draws first, (n, *state_shape)."""
        name, steps = self.first
        denoiser = ClippedDenoiser(self.denoiser) if self.clip else self.denoiser
        noise = Noise(0, torch.arange(n), SAMPLING)
        x = prior(denoiser.schedule, noise, self.state_shape)
        return SAMPLERS[name].sample(Conditioned(denoiser, self.condition(n)), x, self.grids[steps], noise)

    def samples(self, n: int) -> Tensor:
        """The same as data, (n, *shape)."""
        return decoded(self.codec, self.denoiser.schedule, self.states(n), torch.zeros((), dtype=torch.float64))

    def rounded(self) -> "Drawable":
        """A copy with weights in half precision."""
        denoiser, codec = copy.deepcopy((self.denoiser, self.codec))
        onnx.rounded(denoiser)
        if codec is not None:
            onnx.rounded(codec)
        return replace(self, denoiser=denoiser, codec=codec)

    def described(self) -> dict[str, Any]:
        """What the page's scripts need to know."""
        name, steps = self.first
        middle = self.grids[steps][steps // 2]
        alpha, sigma = (value.item() for value in self.denoiser.schedule(middle))
        x = torch.tensor(sigma).float() * Noise(0, torch.arange(1), SAMPLING).normal(self.state_shape)
        with torch.no_grad():
            x0 = self.denoiser(x, middle[None], self.condition(1)).flatten()[:_PROBED]
        points = len(self.shape) == 1
        return {
            "shape": list(self.shape),
            "state_shape": list(self.state_shape),
            "num_classes": self.denoiser.num_classes,
            "guidable": self.guidable and self.denoiser.num_classes > 0,
            # The decoder of latents would not keep the known pixels.
            "paintable": not points and self.codec is None,
            "clip": self.clip,
            "limit": axis_limit(self.samples(500)) if points else None,
            "sampler": name,
            "steps": steps,
            "samplers": {
                name: {"formula": f"ddpm_{self.denoiser.variance}" if name == "ddpm" else name, "steps": counts}
                for name, counts in self.offered.items()
            },
            "grids": {count: self._rows(times) for count, times in self.grids.items()},
            "probe": {
                "time": {"t": middle.item(), "alpha": alpha, "sigma": sigma},
                "label": 0 if self.denoiser.num_classes else None,
                "x0": x0.tolist(),
            },
        }

    def _rows(self, times: Tensor) -> list[list[float | None]]:
        """t, alpha, sigma and log-SNR of each time; JSON has no infinity, which becomes null."""
        schedule = self.denoiser.schedule
        columns = torch.stack((times, *schedule(times), schedule.log_snr(times)), dim=1).tolist()
        return [[value if abs(value) < float("inf") else None for value in row] for row in columns]


def export_page(
    out: Path, drawing: Drawable, facts: Mapping[str, str], half: bool | None, runtime: Runtime
) -> Iterable[str]:
    """Writes the page.

    Args:
        out: the file.
        drawing: what it draws with.
        facts: about the model, which the page shows: "dataset", "model", "data" and "score".
        half: whether weights are stored in half precision; None if images then differ by at most `LEVELS` levels.
        runtime: what runs the network.

    Returns:
        What was decided, in lines.

    Raises:
        ConfigError: the page cannot draw from such a model, or would draw something else.
    """
    onnx.check_packages()
    drawing.check()
    drawing, precision = _stored(drawing, half)
    graphs = {"denoiser": onnx.denoiser_graph(drawing.denoiser, drawing.state_shape, data=drawing.states(5))}
    if drawing.codec is not None:
        graphs["decoder"] = onnx.decoder_graph(drawing.codec)
    blobs = {name: onnx.halved(graph) for name, graph in graphs.items()} | (runtime.files or {})
    with atomic(out) as file:
        file.write(page(drawing, facts, blobs, runtime).encode())
    return [precision, runtime.described()]


def _stored(drawing: Drawable, half: bool | None) -> tuple[Drawable, str]:
    """What the page holds, and how precise it is, in one line."""
    points = len(drawing.shape) == 1
    if half is False or (points and half is None):
        return drawing, "weights are in full precision"
    rounded = drawing.rounded()
    if points:
        return rounded, "weights are in half precision"
    levels = int((quantised(rounded.samples(16)).int() - quantised(drawing.samples(16)).int()).abs().max())
    found = f"16 images differ by at most {levels} of 255 levels"
    if levels <= LEVELS:
        return rounded, f"weights are in half precision: {found}"
    if half:
        raise ConfigError(f"half=true: with weights in half precision {found}, more than {LEVELS}: use half=false")
    return drawing, f"weights are in full precision: in half precision {found}"


def page(drawing: Drawable, facts: Mapping[str, str], blobs: Mapping[str, bytes], runtime: Runtime) -> str:
    """The page's text."""
    text = string.Template((WEB / "page.html").read_text(encoding="utf-8"))
    title = f"{facts['dataset']}: drawn in your browser"
    shown = [facts[name] for name in ("model", "data", "score")]
    return text.substitute(
        title=html.escape(title),
        facts=" ".join(html.escape(f"{fact}.") for fact in shown),
        style=(WEB / "page.css").read_text(encoding="utf-8"),
        model=_json(drawing.described() | {"dataset": facts["dataset"]}),
        sources=_json(runtime.sources()),
        blobs="\n".join(
            f'<script type="text/plain" id="blob-{name}">{packed(content)}</script>' for name, content in blobs.items()
        ),
        worker=joined(WORKER),
        page=joined(PAGE),
    )


def _json(value: object) -> str:
    """JSON that cannot end the script element around it."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def joined(names: Iterable[str]) -> str:
    """Modules as one script: a page that is a file can import no other, so imports and exports among them go."""
    sources = [(WEB / name).read_text(encoding="utf-8") for name in names]
    return "\n".join(
        re.sub(r'^import .* from "\./.*";\n|^export ', "", source, flags=re.MULTILINE) for source in sources
    )
