"""What configs/ offers: its groups, their choices, all settings, and which choices go together."""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.build import Unfit
from diffusion.settings.following import of_timesteps, put

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONFIGS = Path(__file__).parent / "configs"


def is_own_name(network: str) -> bool:
    """Whether a network is more than a dataset's default."""
    return not (CONFIGS / "dataset" / f"{network}.yaml").exists()


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder; False also for a name that is too long for one."""
    try:
        return path.exists()
    except OSError:
        return False


def groups_of(config_name: str) -> list[str]:
    """The groups that a configuration chooses from; one inside another as it is typed, with a dot."""
    text = (CONFIGS / f"{config_name}.yaml").read_text(encoding="utf-8")
    return [name.replace("/", ".") for name in re.findall(r"^  - (?:optional )?(\w+(?:/\w+)*): ", text, re.MULTILINE)]


def folder_of(group: str) -> Path:
    return CONFIGS / group.replace(".", "/")


def choices_of(group: str) -> list[str]:
    """What a group offers."""
    names = sorted(path.stem for path in folder_of(group).glob("*.yaml"))
    return [name for name in names if group != "network" or is_own_name(name)]


def having(key: str) -> list[str]:
    """The choices of a group whose own files set it: those of `dataset.path` are folder and huggingface."""
    import yaml

    group, *names = key.split(".")
    found = []
    for name in choices_of(group):
        node = yaml.safe_load((folder_of(group) / f"{name}.yaml").read_text(encoding="utf-8"))
        for part in names[:-1]:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and names[-1] in node:
            found.append(name)
    return found


@cache
def keys_of(config_name: str) -> tuple[str, ...]:
    """Every setting by its full name, `optimizer.lr`, those of all choices of all groups included."""
    import yaml

    def flat(node: Any, prefix: str) -> Iterator[str]:
        for key, value in node.items() if isinstance(node, dict) else ():
            if key not in ("_target_", "defaults", "hydra"):
                yield prefix + key
                yield from flat(value, f"{prefix}{key}.")

    keys = dict.fromkeys(flat(yaml.safe_load((CONFIGS / f"{config_name}.yaml").read_text(encoding="utf-8")), ""))
    for group in groups_of(config_name):
        for path in sorted(folder_of(group).glob("*.yaml")):
            content = path.read_text(encoding="utf-8")
            if "@package _global_" not in content:
                keys |= dict.fromkeys(flat(yaml.safe_load(content), f"{group}."))
    return tuple(keys)


def would_fit(error: Unfit, config: "DictConfig", config_name: str) -> str:
    """Which other choices of a group would go together with the rest, found by trying each."""
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    found = []
    rest = _without(error.groups, config_name)
    for group in error.groups:
        whole: Any = OmegaConf.merge(rest, {other: config.get(other) for other in error.groups if other != group})
        whole.dataset = config.get("dataset")  # with the shape that was read from the data
        passing = []
        for name, chosen in _alternatives(group, rest.get(group)):
            whole[group] = chosen
            try:
                put(whole, of_timesteps(whole))
                parts = {key: OmegaConf.to_container(whole[key], resolve=True) for key in _chosen(whole, config_name)}
                error.attempt({**error.config, **parts})
            except (HydraException, OmegaConfBaseException, ValueError):
                continue
            passing.append(name)
        if passing:
            found.append(f"{group}={', '.join(passing)}")
    return f"; with all else as it is, this would do: {'; or '.join(found)}" if found else ""


def _without(groups: Sequence[str], config_name: str) -> "DictConfig":
    """What was typed, composed without the choices of these groups; an experiment's values for them stay.

    Hydra composes once for all of them, since that takes it a tenth of a second.
    """
    from hydra import compose
    from omegaconf import OmegaConf

    others = [argument for argument in _typed() if not re.match(rf"(?:{'|'.join(groups)})[.=]", argument)]
    rest = compose(config_name, [*others, *(f"~{group}" for group in groups)])
    OmegaConf.set_struct(rest, False)
    return rest


def _alternatives(group: str, own: "DictConfig | None") -> Iterator[tuple[str, "DictConfig"]]:
    """The choices of a group that have all settings that were typed for it, with these, by name.

    Args:
        group: such as schedule.
        own: an experiment's values for it.
    """
    from omegaconf import OmegaConf

    inside = [argument.removeprefix(f"{group}.") for argument in _typed() if argument.startswith(f"{group}.")]
    for name in choices_of(group):
        chosen: Any = OmegaConf.merge(choice(group, name), own or {})
        if all(_holds(chosen, argument.partition("=")[0]) for argument in inside):
            whole: Any = OmegaConf.merge(chosen, OmegaConf.from_dotlist(inside))
            yield name, whole


def _typed() -> list[str]:
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task)


def _holds(chosen: "DictConfig", path: str) -> bool:
    """Whether a choice has such a setting, whose value may point to other groups, which are not there."""
    from omegaconf import OmegaConf

    absent = object()
    return OmegaConf.select(chosen, path, default=absent, throw_on_resolution_failure=False) is not absent


@cache
def choice(group: str, name: str) -> "DictConfig":
    """The settings of a choice, with those of the choices that it is built on."""
    from omegaconf import OmegaConf

    chosen: Any = OmegaConf.load(folder_of(group) / f"{name}.yaml")
    whole: Any = OmegaConf.merge(*(choice(group, other) for other in chosen.pop("defaults", [])), chosen)
    return whole


def _chosen(config: "DictConfig", config_name: str) -> list[str]:
    """The groups whose choice a composed configuration holds, but for the data."""
    from omegaconf import OmegaConf

    return [group for group in groups_of(config_name) if group != "dataset" and OmegaConf.is_dict(config.get(group))]
