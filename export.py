"""Takes a trained model elsewhere: the suffix of out= says where.

Examples:
    python export.py ckpt=last out=page.html             one file that draws from the model in any browser
    python export.py ckpt=last out=model.onnx            the denoiser, for programs that read ONNX
    python export.py ckpt=last out=model.safetensors     one set of weights and the configuration, without pickle
    python export.py ckpt=last out=folder                for DDPMPipeline.from_pretrained("folder") of diffusers
    python export.py ckpt=last out=folder push=user/name    the same with a model card, uploaded to the Hub
"""

import sys
from typing import TYPE_CHECKING, Any

import cli
from diffusion.runs.places import place
from diffusion.settings.exporting import Options
from diffusion.terminal import streams

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(config: "DictConfig") -> None:
    """Writes what was asked for."""
    from omegaconf import OmegaConf

    from diffusion.build import construct

    plain: Any = OmegaConf.to_container(config, resolve=True)
    options: Options = construct(Options, plain)
    options.refuse_idle(cli.typed())
    place(str(options.ckpt))

    from diffusion.exports import export  # only now what imports torch, which takes seconds

    written = export(options)
    for file in (file for file in written if file.is_file()):
        print(f"{file} has {file.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
    streams.result(written[0])


def entry() -> None:
    """The command line."""
    cli.run(main, "export", __doc__ or "", "export on a machine with more memory")


if __name__ == "__main__":
    entry()
