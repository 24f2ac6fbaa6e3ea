"""What compiled kernels need of an H100: registers, spills, shared memory, and so occupancy."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hetkern.testing.emulation.build import own_headers
from hetkern.testing.traffic.table import Launch, bare_name, short_name


class Needs(NamedTuple):
    """Of one compiled kernel."""

    registers: int  #: a thread
    spilled: int  #: bytes a thread; in Triton stores


def resources(file: Path, launches: tuple[Launch, ...], arch: str = "sm_90") -> Iterator[str]:
    """A line for each kernel of a CUDA file that was launched; or why there is none."""
    needs = compiled(file, arch)
    if isinstance(needs, str):
        yield needs
    else:
        for launch in dict.fromkeys(launches):
            names = [launch.kernel] if launch.kernel in needs else needs
            for name in names:
                if bare_name(name) == launch.name:
                    yield told(f"{arch} {name}", needs[name], launch)


def own_resources(family: str, launches: tuple[Launch, ...]) -> Iterator[str]:
    """The same for hetkern's own kernels: as csrc/cuda/budget.json has them, else compiled."""
    cuda, arch = own_headers() / "cuda", "sm_90a"
    recorded: dict[str, Any] = {}
    if (cuda / "budget.json").exists():
        recorded = json.loads((cuda / "budget.json").read_text())[arch].get(f"{family}.cu", {})
    for launch in dict.fromkeys(launches):
        if kernel := recorded.get(launch.kernel):
            needs = Needs(kernel["registers"], kernel["spilled"])
            yield told(f"{arch} {launch.kernel}", needs, launch) + ", by csrc/cuda/budget.json"
        elif (cuda / f"{family}.cu").exists():
            yield from resources(cuda / f"{family}.cu", (launch,), arch)
        else:
            yield f"{launch.kernel}: registers: {family}.cu is not installed, only in the sources"


def compiled(file: Path, arch: str) -> dict[str, Needs] | str:
    """What ptxas says of each kernel, by its short name; or why it says nothing."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).exists():
        return "registers: nvcc is not installed"
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "-std=c++17", f"-arch={arch}", "-I", str(own_headers()), "-Xptxas", "-v"]
        command += ["-cubin", str(file), "-o", str(Path(folder, "x"))]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return f"registers: nvcc fails:\n{done.stderr}"
    found = re.findall(
        r"Compiling entry function '(\S+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers",
        done.stderr,
        re.S,
    )
    return {_readable(name): Needs(int(used), int(spilled)) for name, spilled, used in found}


def _readable(mangled: str) -> str:
    filt = shutil.which("c++filt")
    if filt is None:
        return mangled
    return short_name(subprocess.run([filt, mangled], capture_output=True, text=True).stdout)


def told(what: str, needs: Needs, launch: Launch, of_spills: str = "bytes") -> str:
    """The line of one kernel."""
    return (
        f"{what}: {needs.registers} registers, {needs.spilled} {of_spills} spilled, "
        f"{launch.shared_bytes} bytes shared, {occupancy(needs.registers, launch)}"
    )


def occupancy(registers: int, launch: Launch) -> str:
    """Warps of a multiprocessor that can be there at once, of 64, and what limits them.

    For compute capability 9.0: 65536 registers, given to a warp 256 at a time; 233472 bytes of
    shared memory, of which a block takes 1024 more than it asks for; 2048 threads; 32 blocks.
    (CUDA C++ Programming Guide, Compute Capabilities)
    """
    warps = -(-launch.threads // 32)
    limits = {
        "registers": 65536 // (-(-registers * 32 // 256) * 256 * warps),
        "shared memory": 233472 // (launch.shared_bytes + 1024),
        "threads": 64 // warps,
        "blocks": 32,
    }
    least = min(limits, key=lambda what: limits[what])
    return f"{limits[least] * warps} of 64 warps (limited by {least})"
