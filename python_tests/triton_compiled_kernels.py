"""Kernels of test_triton_compiled.py: each also runs as the PTX that Triton makes of it."""

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def products_and_sums(x, y, z, o, N: tl.constexpr):
    i = tl.arange(0, N)
    a, b, c = tl.load(x + i), tl.load(y + i), tl.load(z + i)
    tl.store(o + i, a * b + c)
    tl.store(o + N + i, c - a * b)
    tl.store(o + 2 * N + i, b * c - a * c)
    tl.store(o + 3 * N + i, a * b * c + b)


@triton.jit
def product_before_a_loop(x, y, z, o, n, N: tl.constexpr):
    i = tl.arange(0, N)
    before = tl.load(x + i) * tl.load(y + i)
    total = tl.load(z + i)
    for k in range(n):
        total += before
        total += tl.load(x + i) * k
    tl.store(o + i, total)


@triton.jit
def rotations(x, y, z, o, N: tl.constexpr):
    i = tl.arange(0, N)
    a, b, c = tl.load(x + i), tl.load(y + i), tl.load(z + i)
    tl.store(o + i, b * c + a * b)
    tl.store(o + N + i, a * c - b * b)
    tl.store(o + 2 * N + i, (c * 2.0) * c + a * a)
    tl.store(o + 3 * N + i, a * a + b * b + c * 0.5)


@triton.jit
def products_used_twice(x, y, z, o, N: tl.constexpr):
    i = tl.arange(0, N)
    a, b, c = tl.load(x + i), tl.load(y + i), tl.load(z + i)
    q = a * a
    tl.store(o + i, q + b * q)
    tl.store(o + N + i, q - b * q)
    tl.store(o + 2 * N + i, (q - c) * q + q)
    p = b * c
    r = p + a
    tl.store(o + 3 * N + i, p + r * b)


@triton.jit
def averages(x, y, z, o, beta, n, N: tl.constexpr):
    i = tl.arange(0, N)
    m, v, b = tl.load(y + i), tl.load(z + i), tl.load(z + i)
    for k in range(n):
        g = tl.load(x + (i + k) % N)
        m = beta * m + (1 - beta) * g
        v = v * 0.9 + g * g * 0.1
        m = m * 0.9 + g * 0.1
    tl.store(o + i, m)
    tl.store(o + N + i, v)
    tl.store(o + 2 * N + i, b * b + m)
    tl.store(o + 3 * N + i, m * tl.sum(b, 0) + b * 0.3)


@triton.jit
def outer_sum(x, y, o, M: tl.constexpr, N: tl.constexpr):
    m, n = tl.arange(0, M), tl.arange(0, N)
    p = tl.load(x + m) * tl.load(y + m)
    tl.store(o + m[:, None] * N + n[None, :], p[:, None] + tl.load(x + n)[None, :])


@triton.jit
def total(x, o, N: tl.constexpr):
    tl.store(o, tl.sum(tl.load(x + tl.arange(0, N))))


@triton.jit
def inner_product(x, y, o, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(o, tl.sum(tl.load(x + i) * tl.load(y + i)))


@triton.jit
def sums_of_a_matrix(x, rows, columns, M: tl.constexpr, N: tl.constexpr):
    m, n = tl.arange(0, M), tl.arange(0, N)
    v = tl.load(x + m[:, None] * N + n[None, :])
    tl.store(rows + m, tl.sum(v, 1))
    tl.store(columns + n, tl.sum(v, 0))


@triton.jit
def running(x, o, N: tl.constexpr, REVERSE: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(o + i, tl.cumsum(tl.load(x + i), 0, reverse=REVERSE))


@triton.jit
def softmax(x, o, n, N: tl.constexpr):
    i = tl.program_id(0) * n + tl.arange(0, N)
    inside = tl.arange(0, N) < n
    v = tl.load(x + i, mask=inside, other=-float("inf"))
    e = tl.exp(v - tl.max(v))
    tl.store(o + i, e / tl.sum(e), mask=inside)


@triton.jit
def elementwise(x, y, o, N: tl.constexpr):
    i = tl.arange(0, N)
    a, b = tl.load(x + i), tl.load(y + i)
    tl.store(o + i, a % b)
    tl.store(o + N + i, tl.exp(a))
    tl.store(o + 2 * N + i, tl.rsqrt(a))
    tl.store(o + 3 * N + i, tl.maximum(a, b) + tl.minimum(b, a))
    tl.store(o + 4 * N + i, tl.exp2(b) / a)
    tl.store(o + 5 * N + i, tl.clamp(a, -1.0, 1.0))


@triton.jit
def integers(x, y, o, N: tl.constexpr):
    i = tl.arange(0, N)
    a, b = tl.load(x + i), tl.load(y + i)
    p, q = a > 0, b > 0
    tl.store(o + i, tl.umulhi(a, b))
    tl.store(o + N + i, (p + q).to(tl.int32) + (p - q).to(tl.int32) + (p * q).to(tl.int32))
    tl.store(o + 2 * N + i, (a >> 3) ^ (b << 5))
    tl.store(o + 3 * N + i, tl.where(b != 0, a // tl.where(b == 0, 1, b), a))


@triton.jit
def cast(x, o, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(o + i, tl.load(x + i).to(o.dtype.element_ty))


@triton.jit
def added_atomically(x, o, before, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(before + i, tl.atomic_add(o + i, tl.load(x + i), mask=i % 3 != 0))


@triton.jit
def matrix_product(x, y, o, N: tl.constexpr):
    n = tl.arange(0, N)
    at = n[:, None] * N + n[None, :]
    tl.store(o + at, tl.dot(tl.load(x + at), tl.load(y + at)))


@triton.jit
def negative_offsets(x, o, shift, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(o + i, tl.load(x + 32 + (i - shift) % 32))


@triton.jit
def running_sums(x, running, last, n, M: tl.constexpr, K: tl.constexpr):
    m, k = tl.arange(0, M), tl.arange(0, K)
    acc = tl.zeros((M,), tl.float32)
    for i in range(n):
        tl.store(running + i * M + m, acc)
        acc += tl.sum(tl.load(x + i * M * K + m[:, None] * K + k[None, :]), 1)
    tl.store(last + m, acc)


@triton.jit
def turned_around_in_place(x, N: tl.constexpr, BARRIER: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i)
    if BARRIER:
        tl.debug_barrier()
    tl.store(x + (N - 1 - i), v)


@triton.jit
def of_libdevice(x, o, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i)
    tl.store(o + i, libdevice.tanh(v))
    tl.store(o + N + i, libdevice.rint(v))
    tl.store(o + 2 * N + i, libdevice.fma_rz(v, v, v))
    tl.store(o + 3 * N + i, libdevice.pow(tl.abs(v), v))
    tl.store(o + 4 * N + i, libdevice.add_ru(v, 1e-9))


@triton.jit
def assembly(x, o, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.inline_asm_elementwise(
        "sin.approx.f32 $0, $1;", "=f,f", [tl.load(x + i)], tl.float32, True, 1
    )
    tl.store(o + i, v)
