"""What the linker sees: the stable ABI alone, and no code shared between instruction sets."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import hetkern

ROOT = Path(__file__).parent.parent
LIBRARY = next((p for d in hetkern.__path__ if (p := Path(d, "libhetkern_ops.so")).exists()), None)

# The C shims of torch 2.11 that the library may use.  (torch/csrc/stable/c/shim.h)
ALLOWED = re.compile(
    r"(aoti_)?torch_dtype_\w+"
    r"|aoti_torch_(abi_version|empty_strided|new_tensor_handle|get_current_cuda_stream|library_init_impl)"
    r"|aoti_torch_(create_device_guard|delete_(device_guard|library_object|tensor_object))"
    r"|aoti_torch_(create_tensor_from_blob_v2|new_uninitialized_tensor)"
    r"|aoti_torch_(device_type_(cpu|cuda|meta|mps|privateuse1|xpu)|layout_strided|memory_format_contiguous_format)"
    r"|aoti_torch_get_(device_(index|type)|dim|dtype|numel|sizes?|strides?)"
    r"|torch_(call_dispatcher|library_impl|get_num_threads|parallel_for|from_blob|get_(const|mutable)_data_ptr)"
)

needs_library = pytest.mark.skipif(LIBRARY is None, reason="the native library is not built")
needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="nm is missing: install binutils")


def symbols(*arguments: str) -> list[tuple[str, str]]:
    """(type, demangled name) of each symbol."""
    out = subprocess.run(
        ["nm", "-C", *arguments], capture_output=True, text=True, check=True
    ).stdout
    found = [re.match(r"(?:[0-9a-f]+)?\s+([A-Za-z])\s(.+)$", line) for line in out.splitlines()]
    return [(m[1], m[2].split("@")[0]) for m in found if m]


@needs_library
@needs_nm
def test_the_library_asks_torch_for_the_stable_abi_alone():
    undefined = [name for kind, name in symbols("-D", str(LIBRARY)) if kind in "Uw"]
    from_torch = [name for name in undefined if "torch" in name or "at::" in name or "c10" in name]
    assert from_torch, "the library uses no shim: nm's output was not understood"
    assert not [name for name in from_torch if not ALLOWED.fullmatch(name)]


@needs_library
@needs_nm
def test_the_cuda_stream_shim_is_weak_so_that_cpu_torch_can_load_the_library():
    kinds = {
        kind
        for kind, name in symbols("-D", str(LIBRARY))
        if name == "aoti_torch_get_current_cuda_stream"
    }
    assert kinds == {"w"}


@needs_library
def test_the_library_needs_no_torch_library_but_libtorch():
    if shutil.which("readelf") is None:
        pytest.skip("readelf is missing: install binutils")
    out = subprocess.run(
        ["readelf", "-d", str(LIBRARY)], capture_output=True, text=True, check=True
    ).stdout
    needed = re.findall(r"NEEDED.*\[(.+)\]", out)
    assert [n for n in needed if "torch" in n or "c10" in n or "cuda" in n] == ["libtorch.so"]


@needs_nm
def test_no_weak_symbol_leaves_the_objects_of_an_instruction_set():
    objects = sorted(ROOT.glob("build/develop/CMakeFiles/cpu_*.dir/**/*.o"))
    if not objects:
        pytest.skip("the development build is elsewhere: its objects are not in build/develop")
    for file in objects:
        # The pointer to the language's unwinder is the same at every instruction set.
        weak = [name for kind, name in symbols(str(file)) if kind in "WVu"]
        weak = [name for name in weak if name != "DW.ref.__gxx_personality_v0"]
        assert not weak, (
            f"{file.name}: the linker could take {weak[0]} of one instruction set for all"
        )


@needs_nm
def test_each_instruction_set_exports_its_kernel_tables_and_nothing_else():
    objects = sorted(ROOT.glob("build/develop/CMakeFiles/cpu_*.dir/**/*.o"))
    if not objects:
        pytest.skip("the development build is elsewhere: its objects are not in build/develop")
    for file in objects:
        level = next(part for part in file.parts if part.startswith("cpu_"))[4:-4]
        exported = [name for kind, name in symbols("-g", str(file)) if kind in "TDRB"]
        assert exported and all(name.startswith(f"hetkern::cpu::{level}::") for name in exported), (
            exported
        )
