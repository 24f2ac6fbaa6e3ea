"""docs/speed_*.svg from the files in results/: times as fast as torch eager, a panel a machine."""

from __future__ import annotations

import json
from typing import Any

import matplotlib
from harness import RESULTS
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DOCS = RESULTS.parent.parent / "docs"
GREY = "#7f858c"  # on white and on black
KEPT = "hetkern with HETKERN_KEEP_MB"
COLOURS = {"hetkern": "#1f9e77", KEPT: "#8fceb9", "torch.compile": "#c9a227"}
STYLE = {
    "svg.fonttype": "none",  # text stays text: small, and in the reader's font
    "svg.hashsalt": "speed",  # the same figures, the same file
    "font.family": "sans-serif",
    "font.size": 9,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), GREY),
}


def ratios(result: dict[str, Any], kept: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Torch's time ÷ the other's by work and implementation, each within its own run."""
    found: dict[str, dict[str, float]] = {}
    for rows, names in (
        (kept["rows"], {"hetkern": KEPT, "torch.compile": "torch.compile"}),
        (result["rows"], {"hetkern": "hetkern", "torch.compile": "torch.compile"}),
    ):
        for row in rows:
            if row["implementation"] in names:
                work = ", ".join((row["work"], row["shape"], row["dtype"]))
                found.setdefault(work, {})[names[row["implementation"]]] = row["torch ÷ this"]
    return found


def panel(axes: Axes, result: dict[str, Any], kept: dict[str, Any]) -> None:
    """One family on one machine: a group of bars for each work, shape and dtype."""
    works = ratios(result, kept)
    height = 0.8 / len(COLOURS)
    for place, (name, colour) in enumerate(COLOURS.items()):
        here = [(y, found[name]) for y, found in enumerate(works.values()) if name in found]
        ys, widths = [y + (place - 1) * height for y, _ in here], [width for _, width in here]
        axes.bar_label(
            axes.barh(ys, widths, height, color=colour, label=name),
            [f"{width:.1f}" for width in widths],
            padding=3,
            fontsize=8,
        )
    axes.axvline(1.0, color=GREY, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(works)), list(works))
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    where = result["conditions"]
    axes.set_title(
        f"{where['cpu']}, {where['threads']} threads, torch {where['torch']}", loc="left"
    )


def main() -> None:
    """Draw each family, every machine that has both of its files."""
    for family in ("softmax", "cross_entropy"):
        pairs = []
        for file in sorted(RESULTS.glob(f"{family}-*-kept.json")):
            plain = RESULTS / file.name.replace("-kept", "")
            pairs.append([json.loads(each.read_text()) for each in (plain, file)])
        lengths = [len(ratios(*pair)) for pair in pairs]
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(9, len(pairs) + 0.45 * sum(lengths)), layout="constrained")
            grid = figure.subplots(len(pairs), 1, squeeze=False, height_ratios=lengths)
            for axes, pair in zip(grid[:, 0], pairs, strict=True):
                panel(axes, *pair)
            axes.set_xlabel("times as fast as torch eager (dotted: the same)")
            handles, labels = figure.axes[0].get_legend_handles_labels()
            place = {"loc": "outside upper right", "ncols": len(COLOURS), "frameon": False}
            figure.legend(handles, labels, **place)
            name = DOCS / f"speed_{family}.svg"
            figure.savefig(name, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
