"""The `scheduler_config.json` of diffusers: its noising process and what its network predicts, in our terms and back.

A scheduler is three things in one: a noising process, which is a schedule here; what the network predicts, which is a
preconditioner; and a sampler. The first two belong to the model and are taken over. Of the sampler's settings some are
taken over as defaults, and the others (`_OF_SAMPLERS`) have no meaning for the samplers here.
"""

from collections.abc import Mapping
from inspect import signature
from typing import Any

from diffusion.build import ConfigError, build, resolve
from diffusion.denoisers import (
    EpsPreconditioner,
    NetworkDenoiser,
    Preconditioner,
    VPreconditioner,
    X0Preconditioner,
)
from diffusion.schedules import (
    CosineSchedule,
    DiscreteSchedule,
    LinearSchedule,
    QuadraticSchedule,
    SigmoidSchedule,
)

# Schedulers of models on a discrete, variance-preserving process, and their own defaults beside `DEFAULTS`.
_CLIPS = {"clip_sample": True}
_SPACED = {"timestep_spacing": "linspace"}
_SCALED = {"beta_start": 0.00085, "beta_end": 0.012, **_SPACED}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDPMScheduler": _CLIPS,
    "DDPMParallelScheduler": _CLIPS,
    "DDIMScheduler": _CLIPS,
    "DDIMParallelScheduler": _CLIPS,
    "DDIMInverseScheduler": _CLIPS,
    "PNDMScheduler": {},
    "DPMSolverMultistepScheduler": _SPACED,
    "DPMSolverSinglestepScheduler": _SPACED,
    "DPMSolverSDEScheduler": _SCALED,
    "UniPCMultistepScheduler": _SPACED,
    "DEISMultistepScheduler": _SPACED,
    "SASolverScheduler": _SPACED,
    "LMSDiscreteScheduler": _SPACED,
    "EulerDiscreteScheduler": _SPACED,
    "EulerAncestralDiscreteScheduler": _SPACED,
    "HeunDiscreteScheduler": _SCALED,
    "KDPM2DiscreteScheduler": _SCALED,
    "KDPM2AncestralDiscreteScheduler": _SCALED,
}
_PREDICTIONS: dict[str, type[Preconditioner]] = {
    "epsilon": EpsPreconditioner,
    "sample": X0Preconditioner,
    "v_prediction": VPreconditioner,
}
_VARIANCES = {
    None: "beta_tilde",  # of schedulers that do not ask for it
    "fixed_small": "beta_tilde",
    "fixed_small_log": "beta_tilde",
    "fixed_large": "beta",
    "learned_range": "learned",
}
_SCHEDULES: dict[str, type[DiscreteSchedule]] = {
    "linear": LinearSchedule,
    "scaled_linear": QuadraticSchedule,
    "sigmoid": SigmoidSchedule,
    "squaredcos_cap_v2": CosineSchedule,
}
_GRIDS = {"trailing": "TrailingGrid", "leading": "TrailingGrid", "linspace": "UniformGrid"}
DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "prediction_type": "epsilon",
    "variance_type": "fixed_small",
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "timestep_spacing": "leading",
}
# What would change a model's predictions, or its noising, and what it has to be.
_OFF: dict[str, tuple[Any, ...]] = {
    "thresholding": (False, None),
    "use_flow_sigmas": (False, None),
    "predict_epsilon": (True, None),
    "timestep_values": (None,),
    "timestep_type": ("discrete", None),  # what the network is given for t
}
# Settings of the samplers of diffusers alone.
_OF_SAMPLERS = {
    *("steps_offset", "set_alpha_to_one", "skip_prk_steps", "solver_order", "solver_type", "algorithm_type"),
    *("lower_order_final", "euler_at_final", "final_sigmas_type", "lambda_min_clipped", "interpolation_type"),
    *("use_karras_sigmas", "use_exponential_sigmas", "use_lu_lambdas", "predict_x0", "disable_corrector", "solver_p"),
    *("dynamic_thresholding_ratio", "sample_max_value", "sigma_min", "sigma_max", "flow_shift"),
    *(
        "use_dynamic_shifting",
        "time_shift_type",
        "predictor_order",
        "corrector_order",
        "tau_func",
        "noise_sampler_seed",
    ),
    *("use_beta_sigmas", "shift_terminal", "tensor_format"),
}


def process(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The parts `schedule`, `denoiser`, `clip`, `sampler`, `grid` and `steps` of a run's configuration.

    Raises:
        ConfigError: a setting that is unknown here, or means another model than those that this project has; by name.
    """
    kind = settings.get("_class_name")
    if not isinstance(kind, str) or kind not in SCHEDULERS:
        raise ConfigError(
            f"its scheduler is {kind!r}, whose noising is not one of this project: it may be {', '.join(SCHEDULERS)}"
        )
    own = {name: value for name, value in settings.items() if not name.startswith("_")}
    for name, value in own.items():
        if name in _OFF and value not in _OFF[name]:
            raise ConfigError(f"its scheduler has {name}={value!r}, which this project does not have")
        if name not in DEFAULTS.keys() | _OFF.keys() | _OF_SAMPLERS:
            raise ConfigError(f"its scheduler has {name}={value!r:.80}, and this project does not know that setting")
    value = DEFAULTS | SCHEDULERS[kind] | {name: own[name] for name in DEFAULTS if name in own}
    clip, bound = value["clip_sample"], value["clip_sample_range"]
    if not isinstance(clip, bool) or (clip and bound != 1):
        raise ConfigError(
            f"its scheduler has clip_sample={clip!r} and clip_sample_range={bound!r}, and this project clips to "
            f"[-1, 1] or not at all"
        )
    precond = _choice("prediction_type", value, _PREDICTIONS)
    ancestral = kind.startswith("DDPM")
    return {
        "schedule": _schedule(value),
        "denoiser": {
            "_target_": f"diffusion.denoisers.{NetworkDenoiser.__name__}",
            "variance": _choice("variance_type", value, _VARIANCES),
            "precond": {"_target_": f"diffusion.denoisers.{precond.__name__}"},
        },
        "clip": clip,
        "sampler": {"_target_": "diffusion.samplers.DDPMSampler"}
        if ancestral
        else {"_target_": "diffusion.samplers.DDIMSampler", "eta": 0.0},
        "grid": {"_target_": f"diffusion.samplers.{_choice('timestep_spacing', value, _GRIDS)}"},
        "steps": None if ancestral else 50,
    }


def _choice(name: str, settings: Mapping[str, Any], known: Mapping[Any, Any]) -> Any:
    found = settings[name]
    if not isinstance(found, str | None) or found not in known:
        allowed = ", ".join(choice for choice in known if choice is not None)
        raise ConfigError(f"its scheduler has {name}={found!r:.80}, and this project has {allowed}")
    return known[found]


def _schedule(settings: Mapping[str, Any]) -> dict[str, Any]:
    steps, start, end = (settings[name] for name in ("num_train_timesteps", "beta_start", "beta_end"))
    rescaled = settings["rescale_betas_zero_snr"]
    if type(steps) is not int or steps < 1:
        raise ConfigError(f"its scheduler has num_train_timesteps={steps!r}, which must be a whole number above 0")
    for name, beta in {"beta_start": start, "beta_end": end}.items():
        if isinstance(beta, bool) or not isinstance(beta, int | float):
            raise ConfigError(f"its scheduler has {name}={beta!r}, which must be a number")
    betas = settings["trained_betas"]
    if betas is not None:
        if not isinstance(betas, list) or len(betas) != steps:
            raise ConfigError(f"its scheduler has trained_betas that are no list of num_train_timesteps={steps}")
        return {"_target_": "diffusion.schedules.ListedSchedule", "betas": betas, "zero_terminal_snr": rescaled}
    kind = _choice("beta_schedule", settings, _SCHEDULES)
    # Betas here are stated for 1000 timesteps.
    ends = {} if kind is CosineSchedule else {"beta_start": start * steps / 1000, "beta_end": end * steps / 1000}
    target = f"diffusion.schedules.{kind.__name__}"
    return {"_target_": target, "timesteps": steps, **ends, "zero_terminal_snr": rescaled}


def exported(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a `DDPMScheduler` whose samples are those of our `ddpm`.

    Args:
        config: of a run; its parts schedule, denoiser and clip count.

    Raises:
        ConfigError: the model is no eps, x0 or v model on a discrete, variance-preserving schedule.
    """
    denoiser = config["denoiser"]
    kind = resolve(denoiser["_target_"], "denoiser")
    precond = resolve(denoiser["precond"]["_target_"], "denoiser.precond") if kind is NetworkDenoiser else kind
    predictions = {known: name for name, known in _PREDICTIONS.items()}
    if precond not in predictions:
        raise ConfigError(
            f"diffusers has models that predict eps, x0 or v, and this one is a {precond.__name__}: train one with "
            f"denoiser=eps, x0 or v"
        )
    schedule = build(config["schedule"], "schedule")
    if not isinstance(schedule, DiscreteSchedule):
        raise ConfigError(
            f"a scheduler of diffusers is a list of betas, and {type(schedule).__name__} has none: train a model with "
            f"schedule=linear, quadratic, cosine or sigmoid"
        )
    variances = {"beta": "fixed_large", "beta_tilde": "fixed_small", "learned": "learned_range"}
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": schedule.timesteps,
        **_betas(config["schedule"], schedule),
        "prediction_type": predictions[precond],
        "variance_type": variances[denoiser.get("variance", "beta")],
        "clip_sample": config["clip"],
        "clip_sample_range": 1.0,
        "timestep_spacing": "trailing",
    }


def _betas(config: Mapping[str, Any], schedule: DiscreteSchedule) -> dict[str, Any]:
    """By name where diffusers has the schedule, else as a list."""
    # Not all schedulers have "sigmoid".
    names = {kind: name for name, kind in _SCHEDULES.items() if kind is not SigmoidSchedule}
    settings = {
        name: config.get(name, parameter.default) for name, parameter in signature(type(schedule)).parameters.items()
    }
    rescaled = {"rescale_betas_zero_snr": settings["zero_terminal_snr"]}
    if isinstance(schedule, CosineSchedule) and (settings["offset"], settings["max_beta"]) == (0.008, 0.999):
        return {"beta_schedule": names[CosineSchedule], **rescaled}
    if type(schedule) in names and not isinstance(schedule, CosineSchedule):
        scale = 1000 / settings["timesteps"]  # betas here are stated for 1000 timesteps
        ends = {name: settings[name] * scale for name in ("beta_start", "beta_end")}
        return {"beta_schedule": names[type(schedule)], **ends, **rescaled}
    if settings["zero_terminal_snr"]:
        raise ConfigError(
            "diffusers does not have this schedule with zero_terminal_snr=true: train a model with schedule=linear, "
            "quadratic or cosine"
        )
    return {"trained_betas": schedule.betas.tolist()}
