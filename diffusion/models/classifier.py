"""Classifiers of noisy data: `p(label | x_t)`, whose gradient steers a model that was trained without labels.

A classifier is trained by the same module as a denoiser, with an objective of its own.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.denoisers import Condition
from diffusion.forward import at_equal_log_snr, noised
from diffusion.noise import Noise
from diffusion.objectives import NOISE, TIME, Objective, Times
from diffusion.schedules import Schedule, expand, float64
from diffusion.trainable import Curve, Trainable


class NoisyClassifier(Trainable):
    """`classifier(x_t, t) -> logits`, (B, K) (Dhariwal & Nichol 2021, arXiv 2105.05233, section 4).

    The network sees `x_t / (alpha_t^2 + sigma_t^2)^(1/2)` and the log-SNR, so that it is a function of the noise level
    and not of a schedule.

    Args:
        network: `network(x, c_noise, cond) -> logits`; its `classes` is K.
        schedule: the noise levels that it is trained at.
    """

    kind = "classifier"

    def __init__(self, network: nn.Module, schedule: Schedule) -> None:
        super().__init__()
        classes = getattr(network, "classes", None)
        if not isinstance(classes, int):
            raise ValueError("a classifier needs a network that tells classes apart")
        if schedule.log_snr(torch.ones((), device="cpu")).isinf():
            raise ValueError("a classifier is undefined at t = 1 on a schedule with zero terminal SNR")
        self.network, self.schedule, self.num_classes = network, schedule, classes

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Logits, (B, K), of x_t (B, *S) at t () or (B,)."""
        alpha, sigma = self.schedule(float64(t))
        x = expand((alpha**2 + sigma**2).rsqrt().to(x_t), x_t) * x_t
        c_noise = (-125 * self.schedule.log_snr(float64(t))).to(x.device, torch.float32).expand(len(x))
        logits: Tensor = self.network(x.to(self.dtype), c_noise, {}).to(x_t.dtype)
        return logits

    def shown(self, x: Tensor, label: Tensor, noise: Noise) -> dict[str, Tensor | Curve]:
        """Its accuracy over noise levels."""
        levels, shares = accuracy_by_level(self, x, label, noise)
        return {
            "accuracy": Curve(levels, shares, "log-SNR, from noise to data", "accuracy", guess=1 / self.num_classes)
        }

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network's weights."""
        return next(self.network.parameters()).dtype


class ClassifierObjective(Objective):
    """Cross-entropy of the labels of noised data, in nats.

    Args:
        times: distribution of the training times.
    """

    trains = NoisyClassifier

    def __init__(self, times: Times) -> None:
        super().__init__()
        self.times = times

    def forward(self, model: NoisyClassifier, batch: Mapping[str, Tensor], noise: Noise) -> dict[str, Tensor]:
        """The loss of each sample, whether it is classified rightly, and its log-SNR: "loss", "accuracy" and "log_snr",
        each (B,)."""
        self.check(model)
        t = self.times(model.schedule, noise.uniform(draw=TIME))
        eps = noise.normal(batch["x"].shape[1:], draw=NOISE)
        logits = model(noised(model.schedule, batch["x"], t, eps), t).float()
        loss = F.cross_entropy(logits, batch["label"], reduction="none")
        accuracy = (logits.argmax(1) == batch["label"]).float()
        return {"loss": loss, "accuracy": accuracy, "log_snr": model.schedule.log_snr(t)}


class LabelLogProb(nn.Module):
    """log p(label | x_t) by a classifier, for `EnergyGuidance`: (B,) in nats.

    A classifier on another schedule is called at equal log-SNR, with x_t rescaled. Outside of the noise levels of its
    training the log-probability is a constant, 0.

    Args:
        classifier: of the same data.
        schedule: that x_t and t belong to.
    """

    def __init__(self, classifier: NoisyClassifier, schedule: Schedule) -> None:
        super().__init__()
        self.classifier, self.schedule = classifier, schedule
        ends = classifier.schedule.log_snr(torch.tensor([1.0, classifier.schedule.t_min], dtype=torch.float64))
        self.lowest, self.highest = ends.tolist()

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        log_snr = self.schedule.log_snr(float64(t))
        logits = self.classifier(*at_equal_log_snr(self.schedule, self.classifier.schedule, x_t, t))
        log_prob = logits.log_softmax(1).gather(1, cond["label"][:, None])[:, 0]
        # A schedule's own ends may differ in their last digits.
        known = (log_snr > self.lowest - 1e-6) & (log_snr < self.highest + 1e-6)
        return torch.where(known.to(x_t.device), log_prob, 0 * log_prob)


@torch.no_grad()
def accuracy_by_level(
    classifier: NoisyClassifier, x: Tensor, label: Tensor, noise: Noise, levels: int = 17
) -> tuple[Tensor, Tensor]:
    """Log-SNRs over the classifier's range, at most from -10 to 10, and the share of x (B, *S) that it classifies
    rightly there; both (levels,)."""
    schedule = classifier.schedule
    ends = schedule.log_snr(torch.tensor([1.0, schedule.t_min], dtype=torch.float64)).clamp(-10, 10)
    log_snrs = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, levels, dtype=torch.float64))
    rights = []
    for step, t in enumerate(schedule.inverse(log_snrs)):
        eps = noise.normal(x.shape[1:], step=step, draw=NOISE)
        right = classifier(noised(schedule, x, t, eps), t).argmax(1) == label
        rights.append(right.double().mean().cpu())
    return log_snrs, torch.stack(rights)
