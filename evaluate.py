"""How good a model's samples are, or how likely data are under it.

Examples:
    python evaluate.py ckpt=last                         2,000 samples against test data: a table of scores
    python evaluate.py ckpt=last sampler=dpmpp_2m steps=10 devices=2
    python evaluate.py ckpt=[base,sr]                    the stages of a cascade
    python evaluate.py samples=x.npz dataset=fashion     samples of any program; or a folder of images
    python evaluate.py ckpt=last likelihood=vlb          the variational bound on test data, and where it comes from
    python evaluate.py ckpt=last likelihood=ode          the density of the probability-flow ODE
    python evaluate.py ckpt=3 split=val n=1000           run version_3, judged by validation data
"""

from typing import TYPE_CHECKING, Any

import cli
from diffusion.runs.places import place
from diffusion.settings import evaluation as settings

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(config: "DictConfig") -> None:
    """Does what was asked for, prints it and writes it down."""
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(config, resolve=True)
    typed = cli.typed()
    options, dataset, method = settings.read(plain, typed)
    for spec in options.checkpoints():
        place(spec)

    # Only now what imports torch, which takes seconds.
    from diffusion.evaluation import commands
    from diffusion.sampling.ranks import led

    with led():
        if options.train_classifier:
            commands.train_classifier(options, dataset, typed)
        elif options.likelihood is None:
            commands.score(options, dataset, method, typed)
        else:
            commands.likelihood(options, dataset, typed)


def entry() -> None:
    """The command line."""
    cli.run(main, "evaluate", __doc__ or "", "lower batch_size= (samples at a time) or n=")


if __name__ == "__main__":
    entry()
