"""Denoising diffusion: schedules, denoisers, objectives and samplers, and the Lightning code that trains them."""
