"""The command ``hetkern``: train, sample, doctor.

This file is installed as the top-level module ``hetkern_cli``, beside the package and not in it:
importing the package loads torch and the kernels, two seconds that ``hetkern --help`` must not pay.
So nothing here imports hetkern before a command runs; the flags of ``train`` come from
``training/config.py``, which needs only the standard library and is read by its place on disk.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import inspect
import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_args, get_type_hints

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# What an OpenMP library reads about how its threads wait for one another.
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_LIBRARY")
SHORT_SPIN = {"GOMP_SPINCOUNT": "10000"}  # measured: docs/train.md
_set_by_us: dict[str, str] = {}

Debug = Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"hetkern {importlib.metadata.version('hetkern')}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Say which.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train small language models on hetkern's kernels."""


ConfigFile = Annotated[
    str | None, typer.Option("--config", metavar="FILE", help="TOML file of settings; flags win")
]


def _flags_of_train_config(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with one flag for each field of TrainConfig; None where it is not given."""
    config_class = _config_module().TrainConfig
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
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in flags.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {name: kind for name, (kind, _) in flags.items()}
    return command


def _config_module() -> ModuleType:
    """``hetkern.training.config`` as a module of its own, the package not imported."""
    package = importlib.util.find_spec("hetkern")
    assert package is not None and package.submodule_search_locations
    # An editable install has two folders: one with the sources, one with the built library.
    folders = package.submodule_search_locations
    paths = [Path(folder, "training", "config", "__init__.py") for folder in folders]
    path = next(path for path in paths if path.exists())
    spec = importlib.util.spec_from_file_location(
        "hetkern_cli_config", path, submodule_search_locations=[str(path.parent)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _clean_errors(debug: bool) -> Iterator[None]:
    """Turn what the user can mend into one line and an exit status: 2, or 130 after Ctrl-C."""
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()  # here a full disk is still an error like another
    except KeyboardInterrupt as error:
        print(f"hetkern: {error or 'stopped'}", file=sys.stderr)
        raise typer.Exit(130) from error
    except BrokenPipeError:
        raise  # `hetkern … | head`: typer exits quietly
    except Exception as error:
        from hetkern.training import UserError

        if debug or not isinstance(error, UserError | OSError):
            raise
        _drop_unwritable_output()
        print(f"hetkern: {error}", file=sys.stderr)
        raise typer.Exit(2) from error


def _drop_unwritable_output() -> None:
    """Do not try again at exit what standard output did not take: that would be a traceback."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@app.command()
@_flags_of_train_config
def train(config: str | None, debug: bool, **flags: Any) -> None:
    """Train a language model on any text; with no flags, on Python's own source."""
    given = {name: value for name, value in flags.items() if value is not None}
    with _clean_errors(debug):
        from hetkern import training

        if config is None:
            settings = training.TrainConfig.from_values(given)
        else:
            settings = training.TrainConfig.from_file(config, **given)
        training.train(settings)


@app.command()
def sample(
    run: Annotated[str, typer.Argument(help="Folder of a trained run")],
    prompt: Annotated[str, typer.Option(help="Text to continue")] = "\n",
    length: Annotated[int, typer.Option(help="Tokens to write", min=0)] = 400,
    temperature: Annotated[
        float, typer.Option(help="Below 1 keeps to the likely; 0 takes the likeliest", min=0)
    ] = 0.8,
    top_k: Annotated[int, typer.Option(help="Draw from the k likeliest; 0 from all", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Same seed, same text", min=0)] = 1,
    kernels: Annotated[
        str | None, typer.Option(help="As for train (default: those it was trained with)")
    ] = None,
    debug: Debug = False,
) -> None:
    """Let a trained model continue a prompt."""
    with _clean_errors(debug):
        from hetkern import training

        loaded = training.load(run, kernels)
        text = training.sample(
            loaded.model,  # type: ignore[arg-type]
            loaded.tokenizer,
            prompt,
            length,
            temperature,
            top_k,
            seed,
        )
        print(text)


@app.command()
def doctor(debug: Debug = False) -> None:
    """Say what is built, what can run on this machine, and why the rest cannot."""
    with _clean_errors(debug):
        import hetkern

        report = hetkern.doctor()
        if _set_by_us:
            report["waiting"] += ", set by this command: a setting of yours stays"
        print(report)


def main() -> None:
    """Entry point of the console script."""
    _forgive_streams()
    _wait_briefly()
    try:
        app(prog_name="hetkern")
    except OSError as error:  # `hetkern --help > /dev/full`
        if "--debug" in sys.argv:
            raise
        _drop_unwritable_output()
        print(f"hetkern: {error}", file=sys.stderr)
        sys.exit(2)


def _forgive_streams() -> None:
    """Replace what the encoding of a terminal or a pipe lacks, instead of raising."""
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):  # None if it is closed
            stream.reconfigure(errors=errors)


def _wait_briefly() -> None:
    """Let OpenMP's threads spin for some microseconds only, unless the user chose how they wait.

    By default a thread that waits for another spins for milliseconds, and on a busy machine the
    one that it waits for has no processor meanwhile. libgomp reads this when torch loads it.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ.update(SHORT_SPIN)
        _set_by_us.update(SHORT_SPIN)


if __name__ == "__main__":
    main()
