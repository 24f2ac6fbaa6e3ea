"""How the CUDA kernels share out rows, and that every way gives the right values."""

import pytest
import torch

import hetkern
from hetkern.testing import assert_close_to_exact
from hetkern.testing.emulation import emulated_cuda, why_no_emulation

_C = pytest.importorskip("hetkern._C", reason="hetkern._C is not built")

H100 = {"capability": 90, "processors": 132, "shared_bytes": 232448}
A100 = {"capability": 80, "processors": 108, "shared_bytes": 166912}
RTX4090 = {"capability": 89, "processors": 128, "shared_bytes": 101376}
GPUS = [H100, A100, RTX4090]
LENGTHS = [
    1,
    2,
    3,
    8,
    31,
    64,
    257,
    512,
    513,
    1000,
    4097,
    16384,
    16385,
    50257,
    128257,
    262144,
    10**7,
]


def plan(M, N, *, gpu=H100, columns=False, x="float32", y=None, reads=1):
    return _C.softmax_plan_cuda(M, N, columns, x, y or x, reads, **gpu)


@pytest.mark.parametrize("gpu", GPUS, ids=["H100", "A100", "4090"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_the_leaves_of_a_row_depend_on_its_length_alone(gpu, dtype):
    for N in LENGTHS:
        lanes = {
            plan(M, N, gpu=gpu, columns=columns, x=dtype)["lanes"]
            for M in (1, 7, 4096, 2**33 // N + 1)
            for columns in (False, True)
        }
        assert len(lanes) == 1, N


@pytest.mark.parametrize("gpu", GPUS, ids=["H100", "A100", "4090"])
def test_a_plan_stays_within_the_device(gpu):
    for N in LENGTHS:
        for columns in (False, True):
            for reads in (1, 2, 3):
                for dtype in ("float32", "float64", "bfloat16"):
                    p = plan(2**40 // N, N, gpu=gpu, columns=columns, x=dtype, reads=reads)
                    assert p["shared_bytes"] <= gpu["shared_bytes"]
                    assert 32 <= p["threads"] <= 256 and p["threads"] % 32 == 0
                    assert 1 <= p["tasks"] < 2**31 and p["tasks"] % p["cluster"] == 0
                    assert gpu["capability"] >= 90 or p["cluster"] == 1


@pytest.mark.parametrize("dtype, lanes", [("float32", 32), ("bfloat16", 32), ("float64", 32)])
def test_a_block_takes_several_short_rows(dtype, lanes):
    longest = plan(1000, 512, x=dtype)
    assert longest["path"] == "whole_rows" and longest["lanes"] == lanes
    assert longest["tasks"] == 1000 // (longest["threads"] // lanes)
    assert plan(1000, 4, x="float32")["tasks"] == -(-1000 // 128)


def test_a_block_takes_one_longer_row_and_keeps_it():
    for gpu in GPUS:
        p = plan(1000, 4096, gpu=gpu)
        assert p["path"] == "whole_rows" and p["lanes"] == p["threads"]
        assert p["keep"] and p["tasks"] == 1000


def test_a_cluster_takes_a_row_beyond_one_blocks_good_share():
    assert plan(8, 16384)["cluster"] == 1
    for N, cluster in [(16385, 2), (50257, 4), (128257, 8), (262144, 8)]:
        p = plan(8, N)
        assert (p["path"], p["cluster"], p["keep"]) == ("split_rows", cluster, True), N
        assert p["tasks"] == 8 * cluster and p["lanes"] == cluster * p["threads"]


def test_a_row_that_no_memory_holds_is_read_twice():
    assert not plan(1, 10**7)["keep"]
    assert not plan(8, 50257, gpu=A100)["keep"] and plan(8, 38000, gpu=A100)["keep"]
    assert not plan(8, 25000, gpu=RTX4090)["keep"] and plan(8, 22000, gpu=RTX4090)["keep"]
    assert plan(8, 24000, gpu=A100)["keep"] and not plan(8, 24000, gpu=A100, reads=2)["keep"]


def test_a_thread_is_a_row_where_neighbouring_rows_lie_side_by_side():
    p = plan(1000, 300, columns=True)
    assert (p["path"], p["threads"], p["tasks"], p["keep"]) == ("columns", 256, 32, True)
    assert not plan(1000, 4000, columns=True)["keep"]


def test_a_loss_keeps_nothing():
    for N in LENGTHS:
        p = _C.cross_entropy_plan_cuda(64, N, False, "float32", **H100)
        assert p["shared_bytes"] < 4096 and "keep" not in p


def test_a_sequence_goes_step_by_step_and_a_thread_takes_16_bytes_of_its_state():
    for gpu in GPUS:
        for dtype, units in (("float32", 4), ("bfloat16", 4), ("float64", 2)):
            for B, H in ((1, 1), (3, 17), (32, 512), (2**20, 2**14)):
                p = _C.rnn_plan_cuda("lstm", 7, B, H, dtype, **gpu)
                assert p["path"] == "step_by_step" and p["threads"] == 128
                assert p["lanes"] == -(-H // units) and p["shared_bytes"] == 0
                assert p["tasks"] == min(-(-B * p["lanes"] // 128), 16 * gpu["processors"])


@pytest.mark.parametrize("gpu", GPUS, ids=["H100", "A100", "4090"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_a_plan_of_attention_stays_within_the_device_at_every_width(gpu, dtype):
    rows = {"float64": 8, "float32": 32}.get(dtype)  # keys a tile of scores, whatever the length
    for D in (1, 16, 59, 64, 65, 128, 129, 256):
        for Dv in (1, 64, 128, 256):
            for backward in (False, True):
                tiles = set()
                for Lq in (1, 16, 17, 100, 4096):
                    p = _C.attention_plan_cuda(
                        2, 4, 2, Lq, 77, D, Dv, dtype, backward=backward, **gpu
                    )
                    fold = Lq <= 16 and not backward  # both heads of a group in one tile
                    assert p["path"] == "split_queries" and p["threads"] in (32, 64, 128)
                    assert p["shared_bytes"] <= gpu["shared_bytes"] and p["fold"] == fold
                    down, heads = (2 * Lq, 4) if fold else (Lq, 8)
                    blocks = -(-down // (p["threads"] // 2))
                    assert p["tasks"] % (heads * blocks) == 0
                    assert p["workspace"] == backward * 16 * Lq * (8 if dtype == "float64" else 4)
                    tiles.add(p["lanes"])
                assert len(tiles) == 1 and rows in (None, *tiles)


@pytest.mark.parametrize("gpu", GPUS, ids=["H100", "A100", "4090"])
def test_blocks_take_parts_of_the_keys_where_there_are_few_queries(gpu):
    def plan(Lq, Lk, B=1, D=64, heads=(4, 2), dtype="bfloat16"):
        return _C.attention_plan_cuda(B, *heads, Lq, Lk, D, D, dtype, **gpu)

    for Lq, Lk, parts in ((1, 1025, 2), (16, 5000, 5)):
        p = plan(Lq, Lk)
        assert (p["path"], p["parts"], p["tasks"]) == ("split_keys", parts, 2 * parts)
        assert p["workspace"] == parts * 4 * Lq * (64 + 8) * 4
    p = plan(1, 5000, D=256, dtype="float32")  # in two slices
    assert (p["path"], p["tasks"], p["fold"]) == ("split_keys", 20, True)
    assert p["workspace"] == 5 * 4 * 2 * (128 + 8) * 4
    wide = plan(1, 5000, D=129)  # whose sums leave no registers
    assert (wide["path"], wide["tasks"], wide["fold"]) == ("split_queries", 2, True)
    alone = plan(1, 5000, heads=(2, 2))  # nothing to fold, but few queries' kernel all the same
    assert (alone["path"], alone["tasks"], alone["fold"]) == ("split_keys", 10, True)
    assert not plan(1, 1024, heads=(2, 2))["fold"] and plan(1, 1024)["fold"]
    for p in (plan(1, 1024), plan(17, 5000), plan(1, 5000, B=gpu["processors"])):
        assert p["path"] == "split_queries"
    assert plan(1, 1024)["workspace"] == 0 and plan(17, 5000)["workspace"] == 4 * 17 * 72 * 4


@pytest.mark.parametrize("heads, Lq", [((32, 8), 1), ((8, 1), 3), ((71, 1), 1), ((40, 1), 16)])
def test_the_heads_of_a_group_share_a_tile_where_there_are_few_queries(heads, Lq):
    """Blocks are counted by a group's rows: the cache is read once for 64 of them."""
    p = _C.attention_plan_cuda(3, *heads, Lq, 500, 128, 128, "bfloat16", **GPUS[0])
    rows = heads[0] // heads[1] * Lq
    assert p["fold"] and p["tasks"] == 3 * heads[1] * -(-rows // (p["threads"] // 2))
    assert p["threads"] == (32 if rows <= 16 else 64 if rows <= 32 else 128)


# ---- What runs by each plan. ---------------------------------------------------------------------

needs_emulation = pytest.mark.skipif(why_no_emulation() is not None, reason=str(why_no_emulation()))

#: rows, length, columns, capability, shared_bytes, and what the plan must say.
RUNS = [
    ((130, 31), False, 90, 232448, {"path": "whole_rows", "lanes": 4}),
    ((3, 1000), False, 90, 232448, {"path": "whole_rows", "lanes": 64, "keep": True}),
    ((3, 6000), False, 90, 232448, {"path": "whole_rows", "lanes": 256, "keep": True}),
    ((3, 6000), False, 80, 16384, {"path": "whole_rows", "lanes": 256, "keep": False}),
    ((2, 40001), False, 90, 232448, {"path": "split_rows", "cluster": 4, "keep": True}),
    ((2, 40001), False, 90, 16384, {"path": "split_rows", "cluster": 4, "keep": False}),
    ((2, 38000), False, 80, 166912, {"path": "whole_rows", "cluster": 1, "keep": True}),
    ((40, 300), True, 90, 232448, {"path": "columns", "lanes": 32, "keep": True}),
    ((40, 300), True, 90, 16384, {"path": "columns", "lanes": 32, "keep": False}),
]
IDS = [f"{r[1]}-{r[4]['path']}-sm{r[2]}-{r[3]}" for r in RUNS]


def _values(shape, columns, log):
    generator = torch.Generator().manual_seed(0)
    x, dy = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    if columns:
        x, dy = x.t().contiguous(), dy.t().contiguous()
    function = hetkern.log_softmax if log else hetkern.softmax
    x.requires_grad_()
    y = function(x, 0 if columns else 1)
    (dx,) = torch.autograd.grad(y, x, dy)
    return y.detach(), dx, x.detach(), dy


@needs_emulation
@pytest.mark.parametrize("shape, columns, capability, shared_bytes, says", RUNS, ids=IDS)
def test_every_path_of_softmax_is_within_budget(
    shape, columns, capability, shared_bytes, says, monkeypatch
):
    gpu = {"capability": capability, "shared_bytes": shared_bytes}
    planned = _C.softmax_plan_cuda(*shape, columns, "float32", "float32", 1, **gpu)
    assert planned | says == planned, "the test does not reach the path that it claims to"
    monkeypatch.setenv("HETKERN_EMULATED_CAPABILITY", str(capability))
    monkeypatch.setenv("HETKERN_EMULATED_SHARED_BYTES", str(shared_bytes))
    for log in (False, True):
        with emulated_cuda(), hetkern.use("cuda"):
            y, dx, x, dy = _values(shape, columns, log)
        dim = 0 if columns else 1
        torch_function = torch.log_softmax if log else torch.softmax

        def gradient(dtype, f=torch_function, x=x, dy=dy, dim=dim):
            x = x.to(dtype).requires_grad_()
            return torch.autograd.grad(f(x, dim), x, dy.to(dtype))[0]

        assert_close_to_exact(y, lambda t, f=torch_function, x=x, d=dim: f(x.to(t), d), dim=dim)
        assert_close_to_exact(dx, gradient, dim=dim)


@needs_emulation
@pytest.mark.parametrize(
    "shape, columns", [((3, 6000), False), ((2, 40001), False), ((40, 300), True)]
)
def test_softmax_bits_do_not_depend_on_a_row_being_kept(shape, columns, monkeypatch):
    seen = []
    for shared_bytes in ("232448", "16384"):
        monkeypatch.setenv("HETKERN_EMULATED_SHARED_BYTES", shared_bytes)
        with emulated_cuda(), hetkern.use("cuda"):
            seen.append(_values(shape, columns, False)[:2])
    assert all(torch.equal(kept, read_twice) for kept, read_twice in zip(*seen, strict=True))


@needs_emulation
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("shape", [(9, 31), (3, 6000), (2, 40001)])
def test_every_path_of_a_loss_is_within_budget(shape, capability, monkeypatch):
    monkeypatch.setenv("HETKERN_EMULATED_CAPABILITY", str(capability))
    cluster = _C.cross_entropy_plan_cuda(*shape, False, "float32", capability=capability)["cluster"]
    assert (cluster > 1) == (shape[1] > 16384 and capability == 90)
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3
    target = torch.arange(shape[0])

    def gradient(function, dtype):
        x = logits.to(dtype).requires_grad_()
        loss = function(x, target)
        return loss.detach(), torch.autograd.grad(loss, x)[0]

    with emulated_cuda(), hetkern.use("cuda"):
        loss, dx = gradient(hetkern.cross_entropy, torch.float32)
    torch_loss = torch.nn.functional.cross_entropy
    assert_close_to_exact(loss, lambda dtype: gradient(torch_loss, dtype)[0])
    assert_close_to_exact(dx, lambda dtype: gradient(torch_loss, dtype)[1])


# ---- An RNN's units. -----------------------------------------------------------------------------


@needs_emulation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", ["tanh", "relu", "lstm", "gru"])
def test_bits_of_a_step_do_not_depend_on_how_units_lie(cell, dtype):
    """Side by side on a boundary, beside one, and more rows than the launch has threads."""
    from hetkern.reference.rnn import CELLS, GATES, accumulator_of

    generator = torch.Generator().manual_seed(0)
    B, H, G = 5, 8, GATES[cell]

    def twice(columns, kind=dtype):
        drawn = torch.randn(B, columns, generator=generator).to(kind)
        beside = torch.empty(B * columns + 1, dtype=kind)[1:].view(B, columns)
        return drawn, beside.copy_(drawn)

    x, h_gates, h = twice(G * H), twice(G * H), twice(H)
    c = twice(H, accumulator_of(dtype)) if cell == "lstm" else (None, None)
    h = h if cell == "gru" else (None, None)
    seen = []
    with emulated_cuda():
        step = torch.ops.hetkern_emulated.rnn_gates
        for i in (0, 1):
            seen.append(step(CELLS.index(cell), x[i], h_gates[i], h[i], c[i]))
        alone = [
            step(
                CELLS.index(cell),
                *(None if t[0] is None else t[0][2:3] for t in (x, h_gates, h, c)),
            )
        ]
    for whole, apart, one in zip(*seen, *alone, strict=True):
        assert torch.equal(whole, apart) and (whole.numel() == 0 or torch.equal(whole[2:3], one))


@needs_emulation
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("capability, shared_bytes", [(90, 232448), (80, 65536), (80, 50000)])
def test_bits_of_attention_do_not_depend_on_the_shared_memory(
    dtype, capability, shared_bytes, monkeypatch
):
    """Two stages of tiles or one, four warps or fewer."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(1, 2, 70, 72, generator=generator).to(dtype) for _ in range(4)]

    def results():
        q, k, v = (t.clone().requires_grad_() for t in drawn[:3])
        with emulated_cuda(), hetkern.use("cuda"):
            out = hetkern.attention(q, k, v, causal=True)
            return [out, *torch.autograd.grad(out, (q, k, v), drawn[3])]

    wanted = results()
    monkeypatch.setenv("HETKERN_EMULATED_CAPABILITY", str(capability))
    monkeypatch.setenv("HETKERN_EMULATED_SHARED_BYTES", str(shared_bytes))
    assert all(torch.equal(a, b) for a, b in zip(wanted, results(), strict=True))


@needs_emulation
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    "ends_q, ends_k, most, says",
    [
        ([0, 2, 6], [0, 3, 6], 4, "cu_seqlens_q: wanted 5, the number of rows, last, got 6"),
        ([0, 2, 5], [0, 3, 9], 6, "cu_seqlens_k: wanted 6, the number of rows, last, got 9"),
        ([1, 2, 5], [0, 3, 6], 4, "cu_seqlens_q: wanted 0 first, got 1"),
        ([0, 7, 5], [0, 3, 6], 9, "cu_seqlens_q: wanted rising numbers, got 7 before 5 at 2"),
        ([0, 2, 5], [0, 5, 6], 4, "max_seqlen_k: wanted at least 5, sequence 0's length, got 4"),
    ],
)
def test_sequences_that_lie_elsewhere_are_caught_on_the_device(
    ends_q, ends_k, most, says, backward
):
    q, k = torch.zeros(5, 2, 8), torch.zeros(6, 2, 8)
    ends = [torch.tensor(e, dtype=torch.int32) for e in (ends_q, ends_k)]
    scores = (1.0, 0.0, False, -1, -1, None, None, None, None, 0.0, None, *ends, most, most, None)
    with emulated_cuda(), pytest.raises(ValueError, match=says):
        if backward:
            row = torch.zeros(2, 5)
            torch.ops.hetkern_emulated.attention_backward(q, None, q, k, k, q, row, row, *scores, 7)
        else:
            torch.ops.hetkern_emulated.attention(q, k, k, *scores)


@needs_emulation
@pytest.mark.parametrize("wrong", [-1, 7])
def test_a_caches_lengths_out_of_range_are_caught_on_the_device(wrong):
    q, k = torch.zeros(2, 2, 1, 8), torch.zeros(2, 2, 6, 8)
    lengths = torch.tensor([3, wrong], dtype=torch.int32)
    scores = (1.0, 0.0, False, -1, -1, *[None] * 4, 0.0, *[None] * 3, 0, 0, lengths)
    message = rf"seqlens_k: wanted lengths in \[0, 6\], got {wrong} for row 1"
    with emulated_cuda(), pytest.raises(ValueError, match=message):
        torch.ops.hetkern_emulated.attention(q, k, k, *scores)


@needs_emulation
def test_a_head_above_256_columns_is_refused_by_name():
    q = torch.zeros(1, 1, 2, 257)
    scores = (1.0, 0.0, False, -1, -1, *[None] * 4, 0.0, *[None] * 3, 0, 0, None)
    with emulated_cuda(), pytest.raises(ValueError, match=r"q: wanted at most 256 columns .* 257"):
        torch.ops.hetkern_emulated.attention(q, q, q, *scores)


@needs_emulation
@pytest.mark.parametrize("wrong", [-1, 4, 2**40, -(2**62)])
@pytest.mark.parametrize("backward", [False, True])
def test_lengths_out_of_range_are_caught_on_the_device(wrong, backward):
    x, w, h0 = torch.zeros(3, 2, 15), torch.zeros(15, 5), torch.zeros(2, 5)
    lengths, rest = torch.tensor([1, wrong]), (None, None, None, False)
    message = rf"lengths: wanted values in \[0, 3\], got {wrong} for row 1"
    with emulated_cuda(), pytest.raises(ValueError, match=message):
        if backward:
            y, gates = torch.zeros(3, 2, 5), torch.zeros(3, 2, 20)
            torch.ops.hetkern_emulated.rnn_sequence_backward(
                3, y, None, None, y, gates, gates, x, w, None, h0, None, lengths, *rest
            )
        else:
            torch.ops.hetkern_emulated.rnn_sequence(3, x, w, None, h0, None, lengths, *rest, True)
