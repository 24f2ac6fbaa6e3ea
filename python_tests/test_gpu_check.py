"""benchmarks/gpu_check.sh without a GPU: every step really runs, and fails if it shows nothing."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from emulating import why_impossible

from hetkern.testing.emulation import why_no_emulation

ROOT = Path(__file__).parents[1]
HERE = ROOT / "benchmarks/gpu"
sys.path.insert(0, str(HERE))

import bench_gpu  # noqa: E402
import check  # noqa: E402
import evidence  # noqa: E402
import programs  # noqa: E402
import twins  # noqa: E402
from running import Failed, Runner  # noqa: E402

STEPS = ["build", "twins", "sanitizers", "suite", "real", "benchmarks"]


@pytest.fixture
def runner(tmp_path):
    return Runner(tmp_path / "log", 300)


def needs(reason):
    if reason:
        pytest.skip(reason)


def missing_tool():
    return why_impossible() or (None if shutil.which("cmake") else "cmake is missing")


def test_the_twin_table_has_every_function_of_ptx_and_calls_it():
    source = (HERE / "twins.cu").read_text()
    table = re.findall(r'^    \{"(\w+)", ', source, re.MULTILINE)
    assert sorted(table) == sorted(twins.wrappers()) and len(table) >= 16
    called = "".join(file.read_text() for file in (HERE / "twins.cu", HERE / "twins_tiles.h"))
    assert [name for name in table if not re.search(rf"ptx::{name}\b", called)] == []
    emulation = ROOT / "csrc/cuda/emulation"
    twin = "".join((emulation / name).read_text() for name in ("ptx_twins.h", "memory_twins.h"))
    assert [n for n in table if not re.search(rf"^inline [^(]*\b{n}\(", twin, re.MULTILINE)] == []
    assert not [n for n in twins.HELPERS if re.search(rf"\b{n}\b", twin)]


def test_the_dry_run_runs_every_step(tmp_path):
    """Its cheap part; `make proof` runs all of it."""
    needs(missing_tool() or why_no_emulation())
    environment = {**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable}
    script = ROOT / "benchmarks/gpu_check.sh"
    ran = subprocess.run(
        [script, "--quick"], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert (ran.returncode, report["passed"]) == (0, True), ran.stdout[-3000:] + ran.stderr[-3000:]
    assert report["dry"] and report["device"] is None and "no figures" in ran.stdout
    facts = {step["name"]: step["facts"] for step in report["steps"]}
    assert list(facts) == STEPS
    assert all(step["passed"] and step["seconds"] > 0 for step in report["steps"])
    assert facts["build"]["doctor"]["library"].endswith("libhetkern_ops.so")
    assert facts["twins"]["functions"] == len(twins.wrappers()) and facts["twins"]["words"] > 10000
    assert facts["sanitizers"]["driver"]["calls"] > 100
    assert facts["sanitizers"]["synccheck: planted bug"] == "reported"
    assert all(facts["suite"][impl]["passed"] >= 3 for impl in check.IMPLS)
    assert facts["real"]["passed"] and "torch finds no CUDA GPU" in facts["real"]["reasons"]
    rows = facts["benchmarks"]["rows"]
    assert {row["ms"] for row in rows} == {row["GB/s"] for row in rows} == {None}
    ran = {(row["work"].split()[0], row["implementation"]) for row in rows}
    assert ran >= {(w, f"hetkern {n}") for w in check.WORKS for n in check.IMPLS}
    assert {row["TFLOP/s"] for row in rows} == {None}
    assert all(float(row["error"]) < 0.02 for row in rows if row["implementation"] != "Liger")


@pytest.mark.proof
def test_the_whole_dry_run_passes(tmp_path):
    needs(missing_tool())
    environment = {**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable}
    words = [ROOT / "benchmarks/gpu_check.sh", "--dry", "--installed", "--minutes", "60"]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]


def test_a_twin_that_differs_is_named(runner, tmp_path, monkeypatch):
    """A zero fill forgotten by the emulation's cp.async: the same code path as on a GPU."""
    needs(missing_tool())
    source = [HERE / "twins.cu"]
    right = programs.Programs(runner, tmp_path / "right", None, quick=True)
    output = runner.command([right.emulated("twins", source)]).stdout
    shutil.copytree(ROOT / "csrc/cuda", tmp_path / "csrc/cuda")
    header = tmp_path / "csrc/cuda/emulation/memory_twins.h"
    broken = re.sub(r"Value value\{\};", "Value value = ~Value{};", header.read_text())
    assert broken != header.read_text()
    header.write_text(broken)
    monkeypatch.setattr(programs, "ROOT", tmp_path)
    monkeypatch.setattr(programs, "EMULATION", tmp_path / "csrc/cuda/emulation")
    wrong = programs.Programs(runner, tmp_path / "wrong", None, quick=True)
    other = runner.command([wrong.emulated("twins", source)]).stdout
    assert len(twins.compare(output, output)) == len(twins.wrappers())
    with pytest.raises(Failed, match=r"^twins differ: copy_async: word \d+: \w+ on the device"):
        twins.compare(output, other)


def lines(**changed):
    words = {name: "0 00000001" for name in twins.wrappers()}
    words |= changed
    return "\n".join(f"{name} {rest}" for name, rest in words.items())


@pytest.mark.parametrize(
    "ours, theirs, says",
    [
        ("0 00000002", "0 00000001", "word 0"),
        ("0 00000001 00000001", "0 00000001", "2 words against 1"),
        ("failed: no such kernel", "0 00000001", "no result on the device"),
        ("3 3f800004", "3 3f800000", "word 0"),
        ("3 00000000", "3 7fc00000", "word 0"),
        ("3 7f800000", "3 7f7fffff", "word 0"),
        ("0 7fc00000", "0 7fffffff", "word 0"),
    ],
)
def test_a_difference_between_twins_is_seen(ours, theirs, says):
    with pytest.raises(Failed, match=f"load_16: .*{says}"):
        twins.compare(lines(load_16=ours), lines(load_16=theirs))


@pytest.mark.parametrize("ours, theirs", [("3f800003", "3f800000"), ("7fffffff", "7fc00000")])
def test_an_approximation_may_differ_by_its_limit(ours, theirs):
    rows = twins.compare(lines(load_16="3 " + ours), lines(load_16="3 " + theirs))
    assert all(row["same"] for row in rows)


def test_no_function_of_ptx_may_be_missing_from_a_run():
    few = "\n".join(line for line in lines().splitlines() if not line.startswith("map_shared"))
    with pytest.raises(Failed, match="map_shared: no result on the device"):
        twins.compare(few, lines())


def driver_output(left_out=""):
    paths = [
        f"{family} {way}, {path}"
        for family in ("softmax", "cross-entropy")
        for way in ("forward", "backward")
        for path in (*evidence.PATHS, *evidence.KEPT_OR_NOT)
    ]
    listed = "".join(f"path    {path}\n" for path in paths if path != left_out)
    return f"ok      one: {paths[0]}\n{listed}calls   1, failed 0\n"


@pytest.mark.parametrize(
    "output, says",
    [
        ("", "0 of 0 calls"),
        ("FAILED  f32 3x4: y: row 0\n" + driver_output(), "1 of 2 calls are wrong\nf32 3x4"),
        (driver_output("softmax forward, columns"), "did not meet: .'softmax forward, columns"),
        (driver_output().replace("calls", "killed"), "calls are wrong"),
    ],
)
def test_a_driver_that_missed_something_fails(output, says):
    assert evidence.driver_facts(driver_output(), clusters=True)["calls"] == 1
    with pytest.raises(Failed, match=says):
        evidence.driver_facts(output, clusters=True)


def test_a_step_that_shows_nothing_or_fails_does_not_stop_the_next(runner):
    def failing():
        raise Failed("for a reason")

    runner.step("empty", dict)
    runner.step("failing", failing)
    runner.step("good", lambda: {"calls": 1})
    assert [(r.passed, r.error) for r in runner.results] == [
        (False, "it showed nothing"),
        (False, "for a reason"),
        (True, ""),
    ]


def test_a_command_that_is_late_is_stopped_with_its_children(runner):
    with pytest.raises(Failed, match="stopped after"):
        runner.command(["bash", "-c", "echo begun; sleep 60; true"], limit=0.5)
    assert "begun" in runner.log.read_text()


@pytest.mark.parametrize(
    "softmax, loss, wanted", [(90, 1.8, (True, True, True)), (80, 2.0, (False, False, False))]
)
def test_targets_are_reached_by_the_cuda_rows_alone(softmax, loss, wanted):
    bench = object.__new__(bench_gpu.Bench)
    bench.dry = False
    row = {"work": "softmax 64×1024", "implementation": "hetkern cuda", "% of copy": softmax}
    bench.rows = [
        {**row, "ms": loss},
        {**row, "ms": 1.9, "implementation": "torch.compile"},
        {**row, "work": "softmax 64×256", "% of copy": 10, "ms": 1.0},
        {**row, "work": "softmax 64×1024", "implementation": "hetkern triton", "% of copy": 1},
        {**row, "work": "cross-entropy 8192×128256", "ms": loss},
    ]
    bench.rows[3]["ms"] = 9.0
    assert tuple(bench.reached().values()) == wanted
    bench.rows = bench.rows[1:2]
    assert tuple(bench.reached().values()) == (False, False, False)


def test_a_failing_test_fails_the_count(tmp_path):
    file = tmp_path / "tests.xml"
    file.write_text(
        '<testsuite><testcase name="a"/><testcase name="b"><failure/></testcase>'
        '<testcase name="c"><skipped message="no GPU"/></testcase></testsuite>'
    )
    wanted = {"passed": 1, "failed": 1, "skipped": 1, "reasons": {"no GPU": 1}}
    assert evidence.junit(file) == wanted
    assert evidence.junit(tmp_path / "none.xml")["passed"] == 0
