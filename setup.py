"""The distribution: one package, `diffusion`, that also holds what lies beside it in the checkout.

    data/stream.py         diffusion.data.stream
    train.py, cli.py       diffusion.train, diffusion.cli
    configs/               diffusion/configs/
    python train.py        lightning-diffusion train

Nothing else is installed, so that no `data` or `train` of a user is hidden. The texts that are copied get the names on
the right. The targets of configurations keep those on the left, which checkpoints hold and `diffusion.build` resolves
in both places.
"""

import ast
import re
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py") if path.name != "setup.py")
TOP = ("data", *SCRIPTS)
TEXTS = (".html", ".py", ".yaml")
_TOP = "|".join(TOP)
RENAMED = (
    (re.compile(rf"^( *)from ({_TOP})(?=\.\w|\ import )", re.MULTILINE), r"\1from diffusion.\2"),
    (re.compile(rf"^( *)import ({_TOP})$", re.MULTILINE), r"\1from diffusion import \2"),
    (re.compile(r"python -m data\.(\w+)"), r"lightning-diffusion \1"),
    (re.compile(rf"(?<![\w/])(?:python )?({'|'.join(SCRIPTS)})\.py\b"), r"lightning-diffusion \1"),
)


def installed(text: str) -> str:
    """A text of the checkout with the names of the distribution."""
    for names, name in RENAMED:
        text = names.sub(name, text)
    return text


def check_imports(code: str, path: str) -> None:
    """Raises ValueError if code imports by a name that only the checkout has."""
    for node in ast.walk(ast.parse(code)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []
        if left := [name for name in names if name.split(".")[0] in TOP]:
            raise ValueError(f"{path} imports {', '.join(left)}: write `from x import y` or `import x`, one on a line")


class Build(build_py):
    """Copies the scripts into `diffusion` too, and everything with the names of the distribution."""

    def run(self) -> None:
        """Refuses an editable installation, which copies nothing."""
        if self.editable_mode:
            raise SystemExit("error: the checkout runs without being installed: python train.py; or pip install .")
        super().run()

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """(package, module, file) of what a package holds."""
        scripts = [(package, name, f"{name}.py") for name in SCRIPTS if package == "diffusion"]
        return [*super().find_package_modules(package, package_dir), *scripts]

    def copy_file(self, infile: Any, outfile: Any, *args: Any, **options: Any) -> tuple[str, bool]:
        """As of any file; a text is renamed, and the imports of a module checked."""
        copied = super().copy_file(infile, outfile, *args, **options)
        source = Path(infile)
        if source.suffix in TEXTS:
            text = installed(source.read_text(encoding="utf-8"))
            if source.suffix == ".py":
                check_imports(text, str(source))
            Path(outfile).write_text(text, encoding="utf-8")
        return copied


if __name__ == "__main__":
    setup(cmdclass={"build_py": Build})
