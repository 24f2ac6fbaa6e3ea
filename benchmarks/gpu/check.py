"""The steps of gpu_check.sh, under ten minutes in all.

Each step shows what really ran and fails if that was nothing. Without a GPU the emulation stands
in its place: every body runs, and the figures are none.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import twins
from evidence import bad_target, clean, driver_facts, find_gpu, has_module, junit, reported
from programs import HERE, Programs, has_nvcc, nvcc, sanitizer
from running import ROOT, Failed, Runner

IMPLS = ("cuda", "triton")
LATE = "no time was left"  # the benchmark's word
WORKS = "softmax", "cross-entropy", "attention", "decode", "tanh", "lstm", "gru"
TOOLS = {
    "memcheck": "address",
    "racecheck": "thread",
    "synccheck": "plain",
}  # and what stands for it


class Check:
    """What the steps share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = None if options.dry else find_gpu()
        if options.gpu and self.device is None:
            raise SystemExit("--gpu: torch finds no CUDA GPU")
        self.dry = self.device is None
        self.out = Path(os.environ.get("OUT", ROOT / "build/gpu_check")).resolve()
        self.work = ROOT / "build" / ("gpu_check_dry" if self.dry else "gpu_check_gpu")
        self.runner = Runner(self.out / "gpu_check.log", 60 * options.minutes)
        architecture = self.device["architecture"] if self.device else None
        self.programs = Programs(self.runner, self.work / "programs", architecture, options.quick)
        self.pool = ThreadPoolExecutor(4)
        self.built: dict[str, Future[Path]] = {}

    def start_programs(self) -> None:
        """Begin to build the programs, beside the library; who needs one waits for it."""
        steps = self.options.steps
        if "twins" in steps:
            self._begin("twins", self.programs.on_device, "twins", [HERE / "twins.cu"])
            if not self.dry:
                source = [HERE / "twins.cu"]
                self._begin("twins_emulated", self.programs.emulated, "twins_emulated", source)
        if "sanitizers" in steps:
            sources = [*self.programs.kernels(), HERE / "driver.cu"]
            self._begin("driver", self.programs.on_device, "driver", sources)
            kinds = {kind for tool, kind in TOOLS.items() if tool in self.tools()}
            for kind in sorted(kinds) if self.dry else ["plain"]:
                source = [HERE / "planted.cu"]
                self._begin(f"planted_{kind}", self.programs.on_device, "planted", source, kind)

    def _begin(self, name: str, build: Callable[..., Path], *arguments: Any) -> None:
        self.built[name] = self.pool.submit(build, *arguments)

    def tools(self) -> list[str]:
        """compute-sanitizer's; the dry run's cheap part keeps to what needs no sanitizer."""
        return ["synccheck"] if self.options.quick else list(TOOLS)

    # ---- Steps. ----------------------------------------------------------------------------------

    def build(self) -> dict[str, Any]:
        """Configure and build here, and load what was built."""
        if not (cmake := shutil.which("cmake")):
            raise Failed("cmake is missing: install cmake (and ninja), then run this again")
        folder = self.work / "cmake"
        cuda = "OFF" if self.options.quick else "ON" if not self.dry or has_nvcc() else "OFF"
        words = [cmake, "-S", ROOT, "-B", folder, f"-DPython_EXECUTABLE={sys.executable}"]
        # A suite on a GPU must not find an emulation to run on instead.
        words += [f"-DHETKERN_CUDA={cuda}", f"-DHETKERN_EMULATION={'ON' if self.dry else 'OFF'}"]
        words += ["-DCMAKE_CUDA_ARCHITECTURES=" + (self.programs.architecture or "90a")]
        words += [f"-DCMAKE_CUDA_COMPILER={nvcc()}"] if cuda == "ON" else []
        words += ["-G", "Ninja"] if shutil.which("ninja") else []
        self.runner.command(words)
        target = ["--target", "hetkern_emulated_machine"] if self.options.quick else []
        self.runner.command([cmake, "--build", folder, "--parallel", str(os.cpu_count()), *target])
        if not self.options.installed:
            for file in [*folder.glob("libhetkern_*.so"), *folder.glob("_C*.so")]:
                link = ROOT / "hetkern" / file.name
                link.unlink(missing_ok=True)
                link.symlink_to(file)
        told = self.python("import hetkern, json; print(json.dumps(dict(hetkern.doctor())))")
        facts = json.loads(told.splitlines()[-1])
        if not self.options.installed and folder not in Path(facts["library"]).resolve().parents:
            raise Failed(
                f"hetkern loads {facts['library']}, not what was built in {folder}: another one is "
                "installed in this Python; uninstall it there, or check that one: --installed"
            )
        said = {name: facts[f'impl="{name}"'] for name in IMPLS}
        if not self.dry and (wrong := {n: t for n, t in said.items() if t != "can run"}):
            raise Failed(f"implementations that do not run on this GPU: {wrong}")
        return {"doctor": facts, "CUDA": cuda}

    def twins(self) -> dict[str, Any]:
        """Each function of ptx:: on the device against its twin, word by word."""
        device = self.runner.command([self.built["twins"].result()], may_fail=True).stdout
        if self.dry:  # against itself, its threads taking turns in another order
            seed = {"HETKERN_EMULATION_SEED": "20"}
            other = self.runner.command([self.built["twins"].result()], env=seed, may_fail=True)
        else:
            other = self.runner.command([self.built["twins_emulated"].result()], may_fail=True)
        table = twins.compare(device, other.stdout)
        return {
            "functions": len(table),
            "words": sum(row["words"] for row in table),
            "table": table,
        }

    def sanitizers(self) -> dict[str, Any]:
        """compute-sanitizer on the launchers, and on a bug planted for each tool."""
        driver = self.built["driver"].result()
        facts: dict[str, Any] = {}
        if self.dry:
            facts["driver"] = self.driver_facts(self.runner.command([driver], may_fail=True).stdout)
        with ThreadPoolExecutor(len(TOOLS)) as pool:
            for found in pool.map(self.tool, self.tools()):
                facts |= found
        ran = self.runner.command([driver, "bad-target"], limit=60, may_fail=True)
        return {**facts, "bad target": bad_target(ran)}

    def tool(self, tool: str) -> dict[str, Any]:
        """One tool of compute-sanitizer; in a dry run the emulation's counterpart."""
        words = [] if self.dry else [sanitizer(), "--tool", tool, "--error-exitcode", "99"]
        program = self.built["planted_" + (TOOLS[tool] if self.dry else "plain")].result()
        found = self.runner.command([*words, program, tool], limit=60, may_fail=True)
        if not found.returncode:
            raise Failed(f"{tool} is blind to the bug planted for it:\n{found.stdout}")
        if not reported(tool, found.stdout, self.dry):
            raise Failed(f"{tool} reports something else than its planted bug:\n{found.stdout}")
        facts: dict[str, Any] = {f"{tool}: planted bug": "reported"}
        if not self.dry:
            ran = self.runner.command([*words, self.built["driver"].result()], 120, may_fail=True)
            if ran.returncode or not clean(tool, ran.stdout):
                tail = "\n".join(ran.stdout.splitlines()[-40:])
                raise Failed(f"{tool}: exit status {ran.returncode}\n{tail}")
            facts[tool] = self.driver_facts(ran.stdout)
        return facts

    def suite(self) -> dict[str, Any]:
        """The families' tests, by CUDA and by Triton side by side, on a GPU on its own tensors."""
        with ThreadPoolExecutor(2) as pool:
            runs = {name: pool.submit(self.suite_of, name) for name in IMPLS}
        facts = {name: run.result() for name, run in runs.items() if not run.exception()}
        for run in runs.values():
            if error := run.exception():
                error.facts = facts | getattr(error, "facts", {})  # type: ignore[attr-defined]
                raise error
        return facts

    def suite_of(self, name: str) -> dict[str, Any]:
        """One implementation's tests; the benchmarks' time is left to them."""
        limit = math.inf if self.dry else max(30.0, self.runner.remaining() - 180)
        counts = self.pytest(name, ["--impl", name], *self.selection(name), limit=limit)
        if not counts["passed"]:
            raise Failed(f"--impl {name}: no test passed: {counts}")
        if not self.dry and 2 * counts["on the GPU"] < counts["passed"]:
            raise Failed(f"--impl {name}: tests passed without the GPU: {counts}")
        return counts

    def selection(self, impl: str) -> list[str]:
        """All tests on a GPU; a few in its place."""
        if not self.dry:
            workers = ["-n", "6"] if has_module("xdist") else []
            return [*workers, "--ignore", "python_tests/test_gpu_check.py", "python_tests"]
        interpreted = ["-p", "hetkern.testing.triton_interpreter"] if impl == "triton" else []
        few = "shift_invariant or sum_to_one or no_gradient or change_the_loss or equals_that"
        files = [f"python_tests/test_{family}_values.py" for family in ("softmax", "cross_entropy")]
        return [*interpreted, "-k", self.options.select or few, *files]

    def real(self) -> dict[str, Any]:
        """What only a real device shows: graphs, streams, autocast, torch.compile."""
        interpreted = ["-p", "hetkern.testing.triton_interpreter"] if self.dry else []
        counts = self.pytest("real", interpreted, "python_tests/test_gpu_real.py")
        if counts["passed"] < 3 or (not self.dry and counts["on the GPU"] + 1 < counts["passed"]):
            raise Failed(f"test_gpu_real.py: wanted all to run, got {counts}")
        return counts

    def benchmarks(self) -> dict[str, Any]:
        """Speed of all families; without a GPU the code alone."""
        file = self.work / "bench_gpu.json"
        file.unlink(missing_ok=True)
        interpreted = ["-m", "hetkern.testing.triton_interpreter"] if self.dry else []
        words = [sys.executable, *interpreted, HERE / "bench_gpu.py", "--out", file]
        seconds = max(20, self.runner.remaining() - 45)  # the last row begun still ends
        words += ["--dry"] if self.dry else ["--seconds", f"{seconds:.0f}"]
        self.runner.command(words, env=self.environment())
        facts: dict[str, Any] = json.loads(file.read_text())
        ran = {(row["work"].split()[0], row["implementation"]) for row in facts["rows"]}
        late = {work.split()[0] for work, why in facts["left out"].items() if why == LATE}
        ours = [(work, f"hetkern {n}") for work in WORKS for n in IMPLS if work not in late]
        if facts["failed"] or (missing := sorted(set(ours) - ran)):
            what = facts["failed"] or f"no row of {missing}; left out: {facts['left out']}"
            failed = Failed(f"benchmarks: {what}")
            failed.facts = facts  # type: ignore[attr-defined]
            raise failed
        return facts

    # ---- Their tools. ----------------------------------------------------------------------------

    def driver_facts(self, output: str) -> dict[str, Any]:
        """What the driver ran; only GPUs from sm_90 on have clusters."""
        return driver_facts(output, self.device is None or self.device["capability"] >= [9, 0])

    def python(self, code: str) -> str:
        """What a Python program with hetkern in reach prints."""
        return self.runner.command([sys.executable, "-c", code], env=self.environment()).stdout

    def environment(self) -> dict[str, str]:
        """The checkout, before what is installed."""
        path = [str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")]
        return {"PYTHONPATH": os.pathsep.join(part for part in path if part)}

    def pytest(
        self, name: str, options: list[str], *more: str, limit: float = 120
    ) -> dict[str, Any]:
        """How many tests passed, failed and were skipped, why, and how many used the GPU.

        Raises:
            Failed: one failed, or the run was stopped; the counts come along.
        """
        file, used = self.work / f"{name}.xml", self.work / f"{name}.used"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        used.write_text("")
        words = [sys.executable, "-m", "pytest", "-q", "-m", "not proof", "-p", "gpu_used"]
        environment = {"GPU_USED": str(used), "PYTHONUNBUFFERED": "1", **self.environment()}
        counts: dict[str, Any] = {}
        try:
            self.runner.command(
                [*words, "--junitxml", file, *options, *more], limit=limit, env=environment
            )
        except Failed as failed:
            failed.facts = {name: counts}  # type: ignore[attr-defined]
            raise
        finally:
            counts |= junit(file)
            counts["on the GPU"] = len(set(used.read_text().splitlines()))
        return counts


STEPS = {
    "build": Check.build,
    "twins": Check.twins,
    "sanitizers": Check.sanitizers,
    "suite": Check.suite,
    "real": Check.real,
    "benchmarks": Check.benchmarks,
}


def arguments() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(prog="gpu_check.sh", description=__doc__)
    parser.add_argument("--dry", action="store_true", help="the emulation in the GPU's place")
    parser.add_argument("--gpu", action="store_true", help="fail without a GPU")
    parser.add_argument(
        "--installed", action="store_true", help="check the installed hetkern, build beside it"
    )
    parser.add_argument(
        "--quick", action="store_true", help="the dry run's cheap part; takes the installed hetkern"
    )
    parser.add_argument("--steps", default=",".join(STEPS), help="only these")
    parser.add_argument("--select", help="pytest -k of the dry run's suite")
    parser.add_argument("--minutes", type=float, default=9.5, help="stop after so many")
    options = parser.parse_args()
    options.steps = options.steps.split(",")
    if unknown := set(options.steps) - set(STEPS):
        parser.error(f"--steps: wanted of {', '.join(STEPS)}, got {', '.join(sorted(unknown))}")
    if options.gpu and (options.dry or options.quick):
        parser.error("--gpu: not with --dry or --quick")
    options.dry |= options.quick
    options.installed |= options.quick
    return options


def main() -> int:
    """Run the steps, print the summary, write the JSON."""
    start = time.monotonic()
    check = Check(arguments())
    what = (
        "DRY RUN, no GPU: the emulation in its place, no figures"
        if check.dry
        else check.device["name"]
    )
    print(f"== gpu_check: {what}", flush=True)
    check.start_programs()
    for name in check.options.steps:
        check.runner.step(name, lambda name=name: STEPS[name](check))
    check.pool.shutdown(cancel_futures=True)
    results = check.runner.results
    print(f"== summary: {what}")
    for result in results:
        state = "passed" if result.passed else "FAILED"
        reason = "" if result.passed else f"   {result.error.splitlines()[0]}"
        print(f"{result.name:<12} {state}  {result.seconds:6.1f} s{reason}")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    report = {
        "dry": check.dry,
        "device": check.device,
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.monotonic() - start, 1),
        "passed": all(result.passed for result in results),
        "steps": [vars(result) for result in results],
    }
    file = check.out / "gpu_check.json"
    file.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{report['seconds']} s in all; {file}; output of every command: {check.runner.log}")
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
