"""The command ``hetkern``: train, resume, eval, sample, predict, plot, verify, profile, doctor.

This file is installed as the top-level module ``hetkern_cli``, beside the package and not in it:
importing the package loads torch and the kernels, two seconds that ``hetkern --help`` must not pay.
So nothing here imports hetkern before a command runs; the flags of ``train`` come from
``training/config``, which needs only the standard library and is read by its place on disk. What
the commands do is in ``training/commands.py``.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

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


@app.callback(epilog="Example: hetkern train, and then hetkern sample runs/gpt-001")
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Say which.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train small language models on hetkern's kernels."""


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
        from hetkern.training.launch import StoppedAll

        if not isinstance(error, StoppedAll):
            _say(str(error) or "stopped", stopped=True)
        raise typer.Exit(130) from error
    except BrokenPipeError:
        raise  # `hetkern … | head`: typer exits quietly
    except typer.Exit:
        raise
    except Exception as error:
        from hetkern.training.commands import sentence

        line = None if debug else sentence(error)
        if line is None:
            raise
        _drop_unwritable_output()
        if line:
            _say(line)
        else:
            time.sleep(3)  # the process that knows why ends first, and is heard
        raise typer.Exit(2) from error


def _say(line: str, stopped: bool = False) -> None:
    """Say a sentence, or leave it to the process that launched this one and others."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from hetkern.training.launch import report_failure

        if report_failure(line, stopped):
            return
    print(f"hetkern: {line}", file=sys.stderr)


def _drop_unwritable_output() -> None:
    """Do not try again at exit what standard output did not take: that would be a traceback."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_config = _config_module()
_flags_of = importlib.import_module(f"{_config.__name__}.flags").flags_of
train_app = typer.Typer(
    invoke_without_command=True,
    epilog="Example: hetkern train --data book.txt --steps 3000 --out runs/book",
)
app.add_typer(train_app, name="train")


def _train(task: str, config: str | None, debug: bool, flags: dict[str, Any]) -> None:
    given = {name: value for name, value in flags.items() if value is not None}
    with _clean_errors(debug):
        from hetkern.training import commands

        commands.train(task, config, given, __file__)


@train_app.callback()
@_flags_of(_config.CONFIGS["lm"])
def train(called: typer.Context, config: str | None, debug: bool, **flags: Any) -> None:
    """Train a language model on any text; with no flags, on Python's own source."""
    if called.invoked_subcommand is None:
        _train("lm", config, debug, flags)
    elif config is not None or any(value is not None for value in flags.values()):
        print(f"hetkern: flags go behind {called.invoked_subcommand}", file=sys.stderr)
        raise typer.Exit(2)


_TASKS = {  # what the help says, and an example
    "lm": ("Train a language model, as `hetkern train` alone does.", "lm --data book.txt"),
    "classify": ("Train a classifier of texts.", "classify --data reviews.tsv --epochs 5"),
}


def _add_task(task: str, config_class: Any) -> None:
    @_flags_of(config_class)
    def command(config: str | None, debug: bool, **flags: Any) -> None:
        _train(task, config, debug, flags)

    command.__doc__, example = _TASKS[task]
    train_app.command(name=task, epilog=f"Example: hetkern train {example}")(command)


for _task, _config_class in _config.CONFIGS.items():
    _add_task(_task, _config_class)

Run = Annotated[str, typer.Argument(help="Folder of a run")]
Checkpoint = Annotated[str, typer.Option(help="Which one: last, best or a step")]
KernelsFlag = Annotated[
    str | None, typer.Option(help="As for train (default: those it was trained with)")
]
Device = Annotated[str | None, typer.Option(help="As for train (default: that of the run)")]
Nproc = Annotated[str | None, typer.Option(help="Processes, or gpu (default: those of the run)")]
BatchSize = Annotated[
    int | None, typer.Option(help="Sequences at a time (default: the run's)", min=1)
]


@app.command(epilog="Example: hetkern resume runs/gpt-001")
def resume(
    run: Run,
    checkpoint: Checkpoint = "last",
    steps: Annotated[int | None, typer.Option(help="Train to this step instead", min=1)] = None,
    epochs: Annotated[int | None, typer.Option(help="Train to this epoch instead", min=1)] = None,
    device: Device = None,
    nproc: Nproc = None,
    debug: Debug = False,
) -> None:
    """Go on with a run that was stopped or killed: the end is the one it would have had."""
    with _clean_errors(debug):
        from hetkern.training import commands

        changes = {"steps": steps, "epochs": epochs, "device": device, "nproc": nproc}
        commands.resume(run, checkpoint, changes, __file__)


@app.command("eval", epilog="Example: hetkern eval runs/gpt-001 --checkpoint best")
def evaluate(
    run: Run,
    split: Annotated[str, typer.Option(help="val or train")] = "val",
    checkpoint: Checkpoint = "last",
    batch_size: BatchSize = None,
    floors: Annotated[bool, typer.Option(help="Also what simple methods reach")] = True,
    json: Annotated[bool, typer.Option("--json", help="One JSON object")] = False,
    kernels: KernelsFlag = None,
    device: Device = None,
    nproc: Nproc = None,
    debug: Debug = False,
) -> None:
    """Measure a trained model on a whole split, each target once."""
    with _clean_errors(debug):
        from hetkern.training import commands

        changes = {
            "batch_size": batch_size, "kernels": kernels, "device": device, "nproc": nproc,
        }  # fmt: skip
        commands.evaluate(run, split, checkpoint, floors, json, changes, __file__)


@app.command(epilog='Example: hetkern sample runs/gpt-001 --prompt "def " --top-p 0.9')
def sample(
    run: Run,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Text to continue; several times for several texts")
    ] = None,
    length: Annotated[int, typer.Option(help="Tokens to write", min=0)] = 400,
    temperature: Annotated[
        float, typer.Option(help="Below 1 keeps to the likely; 0 takes the likeliest", min=0)
    ] = 0.8,
    top_k: Annotated[int, typer.Option(help="Draw from the k likeliest; 0 from all", min=0)] = 0,
    top_p: Annotated[
        float, typer.Option(help="Draw from the likeliest that reach this probability", max=1)
    ] = 1.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1, what was there becomes less likely")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Same seed, same text", min=0, max=(1 << 63) - 1)] = 1,
    cache: Annotated[bool, typer.Option(help="Keep keys and values; the text is the same")] = True,
    checkpoint: Checkpoint = "last",
    kernels: KernelsFlag = None,
    debug: Debug = False,
) -> None:
    """Let a trained model continue a prompt, or several."""
    with _clean_errors(debug):
        from hetkern.training import commands

        how = (temperature, top_k, top_p, repetition_penalty)
        commands.sample(run, prompt or ["\n"], length, how, seed, cache, checkpoint, kernels)


@app.command(epilog='Example: hetkern predict runs/rnn-001 "What a film!"')
def predict(
    run: Run,
    text: Annotated[
        list[str] | None, typer.Argument(help="Texts; - reads one a line from standard input")
    ] = None,
    input: Annotated[
        str | None, typer.Option("--input", metavar="FILE", help="A text a line")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON lines, not tab-separated")] = False,
    batch_size: BatchSize = None,
    checkpoint: Checkpoint = "last",
    kernels: KernelsFlag = None,
    debug: Debug = False,
) -> None:
    """Label texts: label, probability and text, a line each."""
    with _clean_errors(debug):
        from hetkern.training import commands

        commands.predict(run, text or [], input, json, batch_size or 64, checkpoint, kernels)


@app.command(epilog="Example: hetkern plot runs/gpt-001 runs/gpt-002 --out curves.png")
def plot(
    runs: Annotated[list[str], typer.Argument(help="Folders of runs")],
    out: Annotated[
        str | None, typer.Option(help="PNG file (default: curves.png in the first run)")
    ] = None,
    debug: Debug = False,
) -> None:
    """Draw the loss curves of runs, and the confusion matrix of a classifier."""
    with _clean_errors(debug):
        from hetkern.training import commands

        commands.plot(runs, out)


@app.command(epilog="Example: hetkern verify")
def verify(
    only: Annotated[
        list[str] | None, typer.Option(help="Only this check; several times for several")
    ] = None,
    device: Annotated[str, typer.Option(help="As for train")] = "auto",
    debug: Debug = False,
) -> None:
    """Prove on this machine that resume, accumulation, processes, cache and kernels agree."""
    with _clean_errors(debug):
        from hetkern.training import commands

        if not commands.verify(only or [], device, __file__):
            raise typer.Exit(1)


@app.command(epilog="Example: hetkern profile runs/gpt-001 --steps 10")
def profile(
    run: Run,
    steps: Annotated[int, typer.Option(help="Training steps to look at", min=1)] = 5,
    kernels: KernelsFlag = None,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Time a run's training steps op by op: a table here, a trace in the run's folder."""
    with _clean_errors(debug):
        from hetkern.training import commands

        commands.profile(run, steps, {"kernels": kernels, "device": device})


@app.command(epilog="Example: hetkern doctor")
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
        sys.exit(app(prog_name="hetkern", standalone_mode=False))
    except OSError as error:  # `hetkern --help > /dev/full`
        if "--debug" in sys.argv:
            raise
        _drop_unwritable_output()
        print(f"hetkern: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        _say_usage(error)
        sys.exit(2)


def _say_usage(error: Any) -> None:
    """A wrong flag in one line. Which click raises it is typer's affair."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "hetkern"
    said = " ".join(error.format_message().split()).rstrip(".")
    print(f"hetkern: {said}; {command} --help lists what there is", file=sys.stderr)


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
