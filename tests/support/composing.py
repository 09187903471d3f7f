"""Hydra composes what the tests type as ever, but reads and merges the same files once a process.

Most tests are about one setting beside the same files of `configs/`, which do not change while they run. What is kept:
each file's content; the list of defaults for the groups that were chosen; what these are merged to; what the grammar
makes of a value. Files and what is merged are handed out as copies; lists and parse trees are shared, which Hydra only
reads. What is not found, and errors, are not kept.
"""

import copy
import functools
import pickle
from typing import Any

import omegaconf._utils
import omegaconf.base
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.plugins.config_source import ConfigResult

_read = ConfigRepository.load_config
_list = config_loader_impl.create_defaults_list
_merge = ConfigLoaderImpl._compose_config_from_defaults_list
_parse = omegaconf.base.parse

_files: dict[Any, ConfigResult] = {}
_lists: dict[Any, Any] = {}
_merged: dict[Any, bytes] = {}


def _places(repository: Any) -> tuple[str, ...]:
    return tuple(source.path for source in repository.get_sources())


def _load_config(repository: ConfigRepository, config_path: str) -> ConfigResult | None:
    key = (*_places(repository), config_path)
    if key not in _files:
        found = _read(repository, config_path)
        if found is None:
            return None
        _files[key] = found
    return copy.deepcopy(_files[key])


def _create_defaults_list(
    repo: Any, config_name: str | None, overrides_list: list[Any], prepend_hydra: bool, skip_missing: bool
) -> Any:
    """A list depends on the groups that are chosen alone; what else is typed is added to it, as Hydra sorts it."""
    groups, values = [], []
    for override in overrides_list:
        if not override.is_sweep_override():
            of_value = isinstance(override.value(), dict) or not repo.group_exists(override.key_or_group)
            (values if of_value else groups).append(override)
    chosen = tuple(override.input_line for override in groups)
    key = (_places(repo), config_name, prepend_hydra, skip_missing, chosen)
    if key not in _lists:
        _lists[key] = _list(repo, config_name, groups, prepend_hydra, skip_missing)
    found = copy.copy(_lists[key])
    found.config_overrides = values
    return found


def _compose(loader: ConfigLoaderImpl, defaults: list[Any], repo: Any) -> Any:
    key = (_places(repo), tuple(map(repr, defaults)))
    if key not in _merged:
        _merged[key] = pickle.dumps(_merge(loader, defaults, repo))
    return pickle.loads(_merged[key])


def originals() -> list[tuple[Any, str, Any]]:
    """Hydra's own: whose attribute, its name, its value."""
    return [
        (ConfigRepository, "load_config", _read),
        (config_loader_impl, "create_defaults_list", _list),
        (ConfigLoaderImpl, "_compose_config_from_defaults_list", _merge),
        (omegaconf.base, "parse", _parse),
        (omegaconf._utils, "parse", _parse),
    ]


def read_once() -> None:
    """Lets Hydra compose so in this process."""
    parse = functools.cache(_parse)
    for (owner, name, _), ours in zip(
        originals(), (_load_config, _create_defaults_list, _compose, parse, parse), strict=True
    ):
        setattr(owner, name, ours)
