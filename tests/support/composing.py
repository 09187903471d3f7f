"""Hydra reads each configuration file once a process, and not again for every command of the tests."""

import copy

from hydra._internal.config_repository import ConfigRepository
from hydra.plugins.config_source import ConfigResult

_read = ConfigRepository.load_config
_results: dict[tuple[str, ...], ConfigResult | None] = {}


def _load_config(repository: ConfigRepository, config_path: str) -> ConfigResult | None:
    key = (*(source.path for source in repository.sources), config_path)
    if key not in _results:
        _results[key] = _read(repository, config_path)
    return copy.deepcopy(_results[key])


def read_once() -> None:
    """Files of `configs/` do not change while tests run; what is composed of them is a copy each time."""
    ConfigRepository.load_config = _load_config  # type: ignore[assignment, method-assign]
