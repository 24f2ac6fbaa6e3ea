"""What the lanes of one program hand to each other through memory: it needs a barrier.

A block's elements belong to threads; one that a thread stored reaches another warp's load surely
only across a barrier (``tl.debug_barrier``, or what brings one along: a reduction, a scan, a dot,
an atomic). Here an element that is stored at one place of a block and accessed at another without
one raises, whatever the layout: which lanes share a warp is the compiler's choice. Within one warp
(``num_warps=1``) instructions keep their order, and a lone element that is read back is right
wherever one thread's value is used; neither raises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

_REMEMBERED = 32  # requests on one tensor since the last barrier


@dataclass(frozen=True, eq=False)
class _Request:
    stores: bool
    pointers: np.ndarray[Any, Any]
    mask: np.ndarray[Any, Any]
    low: int
    high: int


class Order:
    """The requests of the program at hand since its last barrier, by tensor."""

    def __init__(self) -> None:
        self._requests: dict[int, list[_Request]] = {}
        self._program = -1

    def barrier(self) -> None:
        """What came before is seen by all lanes."""
        if self._requests:
            self._requests.clear()

    def conflict(
        self,
        program: int,
        tensor: int,
        stores: bool,
        pointers: np.ndarray[Any, Any],
        mask: np.ndarray[Any, Any],
        bounds: tuple[int, int],
    ) -> bool:
        """Enter a request; whether it meets what other lanes stored, or stores what is theirs."""
        if program != self._program:
            self._requests.clear()
            self._program = program
        now = _Request(stores, pointers, mask, *bounds)
        earlier = self._requests.setdefault(tensor, [])
        if any((stores or one.stores) and _clash(one, now) for one in earlier):
            return True
        earlier.append(now)
        if len(earlier) > _REMEMBERED:
            del earlier[0]
        return False


def _clash(one: _Request, two: _Request) -> bool:
    if one.low > two.high or two.low > one.high:
        return False
    a, b = one.pointers, two.pointers
    if a.size == b.size and (a.size == 1 or np.array_equal(a.ravel(), b.ravel())):
        return False
    first, place_first = _elements(one)
    second, place_second = _elements(two)
    common, at, other = np.intersect1d(first, second, return_indices=True)
    if not common.size:
        return False
    if _trimmed(a.shape) != _trimmed(b.shape):
        return True
    if np.unique(first).size < first.size or np.unique(second).size < second.size:
        return True  # one address in several lanes
    return bool((place_first[at] != place_second[other]).any())


def _elements(request: _Request) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The addresses, and the places in the block that access them."""
    places = np.nonzero(request.mask.ravel())[0]
    return request.pointers.ravel()[places], places


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(extent for extent in shape if extent != 1)
