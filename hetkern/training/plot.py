"""Pictures of runs: loss curves, and a classifier's confusion matrix. Needs matplotlib."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hetkern.training.config import UserError
from hetkern.training.metrics import METRICS, read_metrics
from hetkern.training.run import EVALUATION

_NUMBERED = 30  # classes up to which a matrix shows its counts


def plot_runs(runs: Sequence[Path], out: Path | None = None) -> list[Path]:
    """Draw the curves of ``runs`` into one PNG, and each confusion matrix into one in its run.

    Args:
        runs: their folders.
        out: of the curves; None for ``curves.png`` in the first run.

    Raises:
        UserError: matplotlib is not installed, or a folder has no metrics.
    """
    figure_class = _figure()
    out = out if out is not None else runs[0] / "curves.png"
    if out.suffix != ".png":
        raise UserError(f"--out must name a .png file, got {out}")
    figure = figure_class(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for number, run in enumerate(runs):
        if not (run / METRICS).is_file():
            raise UserError(f"{run} holds no run ({METRICS} is missing)")
        rows = read_metrics(run)
        color = f"C{number % 10}"
        steps, losses = [r.step for r in rows], [r.train_loss for r in rows]
        axes.plot(steps, losses, color=color, alpha=0.4, linewidth=1, label=f"{run}: training")
        validated = [(r.step, r.val_loss) for r in rows if r.val_loss is not None]
        if validated:
            at, loss = zip(*validated, strict=True)
            axes.plot(at, loss, "o-", color=color, markersize=4, label=f"{run}: validation")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats")
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend(fontsize="small")
    figure.savefig(out, dpi=120, metadata={"Software": None})
    pictures = [out]
    for run in runs:
        if (confusion := _confusion(run)) is not None:
            pictures.append(_plot_confusion(figure_class, run, *confusion))
    return pictures


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure  # without pyplot: no window, no global state
    except ImportError as error:
        raise UserError("plot needs matplotlib: pip install 'hetkern[plot]'") from error
    return Figure


def _confusion(run: Path) -> tuple[list[list[int]], list[str]] | None:
    """A classifier's last confusion matrix and its labels; None of another run."""
    try:
        tables = json.loads((run / EVALUATION).read_text(encoding="utf-8"))["tables"]
        counts = tables["confusion"]
        return counts, tables.get("labels") or [str(i) for i in range(len(counts))]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _plot_confusion(
    figure_class: Any, run: Path, counts: list[list[int]], labels: list[str]
) -> Path:
    size = min(20.0, 3.0 + 0.4 * len(labels))
    figure = figure_class(figsize=(size, size), layout="constrained")
    axes = figure.add_subplot()
    # By rows: what became of each class, however many examples it has.
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize="small")
    axes.set_yticks(range(len(labels)), labels, fontsize="small")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(labels) <= _NUMBERED:
        for i, row in enumerate(counts):
            for j, count in enumerate(row):
                color = "white" if shares[i][j] > 0.5 else "black"
                axes.text(j, i, count, ha="center", va="center", color=color, fontsize="x-small")
    path = run / "confusion.png"
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return path
