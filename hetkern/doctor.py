"""What is built, what can run on this machine, and why the rest cannot."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path

import torch

from . import _library
from . import impl as _impl

LEAST_TORCH = (2, 11)  # the stable ABI that the native library is built against

_NO_FACTS = "not known: hetkern._C is missing, which tells of the library"


class Report(dict[str, str]):
    """Facts by name, in the order to read them; prints as one line a fact."""

    def __str__(self) -> str:
        """Names and values in two columns."""
        width = max(map(len, self))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.items())

    __repr__ = __str__


def doctor() -> Report:
    """Say what is built, what can run here, and why the rest cannot.

    Works without the native library. Asks torch for a GPU only where an NVIDIA driver is loaded.

    Returns:
        A dict of facts that prints as a report. Its keys are "hetkern", "python", "torch",
        "library", "compiler", "CUDA kernels", "instruction sets", "products of bfloat16",
        "threads", "triton", "waiting" (how OpenMP's threads wait for one another, by the variables
        that say so), then ``impl="NAME"`` for each implementation, then each ``HETKERN_…`` variable
        that is set.
    """
    report = Report()
    report["hetkern"] = _version()
    report["python"] = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    report["torch"] = _torch()
    report["library"] = _loaded_library()
    native = _impl.native
    report["compiler"] = native.compiler() if native else _NO_FACTS
    report["CUDA kernels"] = _cuda_kernels()
    report["instruction sets"] = _instruction_sets()
    report["products of bfloat16"] = _bfloat16_products()
    threads = native.threads() if native else torch.get_num_threads()
    report["threads"] = f"{threads} of {os.cpu_count()} processors (torch.set_num_threads)"
    report["triton"] = _triton()
    report["waiting"] = _waiting()
    for name in _impl.IMPLEMENTATIONS[1:]:
        device = "cuda" if name in ("cuda", "triton") else "cpu"
        reason = _impl.why_not(name, device)
        report[f'impl="{name}"'] = f"cannot run: {reason}" if reason else "can run"
    for variable in sorted(os.environ):
        if variable.startswith("HETKERN_"):
            report[variable] = os.environ[variable]
    return report


def _version() -> str:
    from . import __version__

    version = f"{__version__} in {Path(__file__).parent}"
    if _library.passed_over is None:
        return version
    return f"{version}; {_library.passed_over} has no library and is passed over"


def _torch() -> str:
    version = torch.__version__
    supported = tuple(int(part) for part in version.split(".")[:2]) >= LEAST_TORCH
    least = ".".join(map(str, LEAST_TORCH))
    return f"{version}, " + ("supported" if supported else f"too old: hetkern needs {least}")


def _loaded_library() -> str:
    if _impl.missing_library is not None:
        return f"not loaded: {_impl.missing_library}"
    files = [str(file) for file in torch.ops.loaded_libraries]
    return next((file for file in files if Path(file).name == _library.NAME), "loaded")


def _cuda_kernels() -> str:
    native = _impl.native
    if native is None:
        return _NO_FACTS
    reason = native.why_no_cuda()
    return f"not built: {reason}" if reason else "built"


def _instruction_sets() -> str:
    native = _impl.native
    if native is None:
        return _NO_FACTS
    in_force = native.isa()
    return ", ".join(
        f"{level} (in force)" if level == in_force else level for level in native.isa_levels()
    )


def _waiting() -> str:
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_LIBRARY")
    shown = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    return ", ".join(shown) or "OpenMP's default, a long spin: slow on a busy machine"


def _bfloat16_products() -> str:
    native = _impl.native
    if native is None:
        return _NO_FACTS
    ways = {"fma": "fused multiply-add", "dot": "pairwise dot product", "amx": "AMX tiles"}
    return f"by {ways[native.bf16_product()]} (HETKERN_BF16)"


def _triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "not installed"
    try:
        return f"{importlib.metadata.version('triton')} installed"
    except importlib.metadata.PackageNotFoundError:
        return "installed, version not known"
