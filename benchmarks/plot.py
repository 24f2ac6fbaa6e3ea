"""docs/speed.svg from the files in results/: times as fast as torch eager, one panel a file."""

from __future__ import annotations

import json
from typing import Any

import matplotlib
from harness import RESULTS
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PLOT = RESULTS.parent.parent / "docs" / "speed.svg"
GREY = "#7f858c"  # on white and on black
COLOURS = {"hetkern": "#1f9e77", "torch.compile": "#c9a227"}
STYLE = {
    "svg.fonttype": "none",  # text stays text: small, and in the reader's font
    "svg.hashsalt": "speed",  # the same figures, the same file
    "font.family": "sans-serif",
    "font.size": 9,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), GREY),
}


def panel(axes: Axes, result: dict[str, Any]) -> None:
    """One benchmark on one machine: a pair of bars for each work, shape and dtype."""
    times: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in result["rows"]:
        work = row["work"], row["shape"], row["dtype"]
        times.setdefault(work, {})[row["implementation"]] = row["ms"]
    height = 0.8 / len(COLOURS)
    for place, (name, colour) in enumerate(COLOURS.items()):
        here = [(y, ms["torch"] / ms[name]) for y, ms in enumerate(times.values()) if name in ms]
        ys, ratios = [y + (place - 0.5) * height for y, _ in here], [ratio for _, ratio in here]
        axes.bar_label(
            axes.barh(ys, ratios, height, color=colour, label=name),
            [f"{ratio:.1f}" for ratio in ratios],
            padding=3,
            fontsize=8,
        )
    axes.axvline(1.0, color=GREY, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(times)), [", ".join(work) for work in times])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    where = result["conditions"]
    axes.set_title(
        f"{where['cpu']}, {where['threads']} threads, torch {where['torch']}", loc="left"
    )


def main() -> None:
    """Draw every softmax and cross-entropy file."""
    names = "softmax", "cross_entropy"
    files = [
        p
        for name in names
        for p in sorted(RESULTS.glob(f"{name}-*.json"))
        if "-fresh" not in p.stem
    ]
    results = [json.loads(file.read_text()) for file in files]
    lengths = [len(result["rows"]) for result in results]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 1.2 * len(results) + 0.16 * sum(lengths)), layout="constrained")
        for axes, result in zip(
            figure.subplots(len(results), 1, squeeze=False, height_ratios=lengths)[:, 0],
            results,
            strict=True,
        ):
            panel(axes, result)
        axes.set_xlabel("times as fast as torch eager (dotted: the same)")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=len(COLOURS), frameon=False)
        figure.savefig(PLOT, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
