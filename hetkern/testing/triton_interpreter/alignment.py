"""What the compiler knows of pointers' alignment, as far as the layout of a block hangs on it.

Triton gives a lane 16 bytes of a block that it loads where it knows the addresses to be multiples
of 16 bytes: a tensor's own, plus offsets that are multiples of 16. A number that is not (a
program's index, an argument or a literal that is no multiple of 16, a loop's counter) is *ragged*,
and so is what is added to it, until a multiple of 16 multiplies it.
"""

from __future__ import annotations

from typing import Any

from hetkern.testing.triton_interpreter.checked_memory import memory


def repair(interpreter: Any) -> None:
    """Follow ragged numbers through integer arithmetic to pointers."""
    builder = interpreter.InterpreterBuilder

    def following(name: str, rule: Any) -> None:
        stock = getattr(builder, name)

        def apply(self: Any, *arguments: Any) -> Any:
            result = stock(self, *arguments)
            if rule(*arguments):
                result.ragged = True
            return result

        setattr(builder, name, apply)

    for name in ("create_add", "create_sub", "create_addptr"):
        following(name, lambda left, right: is_ragged(left) or is_ragged(right))
    following("create_mul", lambda left, right: is_ragged(left) and is_ragged(right))
    following("create_int_cast", lambda value, *how: is_ragged(value))
    following("create_splat", lambda kind, value: is_ragged(value))
    for name in ("create_broadcast", "create_expand_dims"):
        following(name, lambda value, *shape: is_ragged(value))
    following("create_get_program_id", lambda axis: True)

    load = builder.create_masked_load

    def create_masked_load(self: Any, pointers: Any, *rest: Any, **more: Any) -> Any:
        if pointers.data.size > 1 and hasattr(pointers, "ragged"):
            memory.aligned = False
        return load(self, pointers, *rest, **more)

    builder.create_masked_load = create_masked_load


def is_ragged(handle: Any) -> bool:
    """Whether a number, or a block of them, is not known to be a multiple of 16."""
    if hasattr(handle, "ragged"):
        return True
    data = handle.data
    return data.size == 1 and data.dtype.kind in "iu" and bool(int(data.reshape(-1)[0]) % 16)
