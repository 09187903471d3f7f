"""What each command composes anew: the server of `processes` has done it before it forks a run."""

from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra

import cli
from tests.support import composing

composing.read_once()
Hydra.get_mode = lambda *_, **__: None  # as in `scripts.call`
with initialize_config_dir(version_base="1.3", config_dir=str(cli.CONFIGS)):
    compose("train", ["dataset=digits"], return_hydra_config=True)
