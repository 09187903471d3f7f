"""Denoising diffusion: a core that imports torch alone, and the packages that train, sample and score with it.

The core, in the order in which a reader meets it: `schedules`, `forward`, `denoisers`, `objectives`, `samplers`; then
`guidance`, `ode`, `likelihood`, `models` and `networks`, with `noise` and `ranges` below all of them. A run is put
together by `build`, `settings`, `runs` and `training`; `sampling` and `evaluation` use what it leaves.
docs/architecture.md has the whole.
"""
