"""Small Triton kernels, right and wrong, for test_triton_interpreter.py to import."""

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def double(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n, other=0.0) * 2.0, mask=i < n)


tuned = triton.autotune(
    configs=[triton.Config({"BLOCK": 16}, num_warps=2), triton.Config({"BLOCK": 64})], key=["n"]
)(double)


@triton.jit
def unmasked_tail(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i) * 2.0, mask=i < n)


@triton.jit
def store_before(x, y, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i - 1, tl.load(x + i, mask=i < n), mask=i < n)


@triton.jit
def read_rows(x, y, stride, columns, BLOCK: tl.constexpr):
    row, i = tl.program_id(0), tl.arange(0, BLOCK)
    tl.store(y + row, tl.sum(tl.load(x + row * stride + i, mask=i < columns, other=0.0), 0))


@triton.jit
def read_at_byte(x, y, BYTE: tl.constexpr):
    odd = (x.to(tl.pointer_type(tl.int8)) + BYTE).to(tl.pointer_type(tl.float32))
    tl.store(y, tl.load(odd))


@triton.jit
def column_sums(x, y, M, N, BM: tl.constexpr, BN: tl.constexpr):
    r, c = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BN)
    v = tl.load(
        x + r[:, None] * N + c[None, :], mask=(r < M)[:, None] & (c < N)[None, :], other=0.0
    )
    tl.atomic_add(y + c, tl.sum(v, 0), mask=c < N)


@triton.jit
def racing_column_sums(x, y, M, N, BM: tl.constexpr, BN: tl.constexpr):
    r, c = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BN)
    v = tl.load(
        x + r[:, None] * N + c[None, :], mask=(r < M)[:, None] & (c < N)[None, :], other=0.0
    )
    tl.store(y + c, tl.load(y + c, mask=c < N) + tl.sum(v, 0), mask=c < N)


@triton.jit
def everyone_writes(y, BLOCK: tl.constexpr):
    tl.store(y + tl.arange(0, BLOCK), tl.program_id(0).to(tl.float32))


@triton.jit
def half_atomic(y):
    if tl.program_id(0) == 0:
        tl.store(y, 1.0)
    else:
        tl.atomic_add(y, 1.0)


@triton.jit
def lanes_collide(y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i // 2, i.to(tl.float32))


@triton.jit
def false_hint(x, y, start, BLOCK: tl.constexpr):
    start = tl.multiple_of(start, 16)
    i = start + tl.arange(0, BLOCK)
    tl.store(y + tl.arange(0, BLOCK), tl.load(x + i))


@triton.jit
def read_twice(x, y, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    top = tl.max(tl.load(x + i, mask=i < n, other=float("-inf")), 0)
    tl.store(y + i, tl.load(x + i, mask=i < n) - top, mask=i < n)


@triton.jit
def cast(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i).to(y.dtype.element_ty))


@triton.jit
def arithmetic(x, y, sums, products, less, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a, b = tl.load(x + i), tl.load(y + i)
    tl.store(sums + i, a + b)
    tl.store(products + i, a * b)
    tl.store(less + i, a < b)


@triton.jit
def product(a, b, c, N: tl.constexpr, PRECISION: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    tl.store(c + at, tl.dot(tl.load(a + at), tl.load(b + at), input_precision=PRECISION))


@triton.jit
def largest(x, y, BLOCK: tl.constexpr):
    tl.store(y, tl.max(tl.load(x + tl.arange(0, BLOCK)), 0))


@triton.jit
def fused(x, y, z, w, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(w + i, tl.fma(tl.load(x + i), tl.load(y + i), tl.load(z + i)))


@triton.jit
def multiplied(a, b):
    return a * b


@triton.jit
def product_of_all(x, y, BLOCK: tl.constexpr):
    tl.store(y, tl.reduce(tl.load(x + tl.arange(0, BLOCK)), 0, multiplied).to(tl.float32))


@triton.jit
def external(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, libdevice.tanh(tl.load(x + i)))


@triton.jit
def assembly(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i)
    v = tl.inline_asm_elementwise(
        "ex2 $0, $1;", "=f,f", [v], dtype=tl.float32, is_pure=True, pack=1
    )
    tl.store(y + i, v)
