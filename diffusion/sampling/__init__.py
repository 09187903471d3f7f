"""Sampling from a trained model: behind `sample.py`, or in three lines of a notebook:

    from diffusion.sampling import Pipeline
    pipeline = Pipeline.load("lightning_logs/digits/version_0")
    images = pipeline.sample(16, seed=1)

gives (16, 1, 8, 8) in [-1, 1].
"""

from diffusion.sampling.pipeline import Pipeline

__all__ = ["Pipeline"]
