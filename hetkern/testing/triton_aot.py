"""Triton kernels compiled for GPUs that are not there: registers, spills, shared memory, opcodes.

    with launches() as launched:
        my_softmax(torch.empty(4096, 4096, dtype=torch.bfloat16, device="meta"))
    for launch in launched:
        built = launch.compile(90)
        assert built.spills == 0 and built.opcodes["LDG.128"] > 0

The launcher itself says what it launches, with Triton's own specialisation (a 1, a multiple of 16,
an aligned pointer), so no signature is kept beside it. Tensors are on "meta", or on the CPU where
their alignment is to be real. Triton must compile in this process: the repaired interpreter
(triton_interpreter) runs in another.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Compute capabilities that the kernels are built for.
ARCHITECTURES = (80, 90, 100, 120)
#: Bytes of shared memory that a block may ask for.
SHARED_LIMIT = {
    75: 65536,
    80: 166912,
    86: 101376,
    89: 101376,
    90: 232448,
    100: 232448,
    120: 101376,
}


@dataclass(frozen=True)
class Built:
    """What a compiled kernel needs of a GPU."""

    registers: int  #: a thread
    spills: int  #: stores of registers to local memory in the code
    stack: int  #: bytes a thread
    shared: int  #: bytes a block, asked for at the launch
    #: how often each opcode stands in the code; "LDG.128" and "STG.128" are those of 16 bytes
    opcodes: Counter[str] = field(repr=False)
    seconds: float = field(repr=False, compare=False)  #: to compile


@dataclass(frozen=True)
class Launch:
    """One launch that did not happen."""

    kernel: Any  #: the ``@triton.jit`` function
    arguments: dict[str, Any]
    options: dict[str, Any]  #: num_warps and the like
    grid: tuple[int, ...]

    def compile(self, architecture: int) -> Built:
        """The kernel for a compute capability such as 90, specialised for these arguments.

        Raises:
            RuntimeError: it asks for more shared memory than the GPU gives to a block.
        """
        compiler: Any = importlib.import_module("triton.compiler")
        targets: Any = importlib.import_module("triton.backends.compiler")
        made = specialised(self.kernel.params, self.arguments)
        source = compiler.ASTSource(self.kernel, made.signature, made.constants, made.attributes)
        target = targets.GPUTarget("cuda", architecture, 32)
        import time

        began = time.perf_counter()
        compiled = importlib.import_module("triton").compile(
            source, target=target, options=self.options
        )
        built = _read(compiled, time.perf_counter() - began)
        if built.shared > SHARED_LIMIT.get(architecture, built.shared):
            raise RuntimeError(
                f"{self.kernel.__name__} asks for {built.shared} bytes of shared memory, sm_"
                f"{architecture} gives {SHARED_LIMIT[architecture]}"
            )
        return built


@contextlib.contextmanager
def launches() -> Iterator[list[Launch]]:
    """Collect every Triton launch in this context; none of them runs.

    Raises:
        RuntimeError: Triton interprets in this process.
    """
    jit: Any = importlib.import_module("triton.runtime.jit")
    autotuner: Any = importlib.import_module("triton.runtime.autotuner")
    standard: Any = importlib.import_module("triton.language.standard")
    if not isinstance(standard.cdiv, jit.JITFunction):
        raise RuntimeError(
            "hetkern.testing.triton_aot: Triton interprets in this process: compile in another"
        )
    launched: list[Launch] = []
    run, tuned = jit.JITFunction.run, autotuner.Autotuner.run

    def note(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        arguments = dict(zip(self.arg_names, args, strict=False))
        arguments |= {name: kwargs.pop(name) for name in self.arg_names if name in kwargs}
        for parameter in self.params:
            if parameter.name not in arguments:
                arguments[parameter.name] = parameter.default
        launched.append(
            Launch(self, arguments, kwargs, grid(arguments) if callable(grid) else grid)
        )

    def first(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.fn.run(*args, **{**kwargs, **self.configs[0].all_kwargs()})

    jit.JITFunction.run, autotuner.Autotuner.run = note, first
    try:
        yield launched
    finally:
        jit.JITFunction.run, autotuner.Autotuner.run = run, tuned


@dataclass(frozen=True)
class Specialised:
    """A launch's arguments as Triton's own launcher reads them."""

    signature: dict[str, Any]  #: each parameter's type; "constexpr" for a constant
    constants: dict[tuple[int, ...], Any]  #: by the place of the argument, or of its part
    attributes: dict[tuple[int, ...], Any]  #: what is known of the others: multiples of 16
    values: list[tuple[str, Any]]  #: type and value of what the compiled kernel is given


def specialised(parameters: Any, arguments: dict[str, Any]) -> Specialised:
    """What Triton compiles for: types, annotations, constants, alignment.

    ``parameters`` are Triton's ``KernelParam``, each with a value in ``arguments``.
    """
    native: Any = importlib.import_module("triton._C.libtriton").native_specialize_impl
    backend: Any = importlib.import_module("triton.backends.compiler").BaseBackend
    made = Specialised({}, {}, {}, [])

    def enter(path: tuple[int, ...], kind: Any, key: Any, value: Any) -> None:
        if isinstance(kind, tuple):
            for n, (part, about) in enumerate(zip(kind, key, strict=True)):
                enter((*path, n), part, about, value[n])
        elif kind == "constexpr":
            made.constants[path] = value
        else:
            if isinstance(key, str) and (known := backend.parse_attr(key)):
                made.attributes[path] = known
            made.values.append((kind, value))

    for i, parameter in enumerate(parameters):
        value = arguments[parameter.name]
        if parameter.is_constexpr:
            kind, key = "constexpr", None
        else:
            fixed = not parameter.do_not_specialize
            aligned = not parameter.do_not_specialize_on_alignment
            kind, key = native(backend, value, parameter.is_const, fixed, aligned)
            if annotated := parameter.annotation_type:
                number = annotated == "u1" or annotated[:2] in ("fp", "bf")
                kind, key = annotated, None if number else key
        made.signature[parameter.name] = kind
        enter((i,), kind, key, value)
    return made


def _read(compiled: Any, seconds: float) -> Built:
    """Resources and opcodes out of a cubin."""
    triton: Any = importlib.import_module("triton")
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

    def tool(name: str, option: str, path: str) -> str:
        command = [str(tools / name), option, path]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = tool("cuobjdump", "--dump-resource-usage", cubin.name)
        code = tool("nvdisasm", "-c", cubin.name)
    resources = {k: int(v) for k, v in re.findall(r"(REG|STACK):(\d+)", usage)}
    opcodes: Counter[str] = Counter()
    for words in re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", code):
        name, *modifiers = words.split(".")
        opcodes[name] += 1
        if "128" in modifiers:
            opcodes[f"{name}.128"] += 1
    return Built(
        registers=resources["REG"],
        spills=opcodes["STL"],
        stack=resources["STACK"],
        shared=compiled.metadata.shared,
        opcodes=opcodes,
        seconds=seconds,
    )
