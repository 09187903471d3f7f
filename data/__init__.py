"""Data sets, the training stream and the Lightning data module. Nothing here knows of diffusion."""
