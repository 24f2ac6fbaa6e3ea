"""Guard bands: an operation's inputs between poison, which it must neither read nor write.

What this sees: a value read outside an input that reaches a result (the poison is NaN, or an index
far out of range, and the results must be the bits of an unguarded call); a write into an input, or
into the bands around it; a version counter that moved.

What it cannot see: a read outside whose value is thrown away, and a write outside an *output*,
because a functional operation allocates its own. Both are what the AddressSanitizer build is for.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from hetkern.testing.layouts import poison
from hetkern.testing.values.calls import Call, Op, random_upstream, run, same_bits


class Guarded:
    """A copy of a tensor, row-major, with a band of poison on either side.

    Args:
        x: what to copy.
        offset: elements that the copy is moved by, to make it unaligned.
        band: elements of poison on each side.
    """

    def __init__(self, x: Tensor, offset: int = 0, band: int = 64) -> None:
        """Copy x between fresh bands."""
        self._first = band + offset
        self._buffer = poison((self._first + x.numel() + band,), x.dtype, x.device)
        self.tensor = self._buffer[self._first : self._first + x.numel()].view(x.shape)
        self.tensor.copy_(x)
        self._before = self._buffer.clone()
        self._version = self.tensor._version

    def assert_intact(self, name: str) -> None:
        """Raise AssertionError unless the tensor and both bands hold the bits that they held."""
        if same_bits(self._buffer, self._before) and self.tensor._version == self._version:
            return
        changed = [
            i - self._first
            for i in range(self._buffer.numel())
            if not same_bits(self._buffer[i], self._before[i])
        ]
        last = self.tensor.numel() - 1
        raise AssertionError(
            f"{name}: written to, at flat elements {changed[:8]} of 0…{last}"
            if changed
            else f"{name}: its version counter moved though its values did not"
        )


def assert_stays_inside(
    op: Op,
    *args: object,
    constant: Collection[str] = (),
    seed: int = 0,
    offsets: Sequence[int] = (0, 1),
    **kwargs: object,
) -> None:
    """Run ``op`` and its backward with every tensor between guard bands, aligned and unaligned.

    Args:
        op: the operation.
        args: its positional arguments.
        constant: names of floating arguments that take no gradient.
        seed: of the upstream gradient.
        offsets: elements by which the tensors lie off a cache line. Where the arithmetic follows
            alignment, as a sum's order does in compiled Triton, only those that keep it.
        kwargs: its keyword arguments.

    Raises:
        AssertionError: an input or a band was written to, or a result differs in any bit from the
            unguarded call's.
    """
    call = Call(args, kwargs)
    wanted = run(op, call.map(torch.clone), constant=constant, upstream=random_upstream(seed))
    for offset in offsets:
        guards: dict[int, Guarded] = {}

        def guard(t: Tensor, offset: int = offset, guards: dict[int, Guarded] = guards) -> Tensor:
            guards[len(guards)] = Guarded(t, offset)
            return guards[len(guards) - 1].tensor

        guarded = call.map(guard)
        upstream = random_upstream(seed, guard)
        got = run(op, guarded, constant=constant, upstream=upstream)
        for i, guarded_tensor in guards.items():
            guarded_tensor.assert_intact(f"tensor {i} with offset {offset}")
        for name, value in wanted.items():
            if not same_bits(got[name], value):
                raise AssertionError(
                    f"{name}: other bits between guard bands with offset {offset}: something "
                    "outside an input was read, or alignment changes the arithmetic"
                )
