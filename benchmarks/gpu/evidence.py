"""What a step's output shows: the GPU, the driver's paths, reported bugs, counts of tests."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

from running import ROOT, Failed

# How a family takes rows: the driver must have met every one, forward and backward.
PATHS = ("several rows a block", "one row a block", "a cluster of blocks a row", "columns")
KEPT_OR_NOT = ("a cluster of blocks a row, read twice", "columns, read twice")  # of softmax


def find_gpu() -> dict[str, Any] | None:
    """The first GPU by torch's word; None without one."""
    code = (
        "import torch, json; p = torch.cuda.get_device_properties(0); print(json.dumps({"
        "'name': p.name, 'capability': [p.major, p.minor], 'torch': torch.__version__, "
        "'processors': p.multi_processor_count, 'memory': p.total_memory}))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if ran.returncode:
        return None
    device: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    major, minor = device["capability"]
    device["architecture"] = f"{major}{minor}" + ("a" if major >= 9 else "")
    return device


def has_module(name: str) -> bool:
    """Whether Python finds it."""
    return importlib.util.find_spec(name) is not None


def reported(tool: str, output: str, dry: bool) -> bool:
    """Whether the output speaks of the bug that was planted for the tool."""
    emulated = {
        "memcheck": "heap-buffer-overflow",
        "racecheck": "data race",
        "synccheck": "divergent __syncthreads",
    }
    real = {
        "memcheck": "Invalid __global__ write",
        "racecheck": "race reported",
        "synccheck": "Barrier error",
    }
    return (emulated if dry else real)[tool].lower() in output.lower()


def clean(tool: str, output: str) -> bool:
    """Whether compute-sanitizer's summary stands there and counts nothing."""
    none = "0 hazards displayed" if tool == "racecheck" else "ERROR SUMMARY: 0 errors"
    return none in output


def driver_facts(output: str, clusters: bool) -> dict[str, Any]:
    """What the driver ran.

    Raises:
        Failed: a result is wrong, nothing ran, or a path was not met.
    """
    said: dict[str, list[str]] = {"ok": [], "FAILED": [], "path": [], "calls": []}
    for line in output.splitlines():
        word, _, rest = line.partition(" ")
        said.get(word, []).append(rest.strip())
    calls, wrong, paths = len(said["ok"]), said["FAILED"], said["path"]
    if wrong or not calls or not said["calls"]:
        what = "\n".join(wrong) or output[-2000:]
        raise Failed(f"the driver: {len(wrong)} of {calls + len(wrong)} calls are wrong\n{what}")
    families = sorted({path.split()[0] for path in paths})
    kernels = {file.stem.replace("_", "-") for file in (ROOT / "csrc/cuda").glob("*.cu")}
    if missing := kernels & {"softmax", "cross-entropy"} - set(families):
        raise Failed(f"the driver did not call: {sorted(missing)}")
    ways = [(f, way) for f in families for way in ("forward", "backward")]
    wanted = {f"{f} {way}, {path}" for f, way in ways for path in PATHS}
    wanted |= {f"softmax {way}, {p}" for f, way in ways for p in KEPT_OR_NOT if f == "softmax"}
    missing = {w for w in wanted - set(paths) if clusters or "cluster" not in w}
    if missing:
        raise Failed(f"the driver did not meet: {sorted(missing)}")
    return {"calls": calls, "families": families, "paths": paths}


def bad_target(ran: subprocess.CompletedProcess[str]) -> str:
    """A target that is no class was refused by name.

    Raises:
        Failed: it was let pass.
    """
    if not (ROOT / "csrc/cuda/cross_entropy.cu").exists():
        return "no CUDA kernel takes targets yet"
    if ran.returncode or "refused" not in ran.stdout:
        raise Failed(f"a target that is no class was let pass:\n{ran.stdout}")
    return ran.stdout.strip()


def junit(file: Path) -> dict[str, Any]:
    """Counts of a pytest run from its file."""
    counts: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0, "reasons": {}}
    if not file.exists():
        return counts
    for case in xml.etree.ElementTree.parse(file).iter("testcase"):
        skip = case.find("skipped")
        if skip is not None:
            counts["skipped"] += 1
            reason = skip.get("message") or ""
            counts["reasons"][reason] = counts["reasons"].get(reason, 0) + 1
        elif case.find("failure") is not None or case.find("error") is not None:
            counts["failed"] += 1
        else:
            counts["passed"] += 1
    return counts
