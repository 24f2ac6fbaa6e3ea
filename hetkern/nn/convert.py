"""Swaps torch's modules for ours inside a model, and back.

A module changes its class and nothing else. So its parameters, buffers, hooks, training flag and
every reference to it stay, a module that stands at two places stays one, and the model itself may
be what is swapped.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from . import attention, modules, recurrent, recurrent_cells

#: torch's class -> ours.
DROP_INS: dict[type[nn.Module], type[modules.Options]] = {
    nn.Softmax: modules.Softmax,
    nn.LogSoftmax: modules.LogSoftmax,
    nn.CrossEntropyLoss: modules.CrossEntropyLoss,
    nn.MultiheadAttention: attention.MultiheadAttention,
    nn.RNN: recurrent.RNN,
    nn.LSTM: recurrent.LSTM,
    nn.GRU: recurrent.GRU,
    nn.RNNCell: recurrent_cells.RNNCell,
    nn.LSTMCell: recurrent_cells.LSTMCell,
    nn.GRUCell: recurrent_cells.GRUCell,
}

#: What has a softmax inside, and no drop-in yet; torch 2.13 has one more than 2.11.
WITHOUT_DROP_IN: tuple[type[nn.Module], ...] = tuple(
    getattr(nn, name)
    for name in ("Softmax2d", "Softmin", "AdaptiveLogSoftmaxWithLoss", "LinearCrossEntropyLoss")
    if hasattr(nn, name)
)

Named = list[tuple[str, nn.Module]]


@dataclass
class Conversion:
    """What :func:`convert` did, by the modules' names in the model; the model itself is ``""``."""

    converted: dict[str, str] = field(default_factory=dict)  #: name -> the class it is now
    left: dict[str, str] = field(default_factory=dict)  #: name -> the class it is, and why

    def __str__(self) -> str:
        """One line a module."""
        lines = [f"{len(self.converted)} converted, {len(self.left)} left"]
        for name, kind in self.converted.items():
            lines.append(f"  {name or '(the model)'}: {kind}")
        for name, why in self.left.items():
            lines.append(f"  {name or '(the model)'}: left as {why}")
        return "\n".join(lines)


def convert(
    model: nn.Module,
    exclude: str | type | Iterable[str | type] = (),
    to: str = "hetkern",
) -> Conversion:
    """Swap torch's modules in ``model`` for ours, in place; ``to="torch"`` swaps ours for torch's.

    Only a module whose class is exactly torch's (or ours, on the way back) is swapped. Calls of
    ``torch.nn.functional`` inside a ``forward`` are not seen: see ``hetkern.nn.functional``.

    Args:
        model: any module; it may itself be what is swapped.
        exclude: what to leave, with everything inside it: names as in ``model.named_modules()``,
            with the wildcards of ``fnmatch``, and classes, subclasses included.
        to: "hetkern" or "torch".

    Returns:
        What was converted, and what was left and why. Modules without a softmax or a recurrence
        are not listed.

    Raises:
        TypeError: ``model`` is not a module, or ``exclude`` holds neither names nor classes.
        ValueError: ``to`` is neither, or a name in ``exclude`` is no module of the model.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"hetkern.nn.convert: model: wanted a torch.nn.Module, got {type(model)}")
    if to not in ("hetkern", "torch"):
        raise ValueError(f"hetkern.nn.convert: to: wanted 'hetkern' or 'torch', got {to!r}")
    swaps: dict[type[nn.Module], type[nn.Module]] = dict(DROP_INS)
    if to == "torch":
        swaps = {ours: torchs for torchs, ours in DROP_INS.items()}

    # A shared module comes once for each of its names; it is left if one of them is excluded.
    named: Named = list(model.named_modules(remove_duplicate=False))
    excluded = _excluded(named, exclude)
    report = Conversion()
    swapped: set[nn.Module] = set()
    for name, module in named:
        if module in swapped:
            report.converted[name] = _class_name(module)
        elif not _concerns(module, swaps, to):
            continue
        elif why := excluded.get(module) or _obstacle(module, swaps):
            report.left[name] = f"{_class_name(module)}, {why}"
        else:
            _swap(module, swaps[type(module)])
            swapped.add(module)
            report.converted[name] = _class_name(module)
    return report


def _concerns(module: nn.Module, swaps: dict[type[nn.Module], type[nn.Module]], to: str) -> bool:
    """Whether the module still computes what the conversion is about in the other library."""
    if to == "hetkern":
        ours = isinstance(module, modules.Options)
        return not ours and isinstance(module, (*swaps, *WITHOUT_DROP_IN))
    return isinstance(module, tuple(swaps))


def _obstacle(module: nn.Module, swaps: dict[type[nn.Module], type[nn.Module]]) -> str | None:
    """Why the module cannot be swapped; None if it can."""
    kind = type(module)
    if isinstance(module, WITHOUT_DROP_IN):
        return "hetkern has no drop-in for it"
    if kind not in swaps:
        base = next(known for known in swaps if isinstance(module, known))
        return f"a subclass of {base.__name__}"
    if "forward" in vars(module):
        return "its forward is replaced on the instance"
    if isinstance(module, modules.Options):
        options = module.chosen_options()
        options.pop("impl", None)  # says nothing of the result
        if options:
            return "torch has no " + ", ".join(f"{name}={v!r}" for name, v in options.items())
        return None
    return DROP_INS[kind].why_not_from(module)


def _swap(module: nn.Module, kind: type[nn.Module]) -> None:
    if isinstance(module, modules.Options):
        for name in module.options:
            vars(module).pop(name, None)
    module.__class__ = kind


def _class_name(module: nn.Module) -> str:
    """``torch.nn.Softmax`` for ``torch.nn.modules.activation.Softmax``, and likewise ours."""
    kind = type(module)
    package = kind.__module__
    for short, inside in (("torch.nn", "torch.nn.modules."), ("hetkern.nn", "hetkern.nn.")):
        if package.startswith(inside):
            package = short
    return f"{package}.{kind.__qualname__}"


def _excluded(named: Named, exclude: str | type | Iterable[str | type]) -> dict[nn.Module, str]:
    """The modules to leave, and by which entry of ``exclude``."""
    wanted = (exclude,) if isinstance(exclude, str | type) else tuple(exclude)
    for entry in wanted:
        if not isinstance(entry, str | type):
            raise TypeError(f"hetkern.nn.convert: exclude: wanted names and classes, got {entry!r}")
    patterns = [entry for entry in wanted if isinstance(entry, str)]
    kinds = [entry for entry in wanted if isinstance(entry, type)]
    for pattern in patterns:
        _check_pattern(pattern, [name for name, _ in named])

    by_name: dict[str, str] = {}
    for name, module in named:  # a module comes after the one that holds it
        holder = name.rpartition(".")[0]
        hits = [f"excluded by {p!r}" for p in patterns if fnmatch.fnmatchcase(name, p)]
        hits += [f"excluded as a {kind.__name__}" for kind in kinds if isinstance(module, kind)]
        if name and holder in by_name:
            hits.append(by_name[holder])
        if hits:
            by_name[name] = hits[0]
    return {module: by_name[name] for name, module in named if name in by_name}


def _check_pattern(pattern: str, names: list[str]) -> None:
    if any(fnmatch.fnmatchcase(name, pattern) for name in names):
        return
    near = difflib.get_close_matches(pattern, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"hetkern.nn.convert: exclude: the model has no module {pattern!r}{hint}")
