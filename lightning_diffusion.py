"""The command `lightning-diffusion` of the installed package: `lightning-diffusion train dataset=cifar`."""

import ast
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

# What each starts, by its name in the checkout.
COMMANDS = {
    "train": "train",
    "sample": "sample",
    "evaluate": "evaluate",
    "export": "export",
    "compare": "compare",
    "prepare": "data.prepare",
    "samplers": "diffusion.samplers.__main__",
}


def module(command: str) -> str:
    """The full name of what a command starts; in the package of pip, `train` is `diffusion.train`."""
    name = COMMANDS[command]
    return f"{__package__}.{name}" if __package__ and not name.startswith(f"{__package__}.") else name


def summary(command: str) -> str:
    """The first line of a command's docstring, read without running it."""
    spec = find_spec(module(command))
    assert spec is not None and spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").splitlines()[0]


def help_page() -> str:
    """All commands, a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {command:<{width}}  {summary(command)}" for command in COMMANDS]
    return "\n".join(["lightning-diffusion COMMAND [name=value ...]; COMMAND --help lists its settings", "", *lines])


def main() -> None:
    """Runs the script that the first argument names, as `python -m` does, with the arguments after it."""
    command, arguments = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    if command in ("--help", "-h"):
        print(help_page())
    elif command in COMMANDS:
        sys.argv[1:] = arguments
        # As __main__, since the processes of several devices are started by the name of the main module.
        runpy.run_module(module(command), run_name="__main__", alter_sys=True)
    else:
        print(f"error: there is no command {command!r}; the commands are {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
