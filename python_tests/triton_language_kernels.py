"""Triton kernels that mean something else to Python than to Triton, for test_triton_language.py."""

import triton
import triton.language as tl

FIVE = tl.constexpr(5)
SIX = 6


# ---- Right ones. ---------------------------------------------------------------------------------


@triton.jit
def logic(o, a, b, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(o + i, (i >= a) and (i < b) and (i != 3))
    tl.store(o + N + i, (i < a) or (i >= b))
    tl.store(o + 2 * N + i, not (i < b))
    if not (a > b) and (a == 2 or b == 0):
        tl.store(o + 3 * N + i, True and (i < b))


@triton.jit
def extremes(x, o, n, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i)
    tl.store(o + i, min(v, 0.5))
    tl.store(o + N + i, max(v, 0.0, 0.25))
    tl.store(o + 2 * N + i, min(n, 3) + max(N, 2))


@triton.jit
def scaled(x, o, s, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(o + i, tl.load(x + i) * s)


@triton.jit
def types_of(o, s, n, flag, h: tl.float16, d: tl.float64, w: tl.int64, u: "tl.uint32"):
    tl.static_assert(s.dtype == tl.float32)
    tl.static_assert(n.dtype == tl.int32)
    tl.static_assert(flag.dtype == tl.int1)
    tl.static_assert(h.dtype == tl.float16)
    tl.static_assert(d.dtype == tl.float64)
    tl.static_assert(w.dtype == tl.int64)
    tl.static_assert(u.dtype == tl.uint32)
    if flag:
        tl.store(o, s * s)
    tl.store(o + 1, d * d)
    tl.store(o + 2, (w * w).to(tl.float64))
    tl.store(o + 3, (u - 2).to(tl.float64))
    tl.store(o + 4, h.to(tl.float64))


@triton.jit
def assigned(x, o, N: tl.constexpr):
    """A number that has a name is a float32 or an int32, a literal is not."""
    i = tl.arange(0, N)
    tenth, three = 0.1, 3
    half: tl.constexpr = 0.5
    sixth = 0.0
    sixth += 1.0
    tl.static_assert(tenth.dtype == tl.float32)
    tl.static_assert(three.dtype == tl.int32)
    tl.static_assert(sixth.dtype == tl.float32)
    tl.static_assert((tl.load(x + i) * half).dtype == x.dtype.element_ty)
    tl.store(o + i, tl.load(x + i) * tenth)


@triton.jit
def counters(o, low, high, N: tl.constexpr):
    for i in range(low, high):
        tl.store(o + i - low, i // 2)
        tl.store(o + 4 + i - low, i % 3)
    for i in tl.range(2, -1, -1, num_stages=2):
        tl.store(o + 8 + i, i * 1048576 * 4096)
    for i in tl.static_range(N):
        tl.store(o + 12 + i, i // 2)
    last = 0
    while last < N:
        last += 1
    tl.store(o + 16, last + FIVE)


@triton.jit
def wide_counter(o, n: tl.int64):
    for i in range(n):
        tl.static_assert(i.dtype == tl.int64)
        tl.store(o + i, i * 1048576 * 4096)


@triton.jit
def constants(o, n):
    tl.store(o, (n - 4) // 2)
    tl.store(o + 1, (n - 3) % 3)


@triton.jit(do_not_specialize=["n"])
def no_constant(o, n):
    tl.store(o, (n - 4) // 2)
    tl.store(o + 1, n.to(tl.float32).to(tl.int32))


@triton.jit
def of_a_tuple(o, sizes):
    tl.static_assert(sizes[0].dtype == tl.int32)
    tl.store(o, (sizes[1] - 4) // 2 + sizes[0])


@triton.jit
def chosen(o, n, N: tl.constexpr):
    tl.store(o, 2.5 if n > 2 else 0.0)
    tl.store(o + 1, 7.0 if N == 4 else n)


@triton.jit
def branches(o, n, KIND: tl.constexpr):
    """Names of branches that constants choose live on."""
    if KIND == 1:
        x = 1.0
    elif KIND == 2:
        x = 2.0
    if n > 2:
        y = x + 1.0
    else:
        y = x - 1.0
    for i in tl.static_range(2):
        z = y + i
    tl.store(o, z)


# ---- What does not compile. ----------------------------------------------------------------------


@triton.jit
def power_of_a_block(o, n, N: tl.constexpr):
    tl.store(o + tl.arange(0, N), tl.load(o + tl.arange(0, N)) ** 2)


@triton.jit
def chained(o, n, N: tl.constexpr):
    tl.store(o + tl.arange(0, N), tl.where(1 <= tl.arange(0, N) < n, 1, 0))


@triton.jit
def contained(o, n, N: tl.constexpr):
    tl.store(o, n in (1, 2))


@triton.jit
def if_of_a_block(o, n, N: tl.constexpr):
    if tl.arange(0, N) < n:
        tl.store(o, 1)


@triton.jit
def while_of_a_block(o, n, N: tl.constexpr):
    while tl.arange(0, N) < n:
        n += 1


@triton.jit
def ternary_of_a_block(o, n, N: tl.constexpr):
    tl.store(o, 1 if tl.arange(0, N) < n else 0)


@triton.jit
def ternary_of_two_types(o, n, N: tl.constexpr):
    tl.store(o, 1 if n > 2 else 0.5)


@triton.jit
def small_dot(o, n, N: tl.constexpr):
    x = tl.full((N, N), 1.0, tl.float16)
    tl.store(o, tl.sum(tl.dot(x, x)))


@triton.jit
def histogram(o, n, N: tl.constexpr):
    tl.store(o + tl.arange(0, N), tl.histogram(tl.arange(0, N).to(tl.int8), N))


@triton.jit
def conversion(o, n, N: tl.constexpr):
    tl.store(o, N.to(tl.float32))


@triton.jit
def used_after_its_loop(o, n, N: tl.constexpr):
    for i in range(n):
        last = i * 2
    tl.store(o, last)


@triton.jit
def counter_after_its_loop(o, n, N: tl.constexpr):
    i = 0
    for i in range(n):
        tl.store(o, i)
    tl.store(o, i)


@triton.jit
def used_after_its_branch(o, n, N: tl.constexpr):
    if n > 0:
        x = n * 2
    tl.store(o, x)


@triton.jit
def type_changes_in_a_loop(o, n, N: tl.constexpr):
    total = 0
    for i in range(n):
        total += i * 0.5
    tl.store(o, total)


@triton.jit
def type_changes_in_a_branch(o, n, N: tl.constexpr):
    total = 0
    if n > 2:
        total = 0.5
    tl.store(o, total)


@triton.jit
def constant_changes_in_a_loop(o, n, N: tl.constexpr):
    for i in range(n):
        N = N + i
    tl.store(o, N)


@triton.jit
def broken_loop(o, n, N: tl.constexpr):
    for i in range(n):
        tl.store(o, i)
        break


@triton.jit
def loop_over_a_tuple(o, n, N: tl.constexpr):
    for i in (1, 2):
        tl.store(o, i)


@triton.jit
def unrolled_unknown(o, n, N: tl.constexpr):
    for i in tl.static_range(n):
        tl.store(o, i)


@triton.jit
def global_number(o, n, N: tl.constexpr):
    tl.store(o, SIX + n)


@triton.jit
def element_assigned(o, n, N: tl.constexpr):
    x = tl.arange(0, N)
    x[0] = n


@triton.jit
def switched_off(o, n, N: tl.constexpr):
    """What does not compile is no fault where a constant switches it off."""
    if N == 0:
        while 1 < n < 2:
            break
    else:
        tl.store(o, n)
