"""Dataclasses of settings: each field a flag, a key of a TOML file and a line of help."""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_args, get_type_hints


class UserError(ValueError):
    """Something that whoever started the run can mend; the message is one clear sentence."""


def setting(default: Any, help: str, shown: str | None = None) -> Any:
    """A field with its help, which says its default as ``shown``."""
    shown = shown if shown is not None else str(default)
    return field(default=default, metadata={"help": f"{help} (default: {shown})"})


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The keys of a TOML file.

    Raises:
        UserError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the config {path}: {error.strerror}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise UserError(f"{path} is not a TOML file: {error}") from error


@dataclass(frozen=True)
class Settings:
    """What every config can do; a subclass has the fields.

    Raises:
        UserError: a value has the wrong type or lies out of range.
    """

    TASK: ClassVar[str]
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # settings by name
    RENAMED: ClassVar[Mapping[str, str]] = {"batch": "batch_size"}  # numbers; still taken

    def __post_init__(self) -> None:
        """Check every value against its type, and those that have limits against them."""
        for name, kind in _kinds(type(self)).items():
            value = _converted(name, getattr(self, name), kind)
            if value == "":  # a shell's empty variable; as a path it would be this folder
                raise UserError(f"{name} must not be empty")
            object.__setattr__(self, name, value)
        self.check()

    def check(self) -> None:
        """Refuse values that are out of range."""

    if not TYPE_CHECKING:  # which shall go on to refuse any other name

        def __getattr__(self, name: str) -> Any:
            """What a setting had as its former name: the setting."""
            if (new := type(self).RENAMED.get(name)) is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            return getattr(self, new)

    @classmethod
    def from_values(cls, values: Mapping[str, Any], source: str = "settings") -> Self:
        """A config from ``values`` by name, then the preset that they name, then the defaults.

        Raises:
            UserError: a name is no setting; the message carries the nearest one.
        """
        names = [f.name for f in fields(cls)]
        given = {}
        for key, value in values.items():
            name = cls.RENAMED.get(key, key)
            if name == "task" and value == cls.TASK:
                continue
            if name not in names:
                near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(names)}"
                raise UserError(f"{source}: unknown key {key!r}; {hint}")
            given[name] = value
        preset = given.get("preset")
        if preset is not None and preset not in cls.PRESETS:
            known = ", ".join(cls.PRESETS) or "none"
            raise UserError(f"there is no preset {preset!r} for {cls.TASK}; there are: {known}")
        return cls(**{**cls.PRESETS.get(preset or "", {}), **given})

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], **flags: Any) -> Self:
        """A config from the TOML file at ``path``; what is in ``flags`` goes before it.

        Raises:
            UserError: the file cannot be read, is not TOML, or a key in it is unknown.
        """
        values = {key.replace("-", "_"): value for key, value in read_toml(path).items()}
        values = {cls.RENAMED.get(key, key): value for key, value in values.items()}
        return cls.from_values(values | flags, source=str(path))

    def to_toml(self) -> str:
        """The task and the settings as TOML that ``from_file`` reads back.

        Unset ones are left out. So is ``out``: a run from this file gets a folder of its own.
        """
        lines = [f'task = "{self.TASK}"\n']
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None and f.name != "out":
                # JSON's strings, integers and finite floats are TOML's, but for the DEL character.
                text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
                lines.append(f"{f.name} = {text}\n")
        return "".join(lines)

    def at_least(self, least: int, *names: str) -> None:
        """Refuse the settings called ``names`` below ``least``, NaN and infinity."""
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, int | float):  # a word that stands for a number
                continue
            if not value >= least:  # NaN fails too
                raise UserError(f"{name} must be at least {least}, got {value}")
            if value == float("inf"):
                raise UserError(f"{name} must be finite, got inf")

    def one_of(self, name: str, *wanted: str) -> None:
        """Refuse a setting that is not one of these words."""
        value = getattr(self, name)
        if value not in wanted:
            *most, last = wanted
            words = f"{', '.join(most)} or {last}" if most else last
            raise UserError(f"{name} must be {words}, got {value!r}")


def _kinds(config: type[Settings]) -> dict[str, Any]:
    kinds = get_type_hints(config)
    return {f.name: kinds[f.name] for f in fields(config)}


def _converted(name: str, value: Any, kind: Any) -> Any:
    """``value`` as the field's type, or an error that says what was wanted."""
    accepted = get_args(kind) or (kind,)
    if value is None and type(None) in accepted:
        return None
    if str in accepted and isinstance(value, os.PathLike):
        return os.fspath(value)
    if float in accepted and type(value) is int:
        return float(value)
    if int in accepted and str in accepted and isinstance(value, str):
        return int(value) if value.isdecimal() else value
    if type(value) in accepted:
        return value
    wanted = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    raise UserError(f"{name} must be {wanted[accepted[0]]}, got {value!r}")
