"""What the scripts at the top share: the help page, the configuration, and one clear line for whatever goes wrong."""

import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hints
from choices import CONFIGS, choices_of, folder_of, groups_of, having, is_own_name, is_there, keys_of, would_fit
from data.places import expanded
from diffusion.build import Unfit, nearest
from diffusion.machine import heap
from diffusion.settings.training import OURS
from diffusion.terminal import helppage, streams
from diffusion.terminal.commands import quoted

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Hydra's own options; everything else that is typed has the form name=value.
FLAGS = ("--multirun", "-m", "--cfg", "-c", "--resolve", "--package", "-p", "--info", "-i", "--hydra-help", "--version")
# Settings that name a file or a folder, whose names may have any character.
PATHS = (
    *("ckpt", "resume", "init_from", "autoencoder", "classifier", "embedding", "condition", "init", "mask", "out"),
    *("guide", "interpolate", "runs", "runtime", "samples", "cache", "data_dir"),
    *("dataset.path", "dataset.source.path", "dataset.source.data_dir"),
)
NAME_VALUE = "write name=value; name=null where a setting can be without a value"
WITHOUT = ("experiment=null", "debug=null")  # Hydra cannot read these, which say what holds without them
DEMO = "experiment=demo"  # what train.py trains where no group is chosen and no run resumed
LONGEST = 2000  # characters of a message
# Without these nothing works; what needs another package says so itself.
REQUIRED = ("hydra", "omegaconf", "yaml", "torch", "torchvision", "pytorch_lightning", "numpy")
# What the user can mend. Any other exception is a mistake in the program and keeps its traceback.
USER_ERRORS = (ValueError, OSError, FloatingPointError)


def run(script: "Callable[[DictConfig], Any]", config_name: str, usage: str, shortage: str = "") -> None:
    """Runs `script(config)` under Hydra; whatever the user can mend becomes one line on stderr and exit status 1.

    A closed or full standard output ends nothing. Ctrl-C is exit status 130. HYDRA_FULL_ERROR=1 in the environment
    shows tracebacks instead.

    Args:
        script: gets the composed configuration.
        config_name: of the file in configs/ that says what can be set.
        usage: heads the page that --help prints.
        shortage: what to lower when memory runs out.
    """
    warnings.formatwarning = _format_warning
    streams.protect()
    try:
        arguments = sys.argv[1:]
        if "--help" in arguments or "-h" in arguments:
            print(help_page(config_name, usage))
        else:
            sys.argv[1:] = checked(arguments, config_name)
            if "hydra/launcher=submitit_slurm" in arguments and shutil.which("srun") is None:
                fail("hydra/launcher=submitit_slurm: there is no command srun here; submitit_local does without SLURM")
            _compose_and_run(script, config_name, shortage)
    except ModuleNotFoundError as error:
        if error.name not in REQUIRED:
            raise
        print(
            f"error: {sys.executable} has no package {error.name}: activate the project's environment, "
            ". .venv/bin/activate, or install by pip install -r requirements.txt",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _compose_and_run(script: "Callable[[DictConfig], Any]", config_name: str, shortage: str) -> None:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    entry = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)

    def called(config: "DictConfig") -> Any:
        heap.keep()
        with quieted_by(config):
            return script(config)

    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        entry(called)()
        return

    def guarded(config: "DictConfig") -> Any:
        try:
            with _full_error(None):  # the processes that a script starts have the user's environment
                return called(config)
        except OmegaConfBaseException as error:
            fail(composition_error(error, config_name))
        except USER_ERRORS as error:
            fail(one_line(error) + (would_fit(error, config, config_name) if isinstance(error, Unfit) else ""))
        except (RuntimeError, MemoryError) as error:
            from diffusion.machine import memory

            if not memory.ran_out(error):
                raise
            fail(str(memory.OutOfMemory(error, shortage)))

    try:
        with _full_error("1"):  # Hydra raises instead of printing; the printing is done here
            entry(guarded)()
    except (HydraException, OmegaConfBaseException, *USER_ERRORS) as error:
        fail(composition_error(error, config_name))


@contextmanager
def quieted_by(config: "DictConfig") -> Iterator[None]:
    """Takes `quiet` out of a configuration: it is about what a command prints, so no run and no checkpoint has it."""
    from omegaconf import open_dict

    with open_dict(config):
        quiet = config.pop("quiet", False)
    if not isinstance(quiet, bool):
        raise ValueError(f"quiet must be true or false, got {quiet!r}")
    with streams.quieted() if quiet else nullcontext():
        yield


@contextmanager
def _full_error(value: str | None) -> Iterator[None]:
    before = os.environ.pop("HYDRA_FULL_ERROR", None)
    try:
        if value is not None:
            os.environ["HYDRA_FULL_ERROR"] = value
        yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR", None)
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"{streams.coloured('warning', sys.stderr)}: {printable(str(message))}\n"


def fail(message: str) -> NoReturn:
    """Prints the line and exits with status 1."""
    streams.problem(f"error: {printable(message)}")
    sys.exit(1)


def printable(text: str) -> str:
    """Text that a terminal only shows: control characters, which a name in a file can hold, become escapes.

    The middle of a text over `LONGEST` characters is left out.
    """
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    return "".join(
        character if character.isprintable() or character == "\n" else ascii(character)[1:-1] for character in text
    )


def one_line(error: BaseException) -> str:
    """An exception's text on one line; of one from a data loader's worker, its own text without the traceback."""
    text = str(error).strip()
    if text.startswith("Caught ") and "worker process" in text:
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split()) or type(error).__name__


def checked(arguments: list[str], config_name: str) -> list[str]:
    """The arguments as Hydra takes them, --multirun first, `DEMO` if none chooses; exits if one is no setting."""
    for argument in arguments:
        name = argument.split("=")[0]
        if name in ("-m", "--multirun") and config_name != "train":
            fail(f"{name} is an option of train.py alone: leave it out")
        typed_plainly = argument.translate(hints.TYPOGRAPHIC)
        if typed_plainly != argument and (name not in PATHS or typed_plainly.endswith(('"', "'"))):
            fail(f"cannot read {argument!r}: write {typed_plainly}, with the hyphens and quotation marks of a keyboard")
        if name.strip("-/").lower() in ("help", "h", "?", "hlep", "usage", "man", "info") and name not in FLAGS:
            fail(f"cannot read {argument!r}: --help lists all settings")
        if name.startswith("~"):
            fail(f"cannot read {argument!r}: {NAME_VALUE}")
        if argument.startswith("-") and name not in FLAGS:
            bare, known = name.lstrip("-").replace("-", "_"), settings_of(config_name)
            near = nearest(bare, known) or nearest(name, ("--help", *FLAGS))
            hint = f" (did you mean {bare}?)" if bare in known else near
            place = None if bare in known else hints.home(bare, config_name, settings_of)
            hint = f": {place}" if place else hint
            fail(
                f"there is no option {name}{hint}; settings are written name=value, without dashes (--help lists them)"
            )
    _check_form(arguments, config_name)
    for argument in arguments:
        name, _, value = argument.partition("=")
        if not name:
            fail(f"cannot read {argument!r}: {NAME_VALUE}")
        if name == "dataset.name" and value in choices_of("dataset") and f"dataset={value}" not in arguments:
            fail(f"{argument} only names the run's folder: write dataset={value} for other data")
        if name == "learning_rate" and re.match(r"[\d.]", value):
            fail(f"{argument}: write lr={value}; learning_rate.name=value sets how the rate changes")
    arguments = [plain_path(argument) for argument in arguments]
    # The other scripts have no choice by default: the model's own holds.
    without = WITHOUT if config_name == "train" else [f"{group}=null" for group in groups_of(config_name)]
    arguments, typed = [each for each in arguments if each not in without], arguments
    chosen = {argument.partition("=")[0] for argument in typed if argument not in ("resume=auto", "resume=null")}
    if config_name == "train" and chosen.isdisjoint([*groups_of(config_name), "resume"]):
        arguments.append(DEMO)
    for group in groups_of(config_name):
        for argument in arguments:
            if re.match(rf"{re.escape(group)}=\s*[\[{{]", argument):
                fail(f"{argument}: {group} is chosen by one name; the choices are {', '.join(choices_of(group))}")
            # Hydra passes over an optional group's unknown names.
            typed_names = re.fullmatch(rf"{re.escape(group)}=([^\s\"'(){{}}$]+)", argument)
            names = typed_names[1].split(",") if typed_names else []
            if len(names) > 1 and "null" in names:
                fail(f"{argument}: null cannot be one of several choices: run it by itself")
            for name in names:
                if name and name != "null" and not is_there(folder_of(group) / f"{name}.yaml"):
                    fail(_unknown_choice(group, name, choices_of(group)))
    # Hydra tells a group inside another by a slash.
    for group in groups_of(config_name):
        if "." in group:
            arguments = [f"++{each}" if each == f"{group}=null" else each for each in arguments]
        slashed = group.replace(".", "/")
        arguments = [re.sub(rf"^{re.escape(group)}=(?=[\w,]+$)", f"{slashed}=", argument) for argument in arguments]
    return sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun"))


def plain_path(argument: str) -> str:
    """A setting that names a file or folder as Hydra's parser takes it: `~` expanded, unusual characters in quotes.

    Quoted values and interpolations stay as they are, and so do lists, but for `~` in them.
    """
    name, mark, path = argument.partition("=")
    if name in PATHS and path.startswith("["):
        home = re.sub(r"(?<=[\[,])\s*(~[^,\]]*)", lambda found: quoted(str(expanded(found[1]))), path)
        return f"{name}={home}"
    if not mark or name not in PATHS or not path or path[0] in "[\"'" or "${" in path:
        return argument
    path = str(expanded(path)) if path.startswith("~") else path
    if re.fullmatch(r"[\w./:@%+,*-]*", path, re.ASCII):
        return f"{name}={path}"
    return f"{name}={quoted(path)}"


def settings_of(config_name: str) -> list[str]:
    """Everything that can be set: all settings and groups."""
    return [*keys_of(config_name), *groups_of(config_name)]


def _check_form(arguments: list[str], config_name: str) -> None:
    """Exits if a setting is written in another form than name=value: `dataset fashion`, `lr = 1`, `fashion` alone."""
    taken = False  # the value of one of Hydra's own options follows it
    for i, argument in enumerate(arguments):
        follows, taken = taken, argument in ("--cfg", "-c", "--package", "-p", "--info", "-i")
        if follows or argument.startswith("-"):
            continue
        name, mark, value = argument.partition("=")
        if mark and value.startswith("=") and name in settings_of(config_name):
            fail(f"cannot read {argument!r}: write {name}={value.lstrip('= ')}")
        following = arguments[i + 1] if i + 1 < len(arguments) else ""
        if name.strip() in settings_of(config_name) and (following.startswith("=") or (mark and name[-1] == " ")):
            value = (value or following.lstrip("=") or "".join(arguments[i + 2 : i + 3])).strip() or "..."
            fail(f"cannot read {argument!r}: write {name.strip()}={value}, without spaces")
        if mark and not value and following and "=" not in following and not following.startswith("-"):
            fail(f"cannot read {argument!r}: write {name}={following}, without spaces")
        if value.endswith((",", ";")) and value.strip(",;"):
            fail(f"cannot read {argument!r}: write {name}={value.rstrip(',;')}, without the {value[-1]} at its end")
        if mark and (name or "x")[-1] not in ": ":
            continue
        if not mark and (whole := hints.cut_at_spaces(arguments, i, PATHS)):
            fail(f"cannot read {argument!r}: a path with spaces needs quotation marks: {whole}")
        name = re.split(r"[:\s]", argument)[0]
        if not mark and name and name in settings_of(config_name):
            value = argument[len(name) :].strip(": ")
            value = value or ("..." if "=" in following or following.startswith("-") else following) or "..."
            fail(f"cannot read {argument!r}: write {name}={value}")
        elif not mark and (meant := _meant(argument, config_name)):
            fail(f"cannot read {argument!r}: write {meant}")


def _meant(word: str, config_name: str) -> str | None:
    """What a word without `=` was meant for: a choice of a group, `fashion` or `dataset/fashion`, else a checkpoint."""
    for group in groups_of(config_name):
        value = re.sub(rf"^{re.escape(group)}[-/.>]+", "", word)
        if chosen := hints.choice(group, value, choices_of(group)):
            return f"{group}={chosen}"
    names_runs = word in ("last", "best") or word.isdecimal() or (word.strip() and is_there(Path(word)))
    setting = {"train": "resume", "compare": "runs"}.get(config_name, "ckpt")
    return f"{setting}={word}" if names_runs else None


def composition_error(error: BaseException, config_name: str) -> str:
    """Hydra's and OmegaConf's messages as one line that names what was typed, and the nearest choice."""
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf.errors import InterpolationResolutionError

    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        group = group.replace("/", ".")
        if (group, name) in hints.PLUGINS:
            return f"{group}={name} needs a plugin of Hydra: pip install {hints.PLUGINS[group, name]}"
        choices = [option for option in error.options if group != "network" or is_own_name(option)]
        return _unknown_choice(group, name, choices)
    if isinstance(error, OverrideParseException):
        quoting = """write name=value, and name='"..."' where the value has spaces or special characters"""
        return f"cannot read {error.override!r}: {quoting}"
    if unknown := re.match(r"Could not override '(.+?)'", text):
        key, group = unknown[1], unknown[1].partition(".")[0]
        keys = keys_of(config_name)
        if key in keys:
            those = ", ".join(f"{group}={name}" for name in having(key))
            advice = f"it is a setting of {those}; choose one of these" if those else f"choose another by {group}=..."
            return f"{key} does not belong to the {group} that is chosen: {advice}, or leave it out"
        option = key.removeprefix("trainer.")
        if config_name == "train" and key != option and option in OURS:
            return f"{key} cannot be set: {OURS[option]}"
        if place := hints.home(key.replace("-", "_"), config_name, settings_of):
            return f"there is no setting {key} of {hints.script(config_name)}: {place}"
        inside = sorted((name for name in keys if name.endswith(f".{key}")), key=lambda name: name.count("."))
        others = [name for name in (*keys, *groups_of(config_name)) if "." in name or "." not in key]
        near = f" (did you mean {inside[0]}?)" if inside else nearest(key, others)
        parent = key.rpartition(".")[0]
        siblings = [name.removeprefix(f"{parent}.") for name in keys if name.rpartition(".")[0] == parent]
        known = f"{parent} can have {', '.join(siblings)}" if parent and siblings else "--help lists all settings"
        return f"there is no setting {key}{near}; {known}"
    if merged := re.match(r"Error merging override (.+?)=(.*)", text, re.DOTALL):
        name, value = merged.groups()
        inside = [key.removeprefix(f"{name}.") for key in keys_of(config_name) if key.startswith(f"{name}.")]
        if inside:
            return f"{name}={value}: {name} has settings of its own, {name}.name=value; they are {', '.join(inside)}"
        return f"{name}={value} is of another kind than the values of this setting; --help shows them"
    if node := re.search(r"node `(.+?)` is not a container", text):
        return f"{node[1]} has settings of its own, {node[1]}.name=value; --help lists them"
    if text.startswith("Config group override"):
        typed = [argument.replace("/", ".") for argument in sys.argv[1:]]
        groups = [argument for argument in typed if argument.split("=")[0] in groups_of(config_name)]
        return (
            f"{' '.join(groups)}: a group is chosen by one name, and only dataset.condition, experiment and debug "
            f"can be null; --help lists the names"
        )
    if text.startswith("Ambiguous value"):
        name = text.split("'")[1] if "'" in text else text
        sweep = "add --multirun to try each, or " if config_name == "train" else ""
        return f"{name} is several values: {sweep}write [a,b] for a list"
    if isinstance(error, InterpolationResolutionError):
        where = error.full_key or ", ".join(argument for argument in sys.argv[1:] if "${" in argument)
        return f"{where}: {text.splitlines()[0]}; write a value, or ${{name}} with a setting that --help lists"
    return one_line(error)


def _unknown_choice(group: str, name: str, choices: list[str]) -> str:
    """What to say of a choice that does not exist: one by another name, a path in its place, or a number."""
    near = hints.choice(group, name, choices)
    hint = f" (did you mean {near}?)" if near else nearest(name, choices)
    if group == "dataset" and (name.startswith((".", "/")) or is_there(Path(name))):
        hint = f": for a folder of images write dataset=folder dataset.path={name}"
    if group == "ema" and re.fullmatch(r"0?\.\d+", name):
        hint = f": write ema=exponential ema_decay={name}"
    return f"{group}={name} does not exist{hint}; the choices are {', '.join(choices)}"


def help_page(config_name: str, usage: str) -> str:
    """What --help prints: usage, the groups with their choices, the settings with their comments."""
    text = (CONFIGS / f"{config_name}.yaml").read_text(encoding="utf-8")
    groups = {name: choices_of(name) for name in groups_of(config_name)}
    return helppage.page(hints.command(config_name), usage, groups, text)


def typed() -> dict[str, Any]:
    """What the user typed for this run, name by name."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.override_parser.overrides_parser import OverridesParser

    overrides = OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))
    named = {override.get_key_element().lstrip("+~"): override.value() for override in overrides}
    named.pop("quiet", None)
    return named


def job_number() -> int:
    """Which job of a sweep this run is, from 0."""
    from hydra.core.hydra_config import HydraConfig

    return int(HydraConfig.get().job.num)


def sweeping() -> bool:
    """Whether this run is one of a --multirun."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.get().mode == RunMode.MULTIRUN
