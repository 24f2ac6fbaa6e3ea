"""What a terminal, a pipe or a folder may break: each ends in a sentence, none in a traceback."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hetkern.training import TrainConfig, UserError, load, sample, train
from hetkern.training.progress import TrainingProgress, carried
from hetkern.training.session import saved_step

ROOT = Path(__file__).parents[1]
WORDS = "naïve café — “ja”, sagte der Bär 東京 😀\n"
TINY = {
    "kernels": "torch", "layers": 1, "heads": 1, "width": 16, "context": 16, "batch_size": 2,
    "steps": 4, "warmup": 1, "sample_length": 20, "threads": 1, "tokens": "characters",
}  # fmt: skip


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "text.txt").write_text(WORDS * 40, encoding="utf-8")
    return TINY | {"data": str(tmp_path / "text.txt"), "out": str(tmp_path / "run")}


class Stream(io.TextIOWrapper):
    """A stream of one encoding, that says whether it is a terminal."""

    def __init__(self, encoding, terminal=False):
        super().__init__(io.BytesIO(), encoding=encoding)
        self.terminal = terminal

    def isatty(self):
        return self.terminal

    def text(self):
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_training_from_python_writes_to_any_stream(settings, monkeypatch, encoding, terminal):
    monkeypatch.setenv("TERM", "xterm")
    stream = Stream(encoding, terminal)
    monkeypatch.setattr(sys, "stdout", stream)
    result = train(TrainConfig(**settings))
    shown = stream.text()
    assert carried(result.sample, stream) in shown.replace("\r", "")
    assert "The run is in" in shown and "bits per byte" in shown


def test_a_closed_standard_output_is_no_error(settings, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert train(TrainConfig(**settings)).steps == 4


class Broken(io.StringIO):
    def __init__(self, lines):
        super().__init__()
        self.lines = lines

    def write(self, text):
        self.lines -= text.count("\n")
        if self.lines < 0:
            raise BrokenPipeError(32, "Broken pipe")
        return len(text)


def test_an_output_that_breaks_stops_the_run_and_keeps_its_weights(settings, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Broken(lines=7))  # five lines before the first step
    message = r"the output cannot be written \(Broken pipe\): stopped; the weights of step \d are"
    with pytest.raises(UserError, match=message):
        train(TrainConfig(**settings))
    assert 1 <= saved_step(Path(settings["out"])) < 4
    assert load(settings["out"]).model is not None


def test_paths_that_are_no_utf8_are_read_written_and_shown(settings, tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    os.mkdir(folder)
    os.rename(settings["data"], folder + "/text.txt")
    stream = io.StringIO()
    run = train(TrainConfig(**settings | {"data": folder, "out": folder + "/run"})).run
    model, tokenizer, _ = load(run)
    assert saved_step(run) == 4
    assert len(sample(model, tokenizer, "n", length=5)) == 6
    TrainingProgress(1, 1, stream).say(f"run {run}")
    assert stream.getvalue() == f"run {tmp_path}/caf?/run\n"


def test_a_folder_that_cannot_be_made_or_written_is_one_sentence(settings, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"cannot make the folder .*text\.txt/run: Not a directory"):
        train(TrainConfig(**settings | {"out": settings["data"] + "/run"}))
    with pytest.raises(UserError, match=r"cannot write in the folder /proc: "):
        train(TrainConfig(**settings | {"out": "/proc"}))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to("nowhere")  # looked for a free name for ever
    with pytest.raises(UserError, match="cannot make the folder runs/gpt: File exists"):
        train(TrainConfig(**settings | {"out": None}))


def run_main(code, environment, stdout=subprocess.PIPE):
    """``code`` after the command's module was loaded under its own name, outside the package."""
    load_module = f"""
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("hetkern_cli", {str(ROOT / "hetkern" / "cli.py")!r})
cli = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cli)
"""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "OMP_", "KMP_"))}
    return subprocess.run(
        [sys.executable, "-P", "-c", load_module + code],
        env=kept | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=stdout, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "10000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
        ({"KMP_BLOCKTIME": "3"}, {"KMP_BLOCKTIME": "3"}),
    ],
)
def test_the_spin_is_set_before_torch_is_loaded_unless_the_user_set_one(environment, expected):
    code = """
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "hetkern"):
            print({k: v for k, v in os.environ.items() if k.startswith(("GOMP_", "OMP_", "KMP_"))})
            sys.stdout.flush()
            os._exit(0)
sys.meta_path.insert(0, Watch())
assert "torch" not in sys.modules
sys.argv = ["hetkern", "doctor"]
cli.main()
"""
    done = run_main(code, environment)
    assert done.stdout.decode().strip() == str(expected), done.stderr.decode()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252:strict"])
def test_the_commands_streams_replace_what_they_cannot_carry(encoding):
    code = r"""
@cli.app.command()
def show():
    print("B\xe4r \u6771 \udce9")
    print("B\xe4r \u6771 \udce9", file=sys.stderr)
sys.argv = ["hetkern", "show"]
cli.main()
"""
    done = run_main(code, {"PYTHONIOENCODING": encoding})
    assert done.returncode == 0, done.stderr
    assert done.stdout in (b"B?r ? ?\n", b"B\xe4r ? ?\n")
    assert b"\\u6771 \\udce9" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_under_the_output_is_one_line():
    with open("/dev/full", "wb") as full:
        done = run_main("sys.argv = ['hetkern', 'train', '--help']; cli.main()", {}, stdout=full)
    assert done.returncode == 2
    assert done.stderr == b"hetkern: [Errno 28] No space left on device\n"
