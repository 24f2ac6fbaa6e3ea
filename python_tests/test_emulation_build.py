"""What emulate_cuda runs is what the files say now: a build is kept until one of them changes."""

from pathlib import Path

import pytest
import torch
from emulating import skip_unless_possible

from hetkern.testing.emulation import build, emulate_cuda
from hetkern.testing.emulation.build import compiler

KERNEL = """#include "cuda/device/launch.cuh"
{include}
__global__ void __launch_bounds__(1) store(float* y) {{ *y = VALUE; }}
extern "C" void launch(float* y, void* stream) {{ HETKERN_LAUNCH(store, 1, 1, 0, stream, y); }}
"""


@pytest.fixture
def run(tmp_path):
    """What the kernel stores, with those lines above it."""
    skip_unless_possible()

    def run(include: str, *flags: str) -> float:
        file = tmp_path / "kernel.cu"
        file.write_text(KERNEL.format(include=include))
        y = torch.zeros(1)
        emulate_cuda(file, flags=flags)(y)
        return y.item()

    return run


def header(folder: Path, value: int) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "value.h").write_text(f"#define VALUE {value}\n")


@pytest.mark.parametrize("flag", ["-I", "-isystem", "-iquote", "-include"])
def test_a_header_found_through_a_flag_is_read_anew(run, tmp_path, flag):
    folder = tmp_path / "include"
    wanted = {
        "-include": ("", str(folder / "value.h")),
        "-iquote": ('#include "value.h"', str(folder)),
    }
    include, place = wanted.get(flag, ("#include <value.h>", str(folder)))
    for value in (1, 2):
        header(folder, value)
        assert run(include, flag, place) == value


def test_a_header_that_comes_to_stand_before_another_is_read(run, tmp_path):
    flags = [f"-I{tmp_path / name}" for name in ("first", "second")]
    header(tmp_path / "second", 2)
    assert run("#include <value.h>", *flags) == 2
    header(tmp_path / "first", 1)
    assert run("#include <value.h>", *flags) == 1


def test_a_header_that_is_asked_for_and_not_read_counts(run, tmp_path):
    lines = '#if __has_include("value.h")\n#define VALUE 3\n#else\n#define VALUE 4\n#endif'
    assert run(lines) == 4
    header(tmp_path, 0)
    assert run(lines) == 3


def test_what_is_the_same_is_built_once(run, monkeypatch):
    assert run("#define VALUE 5") == 5
    commands = []
    monkeypatch.setattr(build, "_run", lambda command: commands.append(command))
    assert run("#define VALUE 5") == 5
    assert not commands


def test_without_a_compiler_the_error_says_what_to_install(run, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    compiler.cache_clear()
    try:
        with pytest.raises(NotImplementedError, match=r"needs g\+\+ .* set CXX"):
            run("#define VALUE 6")
    finally:
        compiler.cache_clear()
