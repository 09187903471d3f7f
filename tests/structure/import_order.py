"""The rooms of the project, which `test_imports.py` holds to and docs/pictures/rooms.py draws."""

# The rooms of diffusion/ from the bottom up: a module imports what stands in lines above its own, before its room in
# the same line, or in its room.
ROOMS = (
    "ranges build",
    "schedules noise networks terminal settings machine media optimizers",
    "forward trainable",
    "denoisers",
    "ode guidance",
    "samplers likelihood",
    "objectives",
    "models",
    "exchange",
    "runs",
    "sampling",
    "evaluation",
    "exports",
    "training",
)
