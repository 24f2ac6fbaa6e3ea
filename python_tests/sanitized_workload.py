"""What the sanitizers watch: every path, dtype and feature of the kernels, tails included.

The CPU's; with ``cuda`` as an argument the CUDA kernels, emulated, on fewer and smaller rows, and
with ``cuda two`` in two dtypes.
"""

import itertools
import os
import sys
from functools import partial

import torch
from attention_workload import attentions

import hetkern
from hetkern.testing.emulation import emulated_cuda

calls = 0
RECURRENT = os.environ.get("HETKERN_WORKLOAD") == "all"  # of the proof: the recurrent family too
GATES = {"tanh": 1, "relu": 1, "lstm": 4, "gru": 3}
DTYPES = torch.float32, torch.float64, torch.bfloat16, torch.float16
#: Shapes of softmax along dimension 1, and of a loss.
CPU_SHAPES = [(5, 1), (67, 1003), (3, 65, 18), (2, 3000, 17), (1, 70001)]
CUDA_SHAPES = [(5, 1), (33, 31), (2, 1003), (3, 65, 18), (1, 16900)]


#: T, B, columns, H and options of sequences; the first two are shared out.
SEQUENCES = [
    (16, 1, 5, 128, {}),
    (8, 16, 5, 48, {"lengths": torch.tensor([8, 0, 3, 5] * 4)}),
    (4, 5, 3, 17, {"batch_sizes": torch.tensor([5, 3, 3, 1])}),
    (3, 9, 3, 21, {"reset": torch.arange(27).reshape(9, 3) % 4 == 0, "recurrent_dropout": 0.3}),
]


def both_ways(f, *inputs):
    """Forward, backward and double backward."""
    global calls
    leaves = [t for t in inputs if t.requires_grad]
    y = f(*inputs)
    first = torch.autograd.grad(y.float().exp().sum(), leaves, create_graph=True)
    torch.autograd.grad(sum(g.float().square().sum() for g in first), leaves)
    calls += 1


def leaf(*shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype).requires_grad_()


def main():
    torch.manual_seed(0)
    native = hetkern.impl.native
    assert native is not None and native.threads() == 4
    plans = [native.softmax_plan(M, N, columns, "float32", "float32") for M, N, columns in
             [(64, 1000, False), (1, 70001, False), (64, 1000, True)]]  # fmt: skip
    assert {p["path"] for p in plans} == {"whole_rows", "split_rows", "columns"}
    assert all(p["tasks"] >= 2 for p in plans), "one thread would hide every race"

    sequences = [native.rnn_plan("lstm", T, B, H, "float32") for T, B, _, H, _ in SEQUENCES]
    assert [p["path"] for p in sequences] == ["split_units", "split_rows", "one_task", "one_task"]
    assert all(p["tasks"] == 4 for p in sequences[:2])

    if RECURRENT:
        recurrences(DTYPES)
        other = {"fma": "dot", "dot": "fma"}[native.bf16_product()]
        if native.set_bf16_product(other) == other:
            recurrences([torch.bfloat16])
    softmaxes(DTYPES, CPU_SHAPES)
    cross_entropies(DTYPES, [(7, 1), (67, 1003), (3, 65, 18), (1, 70001)])
    attention_plans = [
        native.attention_plan(*shape, "float32", backward=backward)
        for shape, backward in [
            ((1, 2, 1, 70, 150, 59, 33), False),
            ((1, 8, 2, 1, 1300, 33, 33), False),
            ((1, 2, 1, 70, 800, 59, 33), True),
        ]
    ]
    paths = [plan["path"] for plan in attention_plans]
    assert paths == ["split_queries", "split_keys", "split_heads"]
    assert all(plan["tasks"] >= 2 for plan in attention_plans)
    attention_on_the_cpu(DTYPES)
    print(f"{calls} calls on {native.threads()} threads")


def main_cuda():
    """All paths of an H100; of a GPU without clusters and with little memory rows read twice."""
    global calls
    torch.manual_seed(0)
    native = hetkern.impl.native
    plans = [
        native.softmax_plan_cuda(1, s[1], len(s) > 2, "float32", "float32") for s in CUDA_SHAPES
    ]
    assert {p["path"] for p in plans} == {"whole_rows", "split_rows", "columns"}
    assert {p["lanes"] < p["threads"] for p in plans if p["path"] == "whole_rows"} == {True, False}
    twice = native.softmax_plan_cuda(
        1, 6001, False, "float32", "float32", 1, 80, shared_bytes=16384
    )
    assert not twice["keep"]

    dtypes = (torch.float32, torch.bfloat16) if "two" in sys.argv else DTYPES
    with emulated_cuda(), hetkern.use("cuda"), hetkern.record() as log:
        softmaxes(dtypes, CUDA_SHAPES)
        cross_entropies(dtypes, [(7, 1), (33, 31), (2, 1003), (3, 65, 18), (1, 16900)])
        calls += attentions(dtypes, [(19, 37, 24, 17), (33, 17, 72, 130)])
        if RECURRENT:
            recurrent(dtypes, [(3, 8), (2, 17)])
        os.environ |= {
            "HETKERN_EMULATED_CAPABILITY": "80",
            "HETKERN_EMULATED_SHARED_BYTES": "16384",
        }
        softmaxes([torch.float32, torch.bfloat16], [(1, 6001), (2, 300, 33)])
    assert log and {entry.impl for entry in log} == {"cuda"}
    print(f"{calls} calls of emulated CUDA kernels")


def recurrences(dtypes):
    for dtype, cell in itertools.product(dtypes, GATES):
        for T, B, columns, H, options in SEQUENCES:
            packed = options.get("batch_sizes")
            x = (T, B, columns) if packed is None else (int(packed.sum()), columns)
            shapes = x, (2, B, H), *recurrent_weights(cell, columns, H) * 2
            both_ways(
                lambda x, h, *weights, c=cell, o=options: sequence(c, x, h, weights, o),
                *(leaf(*shape, dtype=dtype) for shape in shapes),
            )
        shapes = (7, 3), (7, 19), *recurrent_weights(cell, 3, 19)
        both_ways(partial(one_step, cell), *(leaf(*shape, dtype=dtype) for shape in shapes))


def recurrent_weights(cell, columns, H):
    """Shapes."""
    wide = GATES[cell] * H
    return (wide, columns), (wide, H), (wide,), (wide,)


def sequence(cell, x, h, weights, options):
    """Both directions, of which a sanitizer sees every load and store."""
    layers = [tuple(w / w.shape[0] ** 0.5 for w in weights[i : i + 4]) for i in (0, 4)]
    options = {"bidirectional": True, **options}
    if cell == "lstm":
        y, (h_n, c_n) = hetkern.lstm(x, (h, h), layers, **options)
        return torch.cat([y.flatten(), h_n.flatten(), c_n.flatten()])
    if cell != "gru":
        options["nonlinearity"] = cell
    y, h_n = (hetkern.gru if cell == "gru" else hetkern.rnn)(x, h, layers, **options)
    return torch.cat([y.flatten(), h_n.flatten()])


def one_step(cell, x, h, *weights):
    """A cell."""
    if cell == "lstm":
        return torch.cat(hetkern.lstm_cell(x, (h, h), *weights))
    if cell == "gru":
        return hetkern.gru_cell(x, h, *weights)
    return hetkern.rnn_cell(x, h, *weights, nonlinearity=cell)


def softmaxes(dtypes, shapes):
    for dtype, f in itertools.product(dtypes, (hetkern.softmax, hetkern.log_softmax)):
        for shape in shapes:
            both_ways(lambda x, f=f: f(x, 1), leaf(*shape, dtype=dtype))
        mask = torch.rand(6, 1, 33) > 0.3
        inputs = leaf(6, 40, 33, dtype=dtype), leaf(40, 1, dtype=dtype), leaf(6, 1, dtype=dtype)
        both_ways(
            lambda x, b, s, f=f, m=mask: f(
                x, scale=0.7, softcap=3.0, bias=b, mask=m, causal=True, sink=s
            ),
            *inputs,
        )
        both_ways(lambda x, f=f: f(x[:, 1::2].t(), 0), leaf(9, 31, dtype=dtype))


def cross_entropies(dtypes, shapes):
    for dtype in dtypes:
        for shape in shapes:
            classes = shape[1]
            target = torch.randint(0, classes, (shape[0], *shape[2:]))
            target.view(-1)[0] = -100
            weight = torch.rand(classes).to(dtype)
            for reduction in ("none", "sum", "mean"):
                both_ways(
                    lambda x, t=target, r=reduction: hetkern.cross_entropy(x, t, reduction=r),
                    leaf(*shape, dtype=dtype),
                )
            options = {"label_smoothing": 0.1, "scale": 0.7, "softcap": 3.0, "z_loss": 1e-3}
            both_ways(
                lambda x, t=target, w=weight, o=options: hetkern.cross_entropy(x, t, w, **o),
                leaf(*shape, dtype=dtype),
            )
            soft = torch.rand(shape).to(dtype).requires_grad_()
            both_ways(
                lambda x, q, w=weight: hetkern.cross_entropy(x, q, w, label_smoothing=0.1),
                leaf(*shape, dtype=dtype),
                soft,
            )


def attention_on_the_cpu(dtypes):
    """Tails of queries, keys and columns; every feature; a packed batch and a cache."""
    packed = torch.tensor([0, 5, 5, 40], dtype=torch.int32), torch.tensor([0, 9, 9, 140])
    for dtype in dtypes:
        q, k, v = (
            leaf(*s, dtype=dtype) for s in ((1, 2, 70, 59), (1, 1, 150, 59), (1, 1, 150, 33))
        )
        slopes, sink = torch.rand(1, 2, requires_grad=True), leaf(2, dtype=dtype)
        for options in (
            {"causal": True},
            {"window": (30, 7), "softcap": 3.0, "dropout_p": 0.3},
            {"alibi_slopes": slopes, "sink": sink, "mask": torch.rand(70, 150) > 0.3},
            {"causal": True, "bias": leaf(1, 1, 70, 150, dtype=dtype)},
            {"bias": leaf(1, 1, 1, 150, dtype=dtype)},
        ):
            extra = [t for t in options.values() if torch.is_tensor(t) and t.requires_grad]
            once(lambda *t, o=options: hetkern.attention(*t[:3], **o), q, k, v, *extra)
        long = leaf(1, 1, 800, 59, dtype=dtype), leaf(1, 1, 800, 33, dtype=dtype)
        once(lambda *t: hetkern.attention(*t, causal=True), q, *long)
        rows = leaf(40, 2, 59, dtype=dtype), leaf(140, 1, 59, dtype=dtype)
        once(
            lambda *t: hetkern.attention_varlen(*t, *packed, 35, 131, causal=True),
            *rows,
            leaf(140, 1, 33, dtype=dtype),
        )
        cache = (torch.randn(1, 2, 1300, 33).to(dtype) for _ in range(2))
        lengths = torch.tensor([1250], dtype=torch.int32)
        hetkern.attention_decode(torch.randn(1, 8, 1, 33).to(dtype), *cache, lengths)


def once(f, *inputs):
    """Forward and backward; double backward is torch's."""
    global calls
    torch.autograd.grad(f(*inputs).float().square().sum(), inputs)
    calls += 1


def recurrent(dtypes, sizes):
    """Cells, and sequences with every feature; of B rows and H units."""
    from hetkern.testing.cases.recurrent import CELLS, GATES, cell_op, rnn_op

    for dtype, cell, (B, H) in itertools.product(dtypes, CELLS, sizes):
        gates, states = GATES[cell] * H, 2 if cell == "lstm" else 1
        shapes = [(gates, 3), (gates, H), (gates,), (gates,)]

        def total(y):
            return y.flatten() if torch.is_tensor(y) else torch.cat([total(t) for t in y])

        weights = [leaf(*s, dtype=dtype) for s in shapes]
        step = [leaf(B, H, dtype=dtype) for _ in range(states)]
        both_ways(
            lambda *t, c=cell: total(cell_op("auto")(*t, cell=c)),
            leaf(B, 3, dtype=dtype),
            *step,
            *weights,
        )
        both = [leaf(*s, dtype=dtype) for s in shapes * 2]
        first = [leaf(2, B, H, dtype=dtype) for _ in range(states)]
        lengths = torch.arange(B) % 5  # a row of length 0
        sizes_of = torch.tensor([B, B, B - 1, 1])
        reset = torch.rand(B, 4) < 0.3
        for options in (
            {},
            {"lengths": lengths, "reset": reset, "recurrent_dropout": 0.3},
            {"batch_sizes": sizes_of},
        ):
            rows = (int(sizes_of.sum()), 3) if "batch_sizes" in options else (4, B, 3)
            call_sequence(
                lambda *t, c=cell, o=options, f=total: f(
                    rnn_op("auto")(*t, cell=c, bidirectional=True, **o)
                ),
                leaf(*rows, dtype=dtype),
                *first,
                *both,
            )


def call_sequence(f, *inputs):
    """Forward and backward; double backward goes by way of cells."""
    global calls
    torch.autograd.grad(f(*inputs).float().square().sum(), inputs)
    calls += 1


if __name__ == "__main__":
    main_cuda() if "cuda" in sys.argv else main()
