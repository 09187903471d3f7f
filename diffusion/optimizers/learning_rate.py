"""Warm-up and decay of the learning rate."""

import math


class LearningRate:
    """The factor on the optimizer's peak learning rate, a function of the number of images seen, not of steps.

    A linear warm-up over `warmup_images`; then constant, or a fall to zero at the end of training, linear or as half a
    cosine (Loshchilov & Hutter 2017, arXiv 1608.03983, eq. 5).

    Args:
        warmup_images: length of the warm-up.
        decay: "none", "linear" or "cosine".
    """

    def __init__(self, warmup_images: int = 0, decay: str = "none") -> None:
        if decay not in ("none", "linear", "cosine"):
            raise ValueError(f"decay must be none, linear or cosine, got {decay!r}")
        if warmup_images < 0:
            raise ValueError(f"warmup_images must not be negative, got {warmup_images}")
        self.warmup_images, self.decay = warmup_images, decay

    def __call__(self, images: int, total_images: int | None) -> float:
        """The factor for the step that begins after `images` of `total_images` (None if the end is not known)."""
        if images < self.warmup_images:
            return (images + 1) / (self.warmup_images + 1)
        if self.decay == "none" or total_images is None:
            return 1.0
        progress = min((images - self.warmup_images) / max(total_images - self.warmup_images, 1), 1.0)
        return 1 - progress if self.decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
