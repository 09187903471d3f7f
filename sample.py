"""Samples from a trained model.

Examples:
    python sample.py ckpt=last                           a GIF of 3x3, from noise to image, in the newest run's folder
    python sample.py ckpt=last n=64 out=grid.png         one grid
    python sample.py ckpt=cifar.ckpt n=50000 out=cifar   a folder of PNGs; the same command goes on where it stopped
    python sample.py ckpt=last sampler=ddim steps=50     another sampler, fewer steps
    python sample.py ckpt=3 n=1000 out=points.npz        run version_3, arrays
    python sample.py ckpt=last n=8 show=both frames=6 out=both.png   the forward process above the reverse one
    python sample.py ckpt=last label=3 guidance=2        a class, drawn more typically; label=all is one row a class
    python sample.py ckpt=last guide=3 guidance=1.5      away from the mistakes of a worse model, such as run 3
    python sample.py ckpt=last condition=small.png       enlarged, by a model of dataset.condition=lowres
    python sample.py ckpt=[base,sr] conditioning_noise=0.1   a cascade: small images first, then enlarged
    python sample.py ckpt=last interpolate=[1,2] frames=24 sampler=ddim   from the samples of seed 1 to those of seed 2
    python sample.py ckpt=last init=a.png mask=m.png     the white part of the mask anew; resample=10 fits it in better
    python sample.py ckpt=last measure=blur blur_width=2 noise=0.05 init=blurred.png   what a blurred image shows
"""

import sys
from typing import TYPE_CHECKING, Any

import cli
from diffusion.runs.places import place
from diffusion.settings import sampling as settings
from diffusion.terminal import streams

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(config: "DictConfig") -> None:
    """Draws what was asked for and writes it."""
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(config, resolve=True)
    options, steering, method = settings.read(plain, cli.typed())
    for spec in (*options.checkpoints(), *steering.checkpoints()):
        place(spec)
    steering.check_files()

    # Only now what imports torch, which takes seconds.
    from diffusion.sampling.outputs import kind_of
    from diffusion.sampling.ranks import led

    with led():
        drawing = kind_of(options, steering)(options, steering, method, cli.typed())
        replaces = drawing.out.is_file()
        drawing.write()
    # On stderr, so that what a shell takes from stdout is the path alone.
    print(drawing.summary(), file=sys.stderr)
    if replaces:
        print(f"replaced the {drawing.out} that was there; out=... gives another name", file=sys.stderr)
    print(drawing.following(), file=sys.stderr)
    streams.result(drawing.out)


def entry() -> None:
    """The command line."""
    cli.run(main, "sample", __doc__ or "", "lower batch_size= (samples at a time), n= or frames=")


if __name__ == "__main__":
    entry()
