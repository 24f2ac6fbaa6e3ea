"""Cross-entropy of scaled and capped logits, with z-loss and statistics.

    z_j  = scale x_j  or  softcap tanh(scale x_j / softcap)
    m    = max_j z_j    s_j = z_j - m    d = log sum_j exp(s_j)    lse = m + d    log q_j = s_j - d
    row  = (1 - eps) w_t (-log q_t) + eps / C sum_j w_j (-log q_j)       class indices
    row  = sum_j w_j ((1 - eps) p_j + eps / C) (-log q_j)                class probabilities
    loss = row + z_loss lse^2                                            0 where ignored

eps is label_smoothing. "mean" divides the sum of the rows by the sum of w_t over counted rows
(class probabilities: by the number of rows), as torch does, and the sum of the z-loss by the number
of counted rows.

Edges: nothing counted gives a mean of NaN, as torch; a row of -inf, or with +inf or NaN, has NaN
loss, lse and entropy and is never correct; an ignored row has no gradient from the loss, whatever
it holds.
"""

from typing import NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from hetkern.overrides import overridable
from hetkern.reference.scores import accumulation_dtype, scaled_scores


class CrossEntropyStats(NamedTuple):
    """One value a row, before reduction; float32, or float64 for float64 input.

    All but ``correct`` carry gradients.
    """

    loss: Tensor  #: the row's term, z-loss included: what reduction="none" returns
    lse: Tensor  #: log sum_j exp(z_j), in ignored rows too
    z_loss: Tensor  #: z_loss * lse^2, 0 where ignored
    entropy: Tensor  #: of softmax(z), in nats, in ignored rows too
    log_prob: Tensor  #: log softmax(z) at the target, or sum_j p_j log q_j; 0 where ignored
    correct: Tensor  #: bool: the first largest z is at the target (first largest p); else False


@overridable
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, CrossEntropyStats]:
    """Cross-entropy of ``target`` under ``softmax(z)`` (equations above), in nats.

    Args:
        input: logits ``(C)``, ``(N, C)`` or ``(N, C, d1, …)``; float32, float64, float16 or
            bfloat16; any strides.
        target: class indices of input's shape without C (integers in ``[0, C)``, or
            ``ignore_index``), or class probabilities of input's shape (floating; they get a
            gradient).
        weight: ``(C)`` class weights; None for ones.
        ignore_index: the class index of rows that do not count.
        reduction: "none", "mean" or "sum".
        label_smoothing: eps in [0, 1].
        scale: factor on the logits.
        softcap: bound of the scores; None for none.
        z_loss: factor on lse².
        return_stats: return ``(loss, CrossEntropyStats)``.

    Returns:
        The loss: float32, or float64 for float64 input; scalar, or input's shape without C for
        "none".

    Raises:
        ValueError: shapes, dtypes or option values that do not fit.
        IndexError: a target is out of range and neither is on a GPU.
    """
    _check(input, target, weight, ignore_index, reduction, label_smoothing, softcap)
    class_dim = min(1, input.dim() - 1)
    x = input.movedim(class_dim, -1)
    w = None if weight is None else weight.to(accumulation_dtype(x.dtype))

    # The row's own terms. An ignored row is replaced before its scores: tanh would make a NaN there
    # a NaN gradient.
    by_index = not target.is_floating_point()
    if by_index:
        counted = target != ignore_index
        z = _scores(torch.where(counted.unsqueeze(-1), x, 0.0), scale, softcap)
        s, d, _ = _log_sum_exp(z)
        log_prob, row, divisor = _by_index(s - d, target.long(), w, ignore_index, label_smoothing)
    else:
        counted = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
        z = _scores(x, scale, softcap)
        s, d, lse = _log_sum_exp(z)
        p = target.to(z.dtype).movedim(class_dim, -1)
        log_prob, row = _by_probability(s - d, p, w, label_smoothing)
        divisor = counted.sum()
    z_term = _z_term(z, z_loss, counted)

    # Reduction.
    if reduction == "none":
        loss = row + z_term
    elif reduction == "sum":
        loss = (row + z_term).sum()
    else:
        loss = row.sum() / divisor
        if z_loss:
            loss = loss + z_term.sum() / counted.sum()
    if not return_stats:
        return loss

    if by_index:
        z = _scores(x, scale, softcap)
        s, d, lse = _log_sum_exp(z)
        wanted = target
    else:
        wanted = p.argmax(-1)
    entropy = _entropy(s, d)
    correct = (z.argmax(-1) == wanted) & counted & ~lse.isnan()
    return loss, CrossEntropyStats(row + z_term, lse, z_term, entropy, log_prob, correct)


def _scores(x: Tensor, scale: float, softcap: float | None) -> Tensor:
    """``z``, rows side by side: torch sums along another dimension without care."""
    return scaled_scores(x, scale, softcap).contiguous()


def _log_sum_exp(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``s = z - max`` (…, C), ``d = log sum exp s`` (…, 1) and ``lse = max + d`` (…).

    The maximum is a constant shift: no derivative of any order depends on it. d takes its
    derivative from logsumexp and its value from log1p of the terms beside the maximum's own 1,
    which keeps d right to rounding near 0.
    """
    first_largest = z.argmax(-1, keepdim=True)
    m = z.gather(-1, first_largest).detach()
    s = z - m
    d = torch.logsumexp(s, -1, keepdim=True)
    value = torch.log1p(s.detach().exp().scatter(-1, first_largest, 0.0).sum(-1, keepdim=True))
    d = d + (value - d.detach())
    return s, d, (m + d).squeeze(-1)


def _z_term(z: Tensor, z_loss: float, counted: Tensor) -> Tensor:
    """``z_loss * lse²`` from an lse of its own.

    The row's terms may cancel (p_t near 1, a single class). A z-loss of 1e-20 that reached the
    scores through the same sums would be rounded away between them.
    """
    if not z_loss:
        return torch.zeros_like(z[..., 0])
    _, _, lse = _log_sum_exp(z)
    return torch.where(counted, z_loss * lse.square(), 0.0)


def _by_index(
    log_q: Tensor, target: Tensor, w: Tensor | None, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``log q_t`` and the row's term, both 0 where ignored, and what "mean" divides by."""
    classes = log_q.shape[-1]
    flat, flat_target = log_q.reshape(-1, classes), target.reshape(-1)

    def pick(values: Tensor, class_weight: Tensor | None) -> Tensor:
        picked = F.nll_loss(values, flat_target, class_weight, None, ignore_index, None, "none")
        return picked.reshape(target.shape)

    try:
        log_prob = -pick(flat, None)
    except IndexError:  # torch does not say where
        _refuse_target(flat_target, classes, ignore_index)
    row = -log_prob if w is None else pick(flat, w)
    counted = target != ignore_index
    divisor = counted
    if w is not None:
        w_target = w.gather(0, flat_target.where(counted.reshape(-1), 0)).reshape(target.shape)
        divisor = torch.where(counted, w_target, 0.0)
    if label_smoothing:
        smooth = -(log_q if w is None else log_q * w).sum(-1)
        smooth = torch.where(counted, smooth, 0.0)
        row = (1.0 - label_smoothing) * row + (label_smoothing / classes) * smooth
    return log_prob, row, divisor.sum()


def _by_probability(
    log_q: Tensor, p: Tensor, w: Tensor | None, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """``sum_j p_j log q_j`` and the row's term."""
    classes = log_q.shape[-1]
    log_prob = (p * log_q).sum(-1)
    row = -log_prob
    if label_smoothing:
        p = (1.0 - label_smoothing) * p + label_smoothing / classes
    if w is not None:
        p = p * w
    if label_smoothing or w is not None:
        row = -(p * log_q).sum(-1)
    return log_prob, row


def _entropy(s: Tensor, d: Tensor) -> Tensor:
    """``-sum_j q_j log q_j = d - sum_j q_j s_j``, where a class of probability 0 adds 0."""
    q = torch.exp(s - d)
    return d.squeeze(-1) - (q * torch.where(s == -torch.inf, 0.0, s)).sum(-1)


def _check(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    softcap: float | None,
) -> None:
    """Raise ValueError, naming the argument, unless the arguments fit together."""
    shape = tuple(input.shape)
    if not input.is_floating_point():
        _refuse("input", "a floating dtype", input.dtype)
    class_dim = min(1, input.dim() - 1)
    if input.dim() == 0 or shape[class_dim] == 0:
        _refuse("input", "at least one class, (C), (N, C) or (N, C, d1, …)", shape)
    rows = shape[:class_dim] + shape[class_dim + 1 :]
    if target.is_floating_point():
        if tuple(target.shape) != shape:
            _refuse("target", f"class probabilities of shape {shape}", tuple(target.shape))
        if ignore_index >= 0:
            _refuse("ignore_index", "none for class probabilities", ignore_index)
    elif target.dtype == torch.bool or tuple(target.shape) != rows:
        got = f"{target.dtype} of shape {tuple(target.shape)}"
        _refuse("target", f"integer class indices of shape {rows}", got)
    if weight is not None and tuple(weight.shape) != (shape[class_dim],):
        _refuse("weight", f"shape ({shape[class_dim]},)", tuple(weight.shape))
    if reduction not in ("none", "mean", "sum"):
        _refuse("reduction", "'none', 'mean' or 'sum'", repr(reduction))
    if not 0.0 <= label_smoothing <= 1.0:
        _refuse("label_smoothing", "a value in [0, 1]", label_smoothing)
    if softcap is not None and not softcap > 0.0:
        _refuse("softcap", "a value above 0 or None", softcap)


def _refuse_target(target: Tensor, classes: int, ignore_index: int) -> NoReturn:
    bad = ((target < 0) | (target >= classes)) & (target != ignore_index)
    row = int(bad.nonzero()[0])
    raise IndexError(
        f"cross_entropy: target: wanted a class in [0, {classes}) or ignore_index {ignore_index}, "
        f"got {int(target[row])} in row {row}"
    )


def _refuse(argument: str, wanted: str, got: object) -> NoReturn:
    raise ValueError(f"cross_entropy: {argument}: wanted {wanted}, got {got}")
