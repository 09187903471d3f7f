"""From a configuration to objects: `{"_target_": "diffusion.schedules.LinearSchedule", "timesteps": 500}`.

Only classes that this project defines can be named, so that a configuration out of a stranger's checkpoint cannot run
anything else. Names, types and (by the constructors) ranges are checked here, each with a message that says what was
typed and what is allowed.
"""

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

# Where the classes of modules in older checkpoints are now.
MOVED = {
    "diffusion.steps": "diffusion.denoisers",
    "diffusion.residual": "diffusion.denoisers",
    "diffusion.multistep": "diffusion.samplers",
    "diffusion.stochastic": "diffusion.samplers",
    "diffusion.adaptive": "diffusion.samplers",
    "diffusion.grids": "diffusion.samplers",
    "diffusion.classifiers": "diffusion.models",
    "diffusion.autoencoder": "diffusion.models",
}
# As a package of pip, diffusion holds data/ and configs/, which in a checkout lie beside it.
INSTALLED = importlib.util.find_spec("diffusion.data") is not None
_TARGET = re.compile(r"(?:diffusion|data)(?:\.[a-z][a-z0-9_]*)+\.[A-Z]\w*")


class ConfigError(ValueError):
    """A setting that cannot be; its text is one line for the person who typed it."""


class Unfit(ConfigError):
    """Parts that do not go together; the command line adds which others would.

    Args:
        text: one line.
        groups: those whose other choices may help.
        config: of the parts.
        attempt: raises ValueError unless the parts of a configuration go together.
    """

    def __init__(
        self,
        text: str,
        groups: Sequence[str],
        config: Mapping[str, Any],
        attempt: Callable[[dict[str, Any]], object],
    ) -> None:
        super().__init__(text)
        self.groups, self.config, self.attempt = groups, config, attempt


def nearest(name: str, choices: Iterable[str]) -> str:
    """` (did you mean x?)`, or nothing if no choice is near; capital letters are near small ones."""
    small = {choice.lower(): choice for choice in reversed(list(choices))}
    found = difflib.get_close_matches(name.lower(), list(small), n=1)
    return f" (did you mean {small[found[0]]}?)" if found else ""


def build(config: Any, where: str = "config", **extra: Any) -> Any:
    """Builds the object that a configuration describes, and everything in it.

    Args:
        config: a mapping with `_target_`, the full name of a class of this project, and its arguments; mappings and
            lists in it are built likewise, other values returned as they are.
        where: what the user calls this part, for messages.
        extra: further arguments, already built.

    Raises:
        ConfigError: unknown class or argument, a missing one, a wrong type, a value that the class refuses.
    """
    if isinstance(config, Mapping):
        if "_target_" not in config:
            return {key: build(value, f"{where}.{key}") for key, value in config.items()}
        cls = resolve(config["_target_"], where)
        arguments = {key: build(value, f"{where}.{key}") for key, value in config.items() if key != "_target_"} | extra
        return construct(cls, arguments, where)
    if isinstance(config, list | tuple):
        return [build(value, where) for value in config]
    return config


def check_source(source: Any) -> None:
    """Raises `ConfigError` for a value in the place of `dataset.source`, which names a class and its settings."""
    if source == {}:  # of a model that another program wrote
        raise ConfigError("this model does not say which data it learned: choose data by dataset=...")
    if not isinstance(source, Mapping) or "_target_" not in source:
        raise ConfigError(f"dataset.source={source}: choose data by dataset=..., and set dataset.source.name=value")


def construct(cls: type, arguments: Mapping[str, Any], where: str = "") -> Any:
    """`cls(**arguments)` after checking the arguments' names and types; raises `ConfigError` as `build` does."""
    prefix = f"{where}." if where else ""
    _check(cls, arguments, prefix)
    try:
        return cls(**arguments)
    except ConfigError:
        raise
    except (ArithmeticError, RuntimeError, MemoryError) as error:  # of numbers too large to compute with, or to store
        raise ConfigError(f"{where or cls.__name__} cannot be built: {' '.join(str(error).split())[:150]}") from error
    except ValueError as error:
        text = " ".join(str(error).split())
        first = re.match(r"\w*", text)
        plain = bool | int | float | str | list | tuple | dict | None  # what is built has settings of its own
        if first and first[0] in arguments and isinstance(arguments[first[0]], plain):
            raise ConfigError(f"{prefix}{text}") from error
        # Some messages begin with a setting as it was typed, which needs no more context.
        said = not where or re.match(r"[\w.]+=", text)
        raise ConfigError(text if said else f"{where}: {text}") from error


def resolve(target: Any, where: str) -> type:
    """The class of this project with this full name, that of its module or of a package above it.

    Raises:
        ConfigError: it names anything else.
    """
    refusal = ConfigError(f"{where} names {target!r}, which is not a class of this project; nothing was built")
    if not isinstance(target, str) or not _TARGET.fullmatch(target):
        raise refusal
    module_name, _, name = target.rpartition(".")
    module_name = MOVED.get(module_name, module_name)
    if INSTALLED and module_name.startswith("data."):
        module_name = f"diffusion.{module_name}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise refusal from error
    found = vars(module).get(name)
    # A class that is imported from anywhere but below is somebody else's.
    if not isinstance(found, type) or not f"{found.__module__}.".startswith(f"{module_name}."):
        raise refusal
    if inspect.isabstract(found):
        raise refusal
    return found


def canonical(config: Any) -> Any:
    """A configuration to compare with others: each class by one name, wherever it was when the configuration was
    written, with the defaults of the arguments that it had not then. A class that does not exist any more keeps its
    name."""
    if isinstance(config, Mapping):
        found = dict(config)
        with contextlib.suppress(ConfigError):
            cls = resolve(found.get("_target_"), "config")
            defaults = {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}
            found = {name: value for name, value in defaults.items() if value is not inspect.Parameter.empty} | found
            found["_target_"] = f"{cls.__module__}.{cls.__qualname__}"
        return {key: canonical(value) for key, value in found.items()}
    return [canonical(value) for value in config] if isinstance(config, list | tuple) else config


def _check(cls: type, arguments: Mapping[str, Any], prefix: str) -> None:
    parameters = inspect.signature(cls).parameters
    hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    for name in arguments:
        if name not in parameters:
            allowed = ", ".join(parameters) or "none"
            raise ConfigError(f"{prefix}{name} does not exist{nearest(name, parameters)}; the options are {allowed}")
    for name, parameter in parameters.items():
        if name not in arguments:
            if parameter.default is parameter.empty:
                raise ConfigError(f"{prefix}{name} is missing: set {prefix}{name}=...")
        elif name in hints and not fits(arguments[name], hints[name]):
            raise ConfigError(f"{prefix}{name} must be {described(hints[name])}, got {arguments[name]!r}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value, or one that was built, is of the kind that an annotation means."""
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in get_args(hint))
    if origin in (Sequence, list, tuple):
        item = get_args(hint)[0] if get_args(hint) else Any
        return isinstance(value, list | tuple) and all(fits(element, item) for element in value)
    if hint is float and isinstance(value, int) and abs(value) >= 2**63:  # torch has no such whole numbers
        return False
    if hint in (int, float):
        kinds = (int,) if hint is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)
    if hint in (None, type(None)):
        return value is None
    if getattr(hint, "_is_protocol", False):  # structural: what the object lacks shows when it is used
        return not isinstance(value, bool | int | float | str | list | tuple | dict) and value is not None
    return isinstance(value, origin or hint)


def described(hint: Any) -> str:
    """A kind in words."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(described(option) for option in get_args(hint))
    if origin in (Sequence, list, tuple):
        return f"a list ([a,b,...]), each item {described(get_args(hint)[0])}"
    return names.get(hint, getattr(hint, "__name__", str(hint)))
