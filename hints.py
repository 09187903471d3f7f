"""Where a setting belongs that was typed at the wrong script, under another project's name, or in another form."""

import re
from collections.abc import Callable, Container, Iterable, Sequence

from choices import is_there
from data.places import expanded
from diffusion.terminal.commands import pasted

# Names of other projects (Lightning, diffusers, EDM, lucidrains) and of other versions of a word -> the setting here.
TRAIN_WORDS = {
    **dict.fromkeys(("gpus", "num_gpus", "gpu", "num_processes", "nproc_per_node", "trainer.gpus"), "devices"),
    **dict.fromkeys(("trainer.devices", "trainer.num_processes", "trainer.num_gpus", "num_devices"), "devices"),
    **dict.fromkeys(("trainer.gpu", "trainer.tpu_cores", "trainer.ipus", "trainer.hpus", "tpu_cores"), "devices"),
    **dict.fromkeys(("device", "cuda", "use_cuda", "trainer.accelerator", "trainer.device"), "accelerator"),
    **dict.fromkeys(("strategy", "distributed_backend", "trainer.distributed_backend"), "trainer.strategy"),
    **dict.fromkeys(
        ("epoch", "epochs", "num_epochs", "max_epochs", "num_train_epochs", "n_epochs"), "trainer.max_epochs"
    ),
    **dict.fromkeys(("trainer.epochs", "trainer.num_epochs"), "trainer.max_epochs"),
    **dict.fromkeys(("max_steps", "train_steps", "num_steps", "max_train_steps", "iterations"), "trainer.max_steps"),
    **dict.fromkeys(("train_num_steps", "num_iterations", "trainer.steps", "n_iter"), "trainer.max_steps"),
    **dict.fromkeys(("trainer.max_iters", "trainer.num_steps", "max_iters", "total_kimg", "kimg"), "trainer.max_steps"),
    **dict.fromkeys(("max_time", "duration", "trainer.time"), "budget_minutes"),
    **dict.fromkeys(("learning_rate", "train_lr", "base_lr", "optim.lr", "optimizer.learning_rate"), "lr"),
    **dict.fromkeys(("trainer.lr", "model.lr", "trainer.learning_rate", "model.learning_rate", "LR"), "lr"),
    **dict.fromkeys(
        ("batch", "train_batch_size", "batchsize", "bs", "batch_gpu", "per_device_batch_size"), "batch_size"
    ),
    **dict.fromkeys(("data.batch_size", "dataset.batch_size", "trainer.batch_size", "loader.batch_size"), "batch_size"),
    **dict.fromkeys(("datamodule.batch_size", "train.batch_size", "training.batch_size"), "batch_size"),
    **dict.fromkeys(("trainer.seed", "random_seed", "manual_seed", "global_seed"), "seed"),
    **dict.fromkeys(("num_workers", "dataloader_num_workers", "data.workers", "n_workers"), "workers"),
    **dict.fromkeys(("image_size", "resolution", "img_size", "size"), "dataset.image_size"),
    **dict.fromkeys(("data", "dataset_name", "train_data", "dataset.name_or_path"), "dataset"),
    **dict.fromkeys(("train_data_dir", "data_path", "folder", "data.path", "image_folder", "path"), "dataset.path"),
    **dict.fromkeys(("dataset.root", "dataset.dir", "dataset.folder", "root", "image_dir"), "dataset.path"),
    **dict.fromkeys(("dim", "channels", "num_channels", "model.dim", "model.channels", "dim_mults"), "network.widths"),
    **dict.fromkeys(("network.dim", "network.channels", "network.dim_mults", "model.dim_mults"), "network.widths"),
    **dict.fromkeys(("network.channel_mult", "channel_mult", "block_out_channels", "cbase", "cres"), "network.widths"),
    **dict.fromkeys(("num_res_blocks", "network.num_res_blocks", "layers_per_block", "num_blocks"), "network.blocks"),
    **dict.fromkeys(("attention_resolutions", "network.attention_resolutions"), "network.attention"),
    **dict.fromkeys(("dropout", "model.dropout"), "network.dropout"),
    **dict.fromkeys(("num_classes", "class_cond", "cond", "model.num_classes"), "network.num_classes"),
    **dict.fromkeys(("num_train_timesteps", "num_timesteps", "diffusion_steps", "T", "n_timesteps"), "timesteps"),
    **dict.fromkeys(("schedule.num_train_timesteps", "schedule.T", "noise_steps", "num_diffusion_steps"), "timesteps"),
    **dict.fromkeys(("resume_from_checkpoint", "ckpt_path", "resume_from", "checkpoint", "resume_pkl"), "resume"),
    **dict.fromkeys(("trainer.resume_from_checkpoint", "trainer.ckpt_path", "load", "restore"), "resume"),
    **dict.fromkeys(("pretrained", "init_weights", "transfer", "finetune", "fine_tune", "finetune_from"), "init_from"),
    **dict.fromkeys(("mixed_precision", "amp", "fp16", "bf16", "precision"), "trainer.precision"),
    **dict.fromkeys(("gradient_accumulation_steps", "gradient_accumulate_every"), "trainer.accumulate_grad_batches"),
    **dict.fromkeys(("accumulate_grad_batches", "batch_split", "accumulate"), "trainer.accumulate_grad_batches"),
    **dict.fromkeys(("accumulation_steps", "grad_accum", "accumulate_steps"), "trainer.accumulate_grad_batches"),
    **dict.fromkeys(("max_grad_norm", "grad_clip", "clip_grad_norm", "gradient_clip_val"), "trainer.gradient_clip_val"),
    **dict.fromkeys(("clip_grad", "gradient_clip", "clip_norm"), "trainer.gradient_clip_val"),
    **dict.fromkeys(("nodes", "num_nodes", "nnodes", "trainer.nodes"), "trainer.num_nodes"),
    **dict.fromkeys(("wd", "optimizer.wd", "decay"), "optimizer.weight_decay"),
    **dict.fromkeys(("lr_scheduler", "scheduler", "lr_schedule", "lr_decay"), "learning_rate.decay"),
    **dict.fromkeys(("warmup", "lr_warmup_steps", "warmup_steps", "lr_rampup_kimg"), "learning_rate.warmup_images"),
    **dict.fromkeys(("noise_schedule", "beta_schedule", "noise_scheduler"), "schedule"),
    **dict.fromkeys(("prediction_type", "parameterization", "pred_type", "precond"), "denoiser"),
    **dict.fromkeys(("loss", "loss_type"), "objective"),
    **dict.fromkeys(("model", "arch", "backbone", "unet"), "network"),
    **dict.fromkeys(("use_ema", "ema.use"), "ema"),
    **dict.fromkeys(("ema.ema_decay", "ema_rate"), "ema_decay"),
    **dict.fromkeys(("cond_drop_prob", "class_dropout_prob", "cfg_dropout", "p_uncond"), "condition_dropout"),
    **dict.fromkeys(("save_every", "checkpointing_steps", "save_and_sample_every", "snap"), "checkpoint_every"),
    **dict.fromkeys(("optim", "optimiser"), "optimizer"),
    **dict.fromkeys(("loggers", "report_to", "log_with", "tracker", "wandb"), "logger"),
    **dict.fromkeys(("wandb_project", "project_name", "experiment_name", "tracker_project_name"), "project"),
    **dict.fromkeys(("wandb.project", "logger.project", "logger.name", "run_name"), "project"),
    **dict.fromkeys(("verbose", "silent", "trainer.progress_bar_refresh_rate", "trainer.weights_summary"), "quiet"),
    **dict.fromkeys(("trainer.amp_backend", "trainer.amp_level"), "trainer.precision"),
    **dict.fromkeys(("trainer.auto_lr_find",), "lr"),
    **dict.fromkeys(("trainer.auto_scale_batch_size",), "batch_size"),
    **dict.fromkeys(("trainer.checkpoint_callback",), "checkpoint_every"),
}
DRAW_WORDS = {
    **dict.fromkeys(("gpus", "num_gpus", "gpu", "num_processes", "nproc_per_node", "trainer.devices"), "devices"),
    **dict.fromkeys(("device", "trainer.accelerator"), "accelerator"),
    **dict.fromkeys(("batch", "batchsize", "bs", "eval_batch_size", "max_batch_size"), "batch_size"),
    **dict.fromkeys(("num_samples", "num_images", "n_samples", "count", "num"), "n"),
    **dict.fromkeys(("checkpoint", "ckpt_path", "model", "model_path", "pretrained", "network_pkl", "run"), "ckpt"),
    **dict.fromkeys(
        ("num_inference_steps", "num_steps", "sampling_timesteps", "sampling_steps", "ddim_steps"), "steps"
    ),
    **dict.fromkeys(("max_steps", "nfe", "sample_steps", "timestep_respacing"), "steps"),
    **dict.fromkeys(("output", "outdir", "output_dir", "output_path", "save_path"), "out"),
    **dict.fromkeys(("out_dir", "outfile", "filename", "file", "gif", "save_dir"), "out"),
    **dict.fromkeys(("solver", "scheduler", "method"), "sampler"),
    **dict.fromkeys(("guidance_scale", "guidance_weight", "cfg_scale", "cfg", "cond_scale", "w"), "guidance"),
    **dict.fromkeys(("class", "class_label", "class_labels", "classes", "labels", "class_idx"), "label"),
    **dict.fromkeys(("ddim_eta",), "eta"),
    **dict.fromkeys(("seeds", "generator"), "seed"),
    **dict.fromkeys(("image", "init_image"), "init"),
    **dict.fromkeys(("mask_image",), "mask"),
    **dict.fromkeys(("strength",), "t_start"),
    **dict.fromkeys(("use_ema",), "weights"),
    **dict.fromkeys(("metrics", "features"), "extractors"),
    **dict.fromkeys(("reference", "real", "ref_path", "dataset_name"), "dataset"),
}
COMPARE_WORDS = {
    **dict.fromkeys(("run", "ckpt", "ckpts", "folders", "checkpoints", "results", "models", "sweep"), "runs"),
    **dict.fromkeys(("sampler", "solver", "solvers", "methods", "scheduler"), "samplers"),
    **dict.fromkeys(("metrics", "metric", "columns", "score"), "scores"),
    **dict.fromkeys(("output", "outdir", "output_dir", "table"), "out"),
    **dict.fromkeys(("num_samples", "num_images", "n_samples", "count"), "n"),
}
WORDS = {
    "train": TRAIN_WORDS, "sample": DRAW_WORDS, "evaluate": DRAW_WORDS, "export": DRAW_WORDS, "compare": COMPARE_WORDS
}  # fmt: skip
# Names that other projects and papers have for a choice, as `_letters` writes them -> the choice here.
CHOICES = {
    "dataset": {
        **dict.fromkeys(("cifar10", "cifar100"), "cifar"),
        **dict.fromkeys(("fmnist", "fashionmnist", "mnistfashion"), "fashion"),
        **dict.fromkeys(("images", "imagefolder", "photos", "custom", "celeba", "ffhq", "lsun", "imagenet"), "folder"),
        **dict.fromkeys(("hf", "datasets"), "huggingface"),
        **dict.fromkeys(("twomoons", "makemoons"), "moons"),
    },
    "experiment": {
        "cifar": "fast_cifar", "cifar10": "fast_cifar", "fashion": "fast_fashion", "fashionmnist": "fast_fashion",
        "digits": "fast_digits", "mnist": "fast_mnist", "photos": "fast_folder", "images": "fast_folder",
        "distillation": "few_step_matching", "dmd": "few_step_matching",
        "vp": "vp_sde", "ve": "ve_sde", "subvp": "subvp_sde", "flowmatching": "flow", "rectifiedflow": "flow",
        "dit": "dit_fashion", "latent": "latent_fashion", "autoencoder": "autoencoder_fashion",
        "consistency": "few_step", "ect": "few_step", "fast": "fast_fashion",
    },
    "schedule": {
        "scaledlinear": "quadratic", "squaredcoscapv2": "cosine", "vpsde": "vp", "vesde": "ve", "subvpsde": "sub_vp",
        **dict.fromkeys(("flowmatching", "rectifiedflow"), "flow"),
        **dict.fromkeys(("edm", "karras"), "variance_exploding"),
    },
    "denoiser": {
        **dict.fromkeys(("epsilon", "noise", "prednoise"), "eps"),
        **dict.fromkeys(("vprediction", "velocity", "predv"), "v"),
        **dict.fromkeys(("sample", "xstart", "predx0"), "x0"),
        **dict.fromkeys(("rectifiedflow", "flowmatching"), "flow"),
        "karras": "edm",
    },
    "objective": {
        **dict.fromkeys(("mse", "l2", "ddpm"), "simple"), "edm": "lognormal", "sd3": "logit_normal", "kl": "vlb",
        **dict.fromkeys(("minsnrgamma", "snr"), "min_snr"), "ect": "consistency", "dmd": "matching",
    },
    "network": {
        **dict.fromkeys(("unet2d", "unet2dmodel", "ddpm", "ddpmpp", "adm"), "unet"),
        **dict.fromkeys(("transformer", "vit", "dits", "dits2"), "dit"),
    },
    "optimizer": {"adam": "adamw"},
    "ema": {
        **dict.fromkeys(("true", "on", "yes"), "exponential"), **dict.fromkeys(("false", "off", "no"), "none"),
        **dict.fromkeys(("edm2", "karras", "posthoc"), "power"),
    },
    "sampler": {
        **dict.fromkeys(("eulera", "eulerancestral", "keulera", "keulerancestral"), "euler_ancestral"),
        **dict.fromkeys(("keuler", "eulerdiscrete"), "euler"), **dict.fromkeys(("kheun", "heun2"), "heun"),
        **dict.fromkeys(("dpmpp", "dpmsolver", "dpmsolverpp", "dpm", "dpmpp2", "dpmsolvermultistep"), "dpmpp_2m"),
        **dict.fromkeys(("dpmppsde", "dpmsde"), "dpmpp_2m_sde"), **dict.fromkeys(("pndm", "plms"), "ipndm"),
        **dict.fromkeys(("lcm", "cm", "ect"), "consistency"), "edm": "churn", "pc": "predictor_corrector",
        **dict.fromkeys(("rk45", "dopri5", "ode"), "adaptive"), "em": "euler_maruyama", "ald": "annealed_langevin",
    },
    "grid": {"edm": "karras", "logsnruniform": "log_snr", "lambda": "log_snr", "linspace": "uniform"},
    "trainer": {"cuda": "gpu", "cpu": "default", "auto": "default"},
}  # fmt: skip
# Choices of Hydra's own groups -> the package that brings them.
PLUGINS = {
    ("hydra.launcher", "joblib"): "hydra-joblib-launcher",
    **{("hydra.launcher", f"submitit_{where}"): "hydra-submitit-launcher" for where in ("local", "slurm")},
    ("hydra.sweeper", "optuna"): "hydra-optuna-sweeper",
}
# Names for where a run is written.
FOLDERS = ("out", "outdir", "output_dir", "log_dir", "logdir", "save_dir", "run_dir", "results_folder", "workspace")
# Settings that another script or project has, and what serves the purpose here.
INSTEAD = {
    ("train", "ckpt"): "to go on with a run, resume=...; to begin with its weights, init_from=...",
    **dict.fromkeys((("train", name) for name in FOLDERS), "a run's folder is lightning_logs/<dataset>/version_N"),
    ("sample", "dataset"): "ckpt=... names a model, and a model draws the data that it was trained on",
    ("evaluate", "label"): "a class-conditional model is scored on the labels of the data",
}


# Dashes and quotation marks of text processors -> those of a keyboard.
TYPOGRAPHIC = str.maketrans("\u2010\u2011\u2012\u2013\u2014\u2212\u201c\u201d\u201e\u2018\u2019", '------"""\'\'')


def _letters(name: str) -> str:
    """A name without case and marks: `DPM++ 2M` and `dpmpp_2m` are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("+", "p"))


def choice(group: str, name: str, choices: Iterable[str]) -> str | None:
    """The choice of a group that another spelling or another project's name stands for; None if nobody knows it."""
    letters = _letters(name.removesuffix(".yaml"))
    spelled = {_letters(own): own for own in choices}
    return spelled.get(letters) or CHOICES.get(group, {}).get(letters)


def script(name: str) -> str:
    """`train.py`, or `lightning-diffusion train` where the project is installed as a package."""
    return f"lightning-diffusion {name}" if __package__ else f"{name}.py"


def command(name: str) -> str:
    """How a script is called: `python train.py`, or `lightning-diffusion train`."""
    return script(name) if __package__ else f"python {script(name)}"


def home(name: str, script: str, settings_of: Callable[[str], Iterable[str]]) -> str | None:
    """Where a setting that `script` does not have belongs, as a sentence; None if nobody knows it.

    Args:
        name: what was typed before the `=`.
        script: train, sample, evaluate, export or compare.
        settings_of: the settings and groups of a script.
    """
    own = set(settings_of(script))
    others = [other for other in WORDS if other != script and name in set(settings_of(other))]
    if len(others) > 1:  # compare.py hands what it shares with others on to them
        others = [other for other in others if other != "compare"]
    word = WORDS[script].get(name)
    if (script, name) in INSTEAD:
        here = INSTEAD[script, name]
        return f"it belongs to {_scripts(others)}; here, {here}" if others else here
    if word in own:
        return f"write {word}=..."
    if others:
        return f"it belongs to {_scripts(others)}"
    for other, words in WORDS.items():
        if words.get(name) in set(settings_of(other)):
            return f"write {words[name]}=... with {_scripts([other])}"
    return None


def cut_at_spaces(arguments: Sequence[str], i: int, paths: Container[str]) -> str | None:
    """`dataset.path=My photos` as it was meant, if argument i is a word of such a path that is there.

    Args:
        arguments: all that were typed.
        i: the number of one without `=`.
        paths: names of the settings that are paths.
    """
    begin = max((k for k in range(i) if "=" in arguments[k]), default=i)
    end = next((k for k in range(i, len(arguments)) if re.match("-|.*=", arguments[k])), len(arguments))
    name, _, path = " ".join(arguments[begin:end]).partition("=")
    return f"{name}={pasted(path)}" if name in paths and path and is_there(expanded(path)) else None


def _scripts(names: Iterable[str]) -> str:
    files = [script(name) for name in names]
    return " and ".join([", ".join(files[:-1]), files[-1]] if len(files) > 1 else files)
