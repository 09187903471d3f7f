"""Where a page has onnxruntime-web from: embedded from npm's package, or an address that it fetches from."""

import base64
import gzip
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from diffusion.build import ConfigError
from diffusion.media.atomic import check_regular

# The bundle for WebGPU and WebAssembly, and the binary that it loads.
FILES = {"script": "ort.webgpu.bundle.min.mjs", "wasm": "ort-wasm-simd-threaded.asyncify.wasm"}
VERSION = "1.30.0"
# Of this version's files: a page refuses others from the address.
INTEGRITY = {
    "script": "sha384-1ntMeyj+z5diX6vBR5h+zlJBPc4iNvhCxE6nlammh8daBYcLBZkzrwDkuJjhwI+f",
    "wasm": "sha384-EPVDLTxuO663dkZO/pcKJF6vOyyfq/5z9FY1oksN0UWFX2ABH4wDDZQHeNoUleWR",
}
_LARGEST = 100_000_000  # bytes of a file


@dataclass(frozen=True)
class Runtime:
    """What runs the model in a page.

    Args:
        version: of onnxruntime-web.
        files: "script" and "wasm" with their contents; None where the page fetches them.
    """

    version: str
    files: dict[str, bytes] | None = None

    def described(self) -> str:
        """Where the page has it from, in one line."""
        if self.files is not None:
            return f"onnxruntime-web {self.version} is embedded: the page needs no network"
        return (
            f"onnxruntime-web {self.version} is not embedded: the page fetches it from {_address('')}, checked by its "
            f"hash; npm install onnxruntime-web@{VERSION} in this folder, or runtime=<its folder>, embeds it"
        )

    def sources(self) -> dict[str, dict[str, str]]:
        """The addresses that the page fetches from."""
        if self.files is not None:
            return {}
        return {name: {"address": _address(file), "integrity": INTEGRITY[name]} for name, file in FILES.items()}


def _address(file: str) -> str:
    return f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{VERSION}/dist/{file}"


def find_runtime(named: str | None, here: Path = Path()) -> Runtime:
    """The runtime in the folder that was named, or in node_modules; else, and for `cdn`, that at an address.

    Raises:
        ConfigError: the named folder is no onnxruntime-web.
    """
    if named == "cdn":
        return Runtime(VERSION)
    installed = here / "node_modules" / "onnxruntime-web"
    if named is None and not installed.is_dir():
        return Runtime(VERSION)
    folder = installed if named is None else Path(named)
    if (folder / "node_modules" / "onnxruntime-web").is_dir():
        folder = folder / "node_modules" / "onnxruntime-web"
    try:
        version = json.loads(_read(folder / "package.json")).get("version")
        files = {name: _read(folder / "dist" / file) for name, file in FILES.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"runtime={folder} is no folder of npm's onnxruntime-web ({error}): npm install onnxruntime-web@{VERSION} "
            f"makes node_modules/onnxruntime-web, and runtime=cdn does without"
        ) from error
    return Runtime(str(version), files)


def _read(path: Path) -> bytes:
    check_regular(path)
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path.name} is larger than {_LARGEST // 10**6} MB")
    return path.read_bytes()


def packed(content: bytes) -> str:
    """Base64 of gzip, which browsers unpack; the same text each time."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def integrity(content: bytes) -> str:
    """The hash of a file as browsers check it (Subresource Integrity, W3C)."""
    return f"sha384-{base64.b64encode(hashlib.sha384(content).digest()).decode()}"
