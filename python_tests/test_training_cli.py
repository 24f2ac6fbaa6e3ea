"""The command: quick help, a flag for every setting, clean errors, train and sample end to end."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked_command import hetkern

from hetkern.training import TrainConfig

ROOT = Path(__file__).parents[1]
TINY = ("--kernels=torch --layers=1 --heads=1 --width=16 --context=16 --batch=2 --steps=4 "
        "--warmup=1 --sample-length=5 --threads=1").split()  # fmt: skip


def start(*arguments, cwd, **options):
    """The command in a process that loads torch itself."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [sys.executable, "-P", str(ROOT / "hetkern" / "cli.py"), *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def test_the_version_is_the_packages(tmp_path):
    import hetkern as package

    assert hetkern("--version", cwd=tmp_path) == (0, f"hetkern {package.__version__}\n", "")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("to be or not to be\n" * 50)
    return path


def test_help_loads_neither_torch_nor_the_package(tmp_path):
    code = f"""
import runpy, sys
sys.argv = ["hetkern", "train", "--help"]
try:
    runpy.run_path({str(ROOT / "hetkern" / "cli.py")!r}, run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
print([m for m in sys.modules if m.split(".")[0] in ("torch", "hetkern", "numpy")])
"""
    result = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, text=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
    assert "--learning-rate" in result.stdout


def test_every_setting_is_a_flag_with_its_help(tmp_path):
    status, out, _ = hetkern("train", "--help", cwd=tmp_path)
    assert status == 0
    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')} " in out
        assert field.metadata["help"].split(" (default")[0] in out


def test_train_then_sample_continues_the_prompt(tmp_path, text):
    process = start("train", "--data", text, "--out", "run", *TINY, cwd=tmp_path)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert "nats a token" in out and "bits per byte" in out
    assert "hetkern sample run" in out
    options = ["--prompt", "to be", "--length", "7", "--temperature", "0"]
    status, out, err = hetkern("sample", "run", *options, cwd=tmp_path)
    assert (status, err) == (0, "")
    assert out.startswith("to be") and len(out) >= len("to be") + 2


def test_flags_win_over_the_config_file(tmp_path, text):
    (tmp_path / "run.toml").write_text("steps = 2\nseed = 9\n")
    flags = [flag for flag in TINY if not flag.startswith("--steps")]
    status, _, err = hetkern(
        "train", "--config", "run.toml", "--data", text, "--out", "run", "--seed", "3", *flags,
        cwd=tmp_path,
    )  # fmt: skip
    assert status == 0, err
    written = TrainConfig.from_file(tmp_path / "run" / "config.toml")
    assert (written.steps, written.seed) == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "none"], "hetkern: there is no file or folder none to train on\n"),
        (["train", "--steps", "0"], "hetkern: steps must be at least 1, got 0\n"),
        (["sample", "none"], "hetkern: none holds no trained model (config.toml is missing)"),
        (["train", "--device", "warp"], "hetkern: --device warp cannot run here:"),
        (["train", "--stpes", "4"], "hetkern: No such option: --stpes"),
        (["sample"], "hetkern: Missing argument"),
        (["sample", "none", "--seed", "9" * 30], "hetkern: Invalid value for '--seed'"),
        (["frain"], "hetkern: No such command 'frain'"),
    ],
)
def test_a_users_error_is_one_line_and_exit_status_2(tmp_path, arguments, message):
    if arguments[0] == "train":
        arguments = [*arguments, "--kernels", "torch"]
    status, out, err = hetkern(*arguments, cwd=tmp_path)
    assert status == 2
    assert err.startswith(message)
    assert err.count("\n") == 1 and out == ""


def test_debug_shows_the_traceback(tmp_path):
    arguments = ["train", "--debug", "--kernels", "torch", "--data", "none"]
    status, _, err = hetkern(*arguments, cwd=tmp_path)
    assert status != 0
    assert "Traceback" in err and "UserError: there is no file or folder none" in err


def test_ctrl_c_saves_says_what_to_do_and_exits_130(tmp_path, text):
    flags = [flag for flag in TINY if not flag.startswith("--steps")] + ["--steps=1000000"]
    process = start("train", "--data", text, "--out", "run", *flags, cwd=tmp_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.startswith("hetkern: stopped after step ")
    assert "the weights are saved in run" in err and err.count("\n") == 1
    assert "hetkern resume run goes on" in err
    assert list((tmp_path / "run" / "checkpoints").glob("step-*/model.safetensors"))
