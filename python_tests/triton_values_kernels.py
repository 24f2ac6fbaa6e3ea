"""Small Triton kernels whose values stock Triton gets wrong, for test_triton_values.py."""

import triton
import triton.language as tl


@triton.jit
def converted(x, o, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(o + i, tl.load(x + i).to(o.dtype.element_ty))


@triton.jit
def with_numbers(x, o, more, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(o + i, tl.load(x + i) * 2.5 + 1 + tl.full((N,), 0.5, x.dtype.element_ty))
    tl.store(more + i, tl.load(x + i) > 2.5)


@triton.jit
def clamped(x, o, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(o + i, tl.clamp(tl.load(x + i), -1.0, 2.0))


@triton.jit
def approximate(x, o, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i)
    tl.store(o + i, tl.sqrt(v))
    tl.store(o + N + i, tl.rsqrt(v))
    tl.store(o + 2 * N + i, tl.ceil(v))
    tl.store(o + 3 * N + i, tl.exp2(v - 130.0))
    tl.store(o + 4 * N + i, tl.sqrt_rn(v))


@triton.jit
def total(x, o, N: tl.constexpr):
    tl.store(o, tl.sum(tl.load(x + tl.arange(0, N)), 0))


@triton.jit
def totals(x, o, M: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, M)
    tl.store(o + i, tl.sum(tl.load(x + i[:, None] * N + tl.arange(0, N)[None, :]), 1))


@triton.jit
def largest_at(x, o, N: tl.constexpr):
    tl.store(o, tl.argmax(tl.load(x + tl.arange(0, N)), 0))


@triton.jit
def inverted(x, o, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(o + i, ~tl.load(x + i))


@triton.jit
def exchanged(x, o, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(o + i, tl.atomic_xchg(x + i, 7.5))


@triton.jit
def by_block_pointer(x, o, M, K, B: tl.constexpr):
    v = tl.load(
        tl.make_block_ptr(x, (M, K), (K, 1), (2, 2), (B, B), (1, 0)),
        boundary_check=(0, 1),
        padding_option="zero",
    )
    tl.store(tl.make_block_ptr(o, (B, B), (B, 1), (0, 0), (B, B), (1, 0)), v)


@triton.jit
def by_descriptor(x, o, M, K, row, column, PAD: tl.constexpr, B: tl.constexpr):
    source = tl.make_tensor_descriptor(x, [M, K], [K, 1], [B, B], padding_option=PAD)
    tl.make_tensor_descriptor(o, [B, B], [B, 1], [B, B]).store([0, 0], source.load([row, column]))


@triton.jit
def hinted(x, o, start, stride, N: tl.constexpr):
    at = start + tl.arange(0, N) * stride
    tl.store(o + tl.arange(0, N), tl.load(x + tl.max_contiguous(tl.multiple_of(at, 8), 8)))


@triton.jit
def constant_in_groups(x, o, n, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(o + i, tl.load(x + i, mask=tl.max_constancy(i < n, 8), other=-1.0))


@triton.jit
def two_programs(y, X):
    """Programs (X, 0) and (0, 1) store to one element."""
    one = (tl.program_id(0) == X) & (tl.program_id(1) == 0)
    other = (tl.program_id(0) == 0) & (tl.program_id(1) == 1)
    tl.store(y, (1 + tl.program_id(1)).to(tl.float32), mask=one | other)


@triton.jit
def own_element(y):
    tl.store(y + tl.program_id(2), 1.0)


@triton.jit
def grouped(addresses, y, n, B: tl.constexpr):
    g, i = tl.program_id(0), tl.arange(0, B)
    x = tl.load(addresses + g).to(tl.pointer_type(tl.float32))
    tl.store(y + g * n + i, tl.load(x + i, mask=i < n), mask=i < n)


@triton.jit
def gathered(x, at, o, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(o + i, tl.gather(tl.load(x + i), tl.load(at + i), 0))


@triton.jit
def asserted(x, N: tl.constexpr):
    v = tl.load(x + tl.arange(0, N))
    tl.device_assert(v < 100.0, "large")
    tl.device_assert(v < 1.0, "small")


@triton.jit
def added_at_one_pointer(x, o, N: tl.constexpr):
    tl.atomic_add(o, tl.load(x + tl.arange(0, N)))
