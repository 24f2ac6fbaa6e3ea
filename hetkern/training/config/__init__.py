"""What a training run is told: one dataclass a task, filled from a TOML file and then from flags.

These files import nothing but the standard library and each other, relatively. The command reads
its flags from here before it loads torch, so that ``hetkern --help`` answers at once.
"""

from __future__ import annotations

import os
from typing import Any

from .classify import ClassifyConfig
from .common import RunConfig
from .lm import TrainConfig
from .settings import UserError, read_toml

__all__ = [
    "CONFIGS",
    "ClassifyConfig",
    "RunConfig",
    "TrainConfig",
    "UserError",
    "config_from_file",
]

# A task by the name that `hetkern train NAME` takes and that config.toml holds as `task`.
CONFIGS: dict[str, type[RunConfig]] = {"lm": TrainConfig, "classify": ClassifyConfig}


def config_from_file(
    path: str | os.PathLike[str], wanted: str | None = None, **flags: Any
) -> RunConfig:
    """The settings in a TOML file, of the task that it names; of ``wanted`` where it names none.

    Raises:
        UserError: the file cannot be read, is not TOML, or a key in it is unknown; or it names
            another task than ``wanted``, which is not ``lm``.
    """
    task = read_toml(path).get("task", wanted or "lm")
    if task not in CONFIGS:
        raise UserError(f"{path}: task must be one of {', '.join(CONFIGS)}, got {task!r}")
    if wanted not in (None, "lm", task):
        raise UserError(f"{path} has settings of {task!r}, not of {wanted!r}")
    return CONFIGS[task].from_file(path, **flags)
