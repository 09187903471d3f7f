"""A model card: what a model is, how it was made and how good it is, as the README.md of its folder on the Hub."""

import json
from collections.abc import Mapping
from typing import Any

_HEAD = """---
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags:
- diffusion
- {tag}
---

# {name}

A diffusion model of {dataset} {shape}, {origin}.

```python
{code}
```
"""
_PIPELINE = """from diffusers import DDPMPipeline

pipeline = DDPMPipeline.from_pretrained("{name}")
images = pipeline(batch_size=4, num_inference_steps=pipeline.scheduler.config.num_train_timesteps).images"""
# Pipelines pass on no classes.
_BY_CLASS = """import torch
from diffusers import DDPMScheduler, UNet2DModel

unet = UNet2DModel.from_pretrained("{name}", subfolder="unet")
scheduler = DDPMScheduler.from_pretrained("{name}", subfolder="scheduler")
scheduler.set_timesteps(scheduler.config.num_train_timesteps)
labels = torch.arange({classes})
images = torch.randn({classes}, {sizes})
for t in scheduler.timesteps:
    with torch.no_grad():
        answer = unet(images, t, class_labels=labels).sample
    images = scheduler.step(answer, t, images).prev_sample  # in the end in [-1, 1]"""
_PARTS = ("network", "schedule", "denoiser", "objective", "optimizer", "ema", "learning_rate")
_VALUES = ("batch_size", "lr", "seed", "condition_dropout")


def card(name: str, config: Mapping[str, Any], origin: str, scores: Mapping[str, Any], picture: str | None) -> str:
    """Markdown.

    Args:
        name: of the model on the Hub, user/model.
        config: of its run.
        origin: of its weights, as the end of a sentence.
        scores: name -> samples, real -> value, low, high, as in metrics.json; empty if nobody scored it.
        picture: file in the folder that shows samples, if there is one.
    """
    dataset = config["dataset"]
    shape = "x".join(map(str, dataset["shape"]))
    classes = config["network"].get("num_classes") or config["network"].get("num_class_embeds")
    code = (_BY_CLASS if classes else _PIPELINE).format(
        name=name, classes=classes, sizes=", ".join(map(str, dataset["shape"]))
    )
    # YAML would read a bare 2024, or on, as no text.
    tag = json.dumps(str(dataset["name"]))
    text = _HEAD.format(name=name, dataset=dataset["name"], tag=tag, shape=shape, origin=origin, code=code)
    if picture is not None:
        text += f"\n![samples]({picture})\n"
    rows = [(part, f"`{part_in_words(config[part])}`") for part in _PARTS if config.get(part) is not None]
    rows += [(value, f"{config[value]}") for value in _VALUES if value in config]
    text += "\n## How it was made\n\n| part | value |\n|---|---|\n"
    text += "".join(f"| {part} | {value} |\n" for part, value in rows)
    if scores:
        text += "\n## Scores\n\n| score | samples | real data |\n|---|---|---|\n"
        text += "".join(
            f"| {score} | {figure(row, 'samples')} | {figure(row, 'real')} |\n" for score, row in scores.items()
        )
    return text


def part_in_words(part: Mapping[str, Any]) -> str:
    """A part of a configuration as one call: `LinearSchedule(timesteps=1000, ...)`."""
    values = (
        f"{name}={part_in_words(value) if isinstance(value, Mapping) and '_target_' in value else value}"
        for name, value in part.items()
        if name != "_target_"
    )
    return f"{str(part['_target_']).rpartition('.')[2]}({', '.join(values)})"


def figure(row: Mapping[str, Any], column: str) -> str:
    """A score of metrics.json with its interval: `1.25 [1, 1.5]`; `-` where there is none.

    Args:
        row: samples, real, noisy -> value, low, high.
        column: samples, real or noisy.
    """
    found = row.get(column)
    if not isinstance(found, Mapping) or not isinstance(found.get("value"), int | float):
        return "-"
    low, high = found.get("low"), found.get("high")
    interval = f" [{low:.4g}, {high:.4g}]" if isinstance(low, int | float) and isinstance(high, int | float) else ""
    return f"{found['value']:.4g}{interval}"
