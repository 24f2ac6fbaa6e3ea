"""Modules of the softmax and cross-entropy families.

hetkern's options are class attributes first, so that a torch module becomes ours, and ours torch's,
by its class alone: that is how :func:`hetkern.nn.convert` keeps parameters, buffers, hooks and
identity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from . import functional as F

if TYPE_CHECKING:
    from ..reference import CrossEntropyStats


class _Place(str):
    """The ``__module__`` of a class; asked of an instance, it begins as that of torch's modules.

    torch.fx and what builds on it keep a module whole, instead of looking into its ``forward``, if
    ``module.__module__`` begins with "torch.nn": each of their tracers asks that again for itself,
    and nothing else. A class that claimed to be torch's could not be unpickled.
    """

    def __get__(self, instance: object, owner: type | None = None) -> str:
        return self if instance is None else f"torch.nn, replaced in {self}"

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return str, (str.__str__(self),)


class Options(nn.Module):
    """A module with options that torch's has not; the class holds their defaults."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.__module__.startswith(
            __package__ + "."
        ):  # not a user's class: fx looks into torch's too
            cls.__module__ = _Place(cls.__module__)

    options: ClassVar[tuple[str, ...]] = ("impl",)
    impl: str = "auto"

    def _set_options(self, **options: Any) -> None:
        for name, value in options.items():
            if value != getattr(type(self), name):
                setattr(self, name, value)

    @classmethod
    def why_not_from(cls, module: nn.Module) -> str | None:
        """Why a module of torch cannot become one of this class; None if it can."""
        return None

    def chosen_options(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        values = {name: getattr(self, name) for name in self.options}
        return {name: v for name, v in values.items() if v != getattr(type(self), name)}

    def __prepare_scriptable__(self) -> nn.Module:  # torch.jit.script's question
        raise NotImplementedError(
            f"hetkern.nn.{type(self).__name__}: torch.jit.script: wanted torch.export or "
            "torch.compile, which take it; or hetkern.nn.convert(model, to='torch') before"
        )

    def extra_repr(self) -> str:
        """As torch's, then the options that were chosen."""
        chosen = [f"{name}={value!r}" for name, value in self.chosen_options().items()]
        return ", ".join(filter(None, [super().extra_repr(), *chosen]))


class _ScoreOptions(Options):
    options = ("scale", "softcap", "causal", "impl")
    scale: float = 1.0
    softcap: float | None = None
    causal: bool = False


class Softmax(_ScoreOptions, nn.Softmax):
    """``torch.nn.Softmax`` on :func:`hetkern.softmax`.

    ``y_j = exp(z_j - max z) / sum_k exp(z_k - max z)`` along ``dim``, ``z`` the scaled, capped,
    biased and masked input.

    Args:
        dim: the dimension that sums to one; None is torch's deprecated guess, with its warning.
        scale: factor on the input.
        softcap: soft bound on the scaled input, above 0; None for none.
        causal: row ``i`` keeps columns ``j <= i + Lk - Lq``; needs ``dim=-1``.
        impl: "auto", "cpu", "cuda", "triton" or "reference"; a named one never falls back.
    """

    def __init__(
        self,
        dim: int | None = None,
        *,
        scale: float = 1.0,
        softcap: float | None = None,
        causal: bool = False,
        impl: str = "auto",
    ) -> None:
        super().__init__(dim)
        self._set_options(scale=scale, softcap=softcap, causal=causal, impl=impl)

    def forward(
        self,
        input: Tensor,
        *,
        bias: Tensor | None = None,
        mask: Tensor | None = None,
        sink: Tensor | None = None,
    ) -> Tensor:
        """Softmax of ``input``, any shape; ``bias``, ``mask`` (True = keep), ``sink`` broadcast."""
        return F.softmax(
            input,
            self.dim,
            5,  # the level of torch's own module
            scale=self.scale,
            softcap=self.softcap,
            bias=bias,
            mask=mask,
            causal=self.causal,
            sink=sink,
            impl=self.impl,
        )


class LogSoftmax(_ScoreOptions, nn.LogSoftmax):
    """``torch.nn.LogSoftmax`` on :func:`hetkern.log_softmax`; arguments as :class:`Softmax`."""

    def __init__(
        self,
        dim: int | None = None,
        *,
        scale: float = 1.0,
        softcap: float | None = None,
        causal: bool = False,
        impl: str = "auto",
    ) -> None:
        super().__init__(dim)
        self._set_options(scale=scale, softcap=softcap, causal=causal, impl=impl)

    def forward(
        self,
        input: Tensor,
        *,
        bias: Tensor | None = None,
        mask: Tensor | None = None,
        sink: Tensor | None = None,
    ) -> Tensor:
        """Log-softmax of ``input``, in nats; the keywords as in :meth:`Softmax.forward`."""
        return F.log_softmax(
            input,
            self.dim,
            5,
            scale=self.scale,
            softcap=self.softcap,
            bias=bias,
            mask=mask,
            causal=self.causal,
            sink=sink,
            impl=self.impl,
        )


class CrossEntropyLoss(Options, nn.CrossEntropyLoss):
    """``torch.nn.CrossEntropyLoss`` on :func:`hetkern.cross_entropy`: float32 for 16-bit logits.

    Args:
        weight: ``(C)`` class weights, a buffer.
        size_average: deprecated, as in torch.
        ignore_index: the class index of rows that do not count.
        reduce: deprecated, as in torch.
        reduction: "none", "mean" or "sum".
        label_smoothing: in [0, 1].
        scale: factor on the logits.
        softcap: soft bound on the scaled logits, above 0; None for none.
        z_loss: factor on the squared log-sum-exp of each counted row.
        return_stats: return ``(loss, CrossEntropyStats)``.
        impl: "auto", "cpu", "cuda", "triton" or "reference"; a named one never falls back.
    """

    options = ("scale", "softcap", "z_loss", "return_stats", "impl")
    scale: float = 1.0
    softcap: float | None = None
    z_loss: float = 0.0
    return_stats: bool = False

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        scale: float = 1.0,
        softcap: float | None = None,
        z_loss: float = 0.0,
        return_stats: bool = False,
        impl: str = "auto",
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self._set_options(
            scale=scale, softcap=softcap, z_loss=z_loss, return_stats=return_stats, impl=impl
        )

    def forward(  # type: ignore[override]  # with return_stats it gives a pair
        self, input: Tensor, target: Tensor
    ) -> Tensor | tuple[Tensor, CrossEntropyStats]:
        """The loss of ``input``, logits ``(C)``, ``(N, C)`` or ``(N, C, d1, …)``, in nats."""
        return F.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            scale=self.scale,
            softcap=self.softcap,
            z_loss=self.z_loss,
            return_stats=self.return_stats,
            impl=self.impl,
        )
