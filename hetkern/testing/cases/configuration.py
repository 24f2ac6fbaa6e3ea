"""One random configuration: what a seed names."""

from dataclasses import dataclass

import torch

from hetkern.testing.values.check import Case


@dataclass(frozen=True)
class Configuration:
    """One drawn call: what ``check_op`` needs."""

    case: Case
    dtype: torch.dtype
    layout: str
    seed: int

    def __str__(self) -> str:
        """Every argument on one line."""
        shape = tuple(self.case.args[0].shape)
        return f"{self.case.name}, {shape}, {self.dtype}, {self.layout}"
