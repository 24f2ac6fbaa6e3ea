"""Triton kernels compiled for GPUs that are not there, held to hetkern/triton/budget.json.

``python python_tests/test_triton_aot.py`` writes the budget anew, from what the kernels need now;
``… attention`` that of the cases whose name has the word.
"""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

BUDGET = Path(__file__).parent.parent / "hetkern" / "triton" / "budget.json"
VOCABULARY = 128256

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from hetkern.testing import triton_aot  # noqa: E402


def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def softmax(N, dtype, everything):
    from hetkern.triton import softmax as family

    x, rows = meta(4, 64, N, dtype=dtype), meta(4, 64, dtype=dtype)
    mask = meta(N, dtype=torch.bool)
    if everything:
        family.softmax_sink(x, -1, None, 0.5, 30.0, meta(N, dtype=dtype), mask, True, True, rows)
        family.softmax_backward(x, x, x, -1, dtype, 0.5, 30.0, mask, True, True, None)
    else:
        family.softmax(x, -1, None, 1.0, 0.0, None, None, False, False)
        family.softmax_backward(x, x, None, -1, dtype, 1.0, 0.0, None, False, False, None)


def cross_entropy(N, dtype, everything, probabilities=False):
    from hetkern.triton import cross_entropy as family

    M, f32 = 256, torch.float32
    x = meta(M, N, dtype=dtype)
    target = x if probabilities else meta(M, dtype=torch.int64)
    row, saved = meta(M, dtype=f32), meta(M, 4 if probabilities else 2, dtype=f32)
    weight = meta(N, dtype=f32) if everything else None
    eps, softcap, z_loss = (0.1, 30.0, 1e-4) if everything else (0.0, 0.0, 0.0)
    options = (1, -100, eps, 1.0, softcap, z_loss)
    forward = family.cross_entropy_stats if everything else family.cross_entropy
    forward(x, target, weight, 1, -100, 1, eps, 1.0, softcap, z_loss)
    others = (row,) * 5 if everything else (None,) * 5
    entropy = row if everything else None
    kept = (x, target, weight, saved, meta(1, 2, dtype=f32), entropy)
    backward = family.cross_entropy_backward
    if probabilities:
        backward = family.cross_entropy_backward_target
    backward(meta(dtype=f32), *others, *kept, *options)


def rnn(cell, dtype, everything, T=1):
    from hetkern.ops.rnn import CELLS, GATES
    from hetkern.triton import rnn as family

    B, H, number, lstm = 32, 512, CELLS.index(cell), cell == "lstm"
    gates = meta(B, GATES[cell] * H, dtype=dtype)
    state, c = meta(B, H, dtype=dtype), meta(B, H, dtype=torch.float32) if lstm else None
    h, h_gates = (state, gates) if cell == "gru" else (None, None)
    step = gates, gates, h, c
    family.rnn_gates(number, *step)
    family.rnn_gates_backward(number, state, c, *step)
    family.rnn_gates_double_backward(number, gates, h_gates, h, c, state, c, *step)

    w_hh, b_hh = meta(GATES[cell] * H, H, dtype=dtype), meta(GATES[cell] * H, dtype=dtype)
    rows = (meta(B, dtype=torch.int64), None, state, meta(T, B, dtype=torch.bool))
    rows = rows if everything else (None,) * 4
    walk = meta(T, *gates.shape, dtype=dtype), w_hh, b_hh, state, c, *rows, everything
    y, h_n, c_n, *saved = family.rnn_sequence(number, *walk, True)
    family.rnn_sequence_backward(number, y, h_n, c_n if lstm else None, y, *saved, *walk)


def attention(D, dtype, everything):
    """Forward and backward: causal with a window, or with whatever the kernels can do."""
    from hetkern.triton import attention as family

    B, Hq, Hkv, L, f32 = 2, 8, 2, 2048, torch.float32
    q, k, v = meta(B, Hq, L, D, dtype=dtype), *(meta(B, Hkv, L, D, dtype=dtype) for _ in "kv")
    scores = [0.1, 0.0, True, 512, -1, *[None] * 4, 0.0, *[None] * 3, 0, 0, None]
    needs = 7
    if everything:
        bias, mask = meta(1, Hq, L, L, dtype=dtype), meta(B, 1, 1, L, dtype=torch.bool)
        scores[1], scores[9], scores[10] = 30.0, 0.1, meta(1, dtype=torch.int64)
        scores[5:9] = meta(B, Hq, dtype=f32), bias, mask, meta(Hq, dtype=dtype)
        scores[15], needs = meta(B, dtype=torch.int32), 63
    out, row_max, log_sum = family.attention(q, k, v, *scores)
    dlse = row_max if everything else None
    family.attention_backward(out, dlse, q, k, v, out, row_max, log_sum, *scores, needs)


def decode(D, dtype):
    """One query a sequence over a cache: heads of a group in a tile, keys in parts."""
    from hetkern.triton import attention as family

    q, k = meta(4, 32, 1, D, dtype=dtype), meta(4, 8, 4096, D, dtype=dtype)
    lengths = meta(4, dtype=torch.int32)
    family.attention(q, k, k, 0.1, 0.0, True, -1, -1, *[None] * 4, 0.0, *[None] * 3, 0, 0, lengths)


CASES = {
    "softmax bfloat16 N=1024": lambda: softmax(1024, torch.bfloat16, False),
    "softmax float32 N=16384": lambda: softmax(16384, torch.float32, False),
    "softmax bfloat16 N=131072": lambda: softmax(131072, torch.bfloat16, False),
    "softmax bfloat16 N=4096, everything": lambda: softmax(4096, torch.bfloat16, True),
    "softmax bfloat16 N=131072, everything": lambda: softmax(131072, torch.bfloat16, True),
    "cross_entropy bfloat16": lambda: cross_entropy(VOCABULARY, torch.bfloat16, False),
    "cross_entropy bfloat16, everything": lambda: cross_entropy(VOCABULARY, torch.bfloat16, True),
    "cross_entropy float32 probabilities, everything": lambda: cross_entropy(
        VOCABULARY, torch.float32, True, True
    ),
    "rnn lstm bfloat16, everything": lambda: rnn("lstm", torch.bfloat16, True),
    "rnn gru float32": lambda: rnn("gru", torch.float32, False),
    "attention bfloat16 D=64": lambda: attention(64, torch.bfloat16, False),
    "attention bfloat16 D=128, everything": lambda: attention(128, torch.bfloat16, True),
    "attention float32 D=64, everything": lambda: attention(64, torch.float32, True),
    "attention bfloat16 D=256": lambda: attention(256, torch.bfloat16, False),
    "attention bfloat16 D=128, decode": lambda: decode(128, torch.bfloat16),
}
# Attention's kernels take the compiler a minute a GPU: a few for some.
SOME = {
    "attention bfloat16 D=128, everything": (80, 90),
    "attention float32 D=64, everything": (90,),
    "attention bfloat16 D=256": (90, 120),
    "attention bfloat16 D=128, decode": (80, 90),
}
EVERYDAY = ("attention bfloat16 D=64", 90)


def _mark(name, sm):
    if "attention" not in name:
        return [pytest.mark.sample(5)]
    return [] if (name, sm) == EVERYDAY else [pytest.mark.proof]


EVERY = [
    pytest.param(name, sm, marks=_mark(name, sm))
    for name in CASES
    for sm in SOME.get(name, triton_aot.ARCHITECTURES)
]


def built(name, architecture):
    with triton_aot.launches() as launched:
        CASES[name]()
    kernels = {_label(launch): launch for launch in launched}  # a part of the keys as another
    return {label: launch.compile(architecture) for label, launch in kernels.items()}


def _label(launch):
    """A kernel's name, and which of its results a launch is for, where it has two."""
    wanted = [name for name in ("dk", "dv") if launch.arguments.get(name) is not None]
    return launch.kernel.__name__ + (f" of {wanted[0]}" if len(wanted) == 1 else "")


@pytest.fixture(autouse=True, scope="module")
def compiling():
    from hetkern.testing import triton_interpreter

    if triton_interpreter.active():
        pytest.skip("Triton interprets in this process: compiling needs another")


@pytest.mark.parametrize("name, architecture", EVERY)
def test_triton_kernels_keep_their_budget_of_registers_spills_and_shared_memory(name, architecture):
    budget = json.loads(BUDGET.read_text())[name]
    kernels = built(name, architecture)
    assert kernels.keys() == budget.keys()
    for kernel, needs in kernels.items():
        registers, shared, *spills = budget[kernel][f"sm_{architecture}"]
        assert needs.spills <= sum(spills) and needs.registers <= registers, (
            f"{kernel}: {needs}, budget {registers} registers and {sum(spills)} spills"
        )
        assert needs.shared <= shared, f"{kernel}: {needs}, budget {shared} bytes"
        if "attention" in name:  # rows of heads come 16 bytes at a time
            loads = needs.opcodes["LDG.128"] + needs.opcodes["LDGSTS.128"]
            assert loads > 0 or "lengths" in kernel, f"{kernel}: {needs.opcodes}"
            continue
        # Whole rows are loaded and stored 16 bytes at a time: N is a multiple of 16.
        if "reduction" not in kernel:
            assert needs.opcodes["LDG.128"] > 0, f"{kernel}: {needs.opcodes}"
        if "cross_entropy_forward" not in kernel and "reduction" not in kernel:
            assert needs.opcodes["STG.128"] > 0, f"{kernel}: {needs.opcodes}"


@pytest.mark.proof
@pytest.mark.parametrize("packed", [False, True])
def test_triton_attention_compiles_where_every_size_is_1(packed):
    """An argument of 1 is a constant to Triton, which has no type and no methods of a block."""
    from hetkern.triton import attention as family

    f32, ends = torch.float32, meta(2, dtype=torch.int32) if packed else None
    q, row = meta(1, 1, 1) if packed else meta(1, 1, 1, 1), meta(1, 1, dtype=f32)
    tile = None if packed else meta(1, 1, 1, 1)
    mask = None if packed else meta(1, 1, 1, 1, dtype=torch.bool)
    used = None if packed else meta(1, dtype=torch.int32)
    masks = row, tile, mask, meta(1), 0.5, meta(1, dtype=torch.int64)
    scores = (0.1, 30.0, False, 1, 1, *masks, ends, ends, int(packed), int(packed), used)
    with triton_aot.launches() as launched:
        out, row_max, log_sum = family.attention(q, q, q, *scores)
        stats = out, row_max, log_sum
        family.attention_backward(out, row_max, q, q, q, *stats, *scores, 55 if packed else 63)
    assert len(launched) == (6 if packed else 7)
    assert all(launch.compile(90).spills == 0 for launch in launched)


def test_triton_trap_on_a_bad_target_stays_in_the_compiled_kernel():
    import triton

    with triton_aot.launches() as launched:
        cross_entropy(1024, torch.float32, False)
    forward = launched[0]
    assert forward.arguments["CHECKED"] and forward.options["debug"]
    needs = forward.compile(90)
    assert needs.opcodes["CALL"] > 0, f"no call of the assertion's failure: triton {triton}"


def test_triton_trap_on_a_bad_length_stands_in_the_first_step_alone():
    with triton_aot.launches() as launched:
        rnn("tanh", torch.float32, True, T=3)
    steps = [s for s in launched if s.kernel.__name__ == "rnn_step_forward_kernel"]
    assert [s.arguments["CHECKED"] for s in steps] == [True, False, False]
    built = [s.compile(90).opcodes["CALL"] for s in steps[:2]]
    assert built[0] == built[1] + 1


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
def test_triton_sequences_read_nothing_back_from_a_gpu(cell, packed, reverse):
    """A tensor on "meta" has no value to read: a call that asks for one raises."""
    from hetkern.ops.rnn import CELLS, GATES
    from hetkern.ops.rnn_derivatives import states_before
    from hetkern.triton import rnn as family

    T, B, H, lstm = 3, 4, 8, cell == "lstm"
    rows = (7,) if packed else (T, B)
    state, c = meta(B, H), meta(B, H, dtype=torch.float32) if lstm else None
    counts = torch.tensor([4, 2, 1]) if packed else None
    lengths = None if packed else meta(B, dtype=torch.int64)
    places = lengths, counts, state, meta(*rows, dtype=torch.bool), reverse
    columns = GATES[cell] * H
    walk = meta(*rows, columns), meta(columns, H), meta(columns), state, c, *places
    with triton_aot.launches() as launched:
        y, h_n, c_n, *saved = family.rnn_sequence(CELLS.index(cell), *walk, True)
        ends = h_n, c_n if lstm else None
        family.rnn_sequence_backward(CELLS.index(cell), y, *ends, y, *saved, *walk)
        if not packed:
            assert states_before(cell, y, state, *places).shape == y.shape
    assert len(launched) == 2 * T + 1


def test_triton_compiles_a_step_once_for_all_steps():
    with triton_aot.launches() as launched:
        rnn("tanh", torch.float32, False, T=17)
    kernels = {}
    for launch in launched:
        kernels.setdefault(launch.kernel.__name__, []).append(launch)
    for name in ("rnn_step_forward_kernel", "rnn_step_backward_kernel"):
        steps = kernels[name]
        assert len(steps) >= 17 and {0, 1, 16} <= {s.arguments["start"] for s in steps}
        built = [s.compile(90) for s in steps if s.arguments["start"] in (0, 1, 16)]
        assert built[0] == built[1] == built[2]


def test_triton_aot_sees_a_spill_and_a_lost_vector_load():
    from hetkern.triton.softmax import softmax_forward_kernel

    with triton_aot.launches() as launched:
        softmax(16384, torch.float32, False)
    launch = launched[0]
    assert launch.kernel is softmax_forward_kernel
    crowded = triton_aot.Launch(
        launch.kernel, launch.arguments, launch.options | {"num_warps": 1}, launch.grid
    ).compile(90)
    assert crowded.spills > 0
    with triton_aot.launches() as launched:
        softmax(1023, torch.float32, False)
    assert launched[0].compile(90).opcodes["LDG.128"] == 0


def write_budget(word):
    """One line a kernel: registers, bytes of shared memory, and spills, on each architecture.

    Cases without the word keep what they have.
    """
    before = json.loads(BUDGET.read_text())
    needs = {}
    for name in CASES:
        if word not in name:
            needs[name] = before[name]
            continue
        kernels = needs.setdefault(name, {})
        for architecture in SOME.get(name, triton_aot.ARCHITECTURES):
            for kernel, b in built(name, architecture).items():
                print(f"{name:48} {kernel:36} sm_{architecture} {b}", flush=True)
                spills = [b.spills] if b.spills else []
                own = kernels.setdefault(kernel, {})
                own[f"sm_{architecture}"] = [b.registers, b.shared, *spills]
    cases = []
    for name, kernels in needs.items():
        lines = [f"  {json.dumps(kernel)}: {json.dumps(b)}" for kernel, b in kernels.items()]
        cases.append(f" {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n }")
    BUDGET.write_text("{\n" + ",\n".join(cases) + "\n}\n")


def test_triton_aot_types_arguments_as_triton_does():
    import triton
    import triton.language as tl

    @triton.jit(do_not_specialize=["fixed"])
    def kernel(o, one, sixteen, fixed, wide: tl.int64, number, half: tl.float16, flag, nothing):
        tl.store(o, one)

    with triton_aot.launches() as launched:
        kernel[(1,)](meta(4), 1, 16, 16, 1, 0.5, 0.5, True, None)
    made = triton_aot.specialised(kernel.params, launched[0].arguments)
    types = ["*bf16", "constexpr", "i32", "i32", "i64", "fp32", "fp16", "u1", "constexpr"]
    assert list(made.signature.values()) == types
    assert made.constants == {(1,): 1, (8,): None}, "a 1 and None; none that has an annotation"
    assert set(made.attributes) == {(0,), (2,)}, "multiples of 16 that may be specialised on"


if __name__ == "__main__":
    write_budget(sys.argv[1] if len(sys.argv) > 1 else "")
