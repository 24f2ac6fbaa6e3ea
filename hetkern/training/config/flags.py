"""Flags of the command, one for each setting; imported by the command alone, as typer is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, get_args, get_type_hints

import typer

from .common import RunConfig

ConfigFile = Annotated[
    str | None, typer.Option("--config", metavar="FILE", help="TOML file of settings; flags win")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error")]


def flags_of(
    config_class: type[RunConfig],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one flag for each field of a config; None where it is not given."""
    kinds = get_type_hints(config_class)
    flags: dict[str, tuple[Any, Any]] = {"config": (ConfigFile, None)}
    for f in fields(config_class):
        # The default is only described: a flag that is not given must not hide the config file's.
        option = typer.Option(help=f.metadata["help"], show_default=False)
        kind = str if get_args(kinds[f.name]) == (int, str) else kinds[f.name]  # a number or a word
        flags[f.name] = (Annotated[kind | None, option], None)
    for former in config_class.RENAMED:
        flags[former] = (Annotated[str | None, typer.Option(hidden=True)], None)
    flags["debug"] = (Debug, False)

    def mark(command: Callable[..., None]) -> Callable[..., None]:
        parameters = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
            )
            for name, (kind, default) in flags.items()
        ]
        first = list(inspect.signature(command, eval_str=True).parameters.values())[:1]
        context = [p for p in first if p.annotation is typer.Context]
        signature = inspect.Signature([*context, *parameters])
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {name: kind for name, (kind, _) in flags.items()}
        command.__annotations__ |= {p.name: p.annotation for p in context}
        return command

    return mark
