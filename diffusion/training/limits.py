"""How long a run trains."""

import math
from typing import Any, NamedTuple

from diffusion.build import ConfigError
from diffusion.runs.parts import Parts
from diffusion.terminal.progress import counted


class Limit(NamedTuple):
    """When a run ends, whichever comes first; None is no such limit.

    Args:
        max_steps: optimizer steps.
        max_time: Lightning's `max_time`.
        step_s: seconds of a step, where they were measured to find the limit.
    """

    max_steps: int | None
    max_time: Any = None
    step_s: float | None = None


def limit_of(parts: Parts, train_size: int) -> Limit:
    """What a configuration says: `max_epochs` as steps, since the training stream has no end and the decay has to know
    its length.

    Args:
        parts: of the run.
        train_size: examples of an epoch.
    """
    options = parts.trainer
    steps, epochs = options["max_steps"], options["max_epochs"]
    if epochs is not None:
        of_epochs = epochs * math.ceil(train_size / parts.images_per_step)
        steps = min(of_epochs, steps or of_epochs)
    return Limit(steps, options["max_time"])


def check_validation(parts: Parts, size: int, batch_size: int, world_size: int) -> None:
    """Raises ConfigError if the validation split has too few data for every device, or for `limit_val_batches`.

    Args:
        parts: of the run.
        size: examples of the validation split.
        batch_size: of validation, over all devices.
        world_size: devices.
    """
    limit, batches = parts.trainer.get("limit_val_batches"), math.ceil(size / batch_size)
    if isinstance(limit, float) and limit > 0 and int(limit * batches) == 0:
        raise ConfigError(
            f"trainer.limit_val_batches={limit:g} of the {counted(batches, 'batch')} of validation is less than one: "
            f"give a number of batches, such as 1, or a larger share"
        )
    if size < world_size and limit != 0:
        raise ConfigError(
            f"the validation split has {counted(size, 'example')} for {world_size} devices: use fewer devices or more "
            f"data, or leave out validation by trainer.limit_val_batches=0"
        )


def check_limit(limit: Limit, parts: Parts) -> None:
    """Raises ConfigError if nothing ends the run, or the learning rate's decay does not know where that is."""
    if limit.max_steps is not None:
        return
    if limit.max_time is None:
        raise ConfigError("nothing says when to stop: set trainer.max_steps, trainer.max_epochs or budget_minutes")
    if parts.learning_rate.decay != "none":
        raise ConfigError(
            f"learning_rate.decay={parts.learning_rate.decay} needs to know the last step: set trainer.max_steps, "
            f"trainer.max_epochs or budget_minutes"
        )


def with_last_step(config: dict[str, Any], limit: Limit, budget: bool) -> dict[str, Any]:
    """The configuration as it is stored, which names the last step.

    Args:
        config: of a run.
        limit: where it ends.
        budget: whether a budget decided that, and not epochs.
    """
    trainer = config["trainer"] | {"max_steps": limit.max_steps}
    return config | {"trainer": trainer | ({"max_epochs": None} if budget else {})}
