"""The figures of docs/speed.md, rewritten from the files in results/: none is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness import RESULTS, table

PAGE = RESULTS.parent.parent / "docs" / "speed.md"


def between(text: str, begin: str, end: str, body: str) -> str:
    """``text`` with ``body`` between the comment that starts with ``begin`` and ``end``."""
    head, rest = text.split(begin, 1)
    mark, rest = rest.split("-->", 1)
    return f"{head}{begin}{mark}-->\n{body}\n{end}{rest.split(end, 1)[1]}"


def speed(family: str, vendor: str) -> str:
    """One machine's tables, their conditions and the call overhead."""
    title = {
        "rnn": "recurrent layers", "rnn_error": "recurrent layers, error against steps",
        "models": "training steps of whole models",
    }  # fmt: skip
    name = title.get(family, family.replace("_", "-"))
    parts = [f"### {name}, {'AMD' if vendor == 'amd' else vendor.title()}"]
    for kept in ("", "-kept"):
        file = RESULTS / f"{family}-{vendor}{kept}.json"
        if not file.exists():
            continue
        result = json.loads(file.read_text())
        if kept:
            parts.append("With `HETKERN_KEEP_MB`, large results in memory that is kept:")
        parts.append(table(result["rows"]))
        parts.append(conditions(result))
    return "\n\n".join(parts)


def conditions(result: dict[str, Any]) -> str:
    """Where and when, the ceilings, and what a small call costs."""
    where = ", ".join(f"{name} {value}" for name, value in result["conditions"].items())
    if products := result.get("torch_product_gflop_s"):
        limits = ", ".join(f"{dtype} {speed} GFLOP/s" for dtype, speed in products.items())
        clock = f" ({result['clock']})" if "clock" in result else ""
        return f"{where}{clock}. torch's product of two 2048×2048 matrices: {limits}."
    if "ceilings_gb_s" not in result:
        sizes = ", ".join(f"{k} {v}" for k, v in result.items() if k not in ("conditions", "rows"))
        return f"{where}; {sizes}."
    limits = ", ".join(f"{n} {speed:.1f} GB/s" for n, speed in result["ceilings_gb_s"].items())
    calls = "; ".join(
        f"{work}: {times['hetkern']} against torch's {times['torch']}"
        for work, times in result["overhead"].items()
    )
    return f"{where}. Ceilings: {limits}.\n{calls}."


def shakespeare(file: Path) -> str:
    """What a preset reached on tiny-shakespeare, and how long it takes."""
    run = json.loads(file.read_text())
    line = (
        f"- tiny-shakespeare, `--preset {run['preset']}` ({run['parameters']:,} weights, "
        f"{run['steps']} steps): **{run['val_loss']:.3f} nats** a character over the whole "
        f"validation split (wanted: at most {run['limit']}), {run['val_bits_per_byte']:.3f} bits "
        f"per byte; counting 5-grams loses {run['floor']:.3f}"
    )
    if "core_minutes" in run:
        line += (
            f". All steps take {run['core_minutes']} minutes of one core of {run['timed']['cpu']} "
            f"({run['ms_a_step']} ms each)"
        )
    return line + "."


def wordnet(file: Path) -> str:
    """How often a classifier of WordNet's glosses is right, beside naive Bayes."""
    run = json.loads(file.read_text())
    more = 100 * (run["accuracy"] - run["naive_bayes_accuracy"])
    return (
        f"- WordNet's noun glosses, 26 classes, `--model {run['model']}`, {run['epochs']:g} "
        f"epochs: **{run['accuracy']:.1%}** of {run['validation_texts']:,} validation texts right, "
        f"naive Bayes {run['naive_bayes_accuracy']:.1%} ({more:+.1f} points), the most frequent "
        f"class {run['majority_accuracy']:.1%}."
    )


def main() -> None:
    """Rewrite speed and quality."""
    text = PAGE.read_text()
    tables = "\n\n".join(
        speed(family, vendor)
        for family in ("softmax", "cross_entropy", "rnn", "rnn_error", "attention", "models")
        for vendor in ("amd", "intel", "cpu")
        if (RESULTS / f"{family}-{vendor}.json").exists()
    )
    text = between(text, "<!-- speed tables", "<!-- end of speed tables -->", tables)
    lines = [*(shakespeare(f) for f in sorted(RESULTS.glob("tinyshakespeare-*"))),
             *(wordnet(f) for f in sorted(RESULTS.glob("wordnet-*")))]  # fmt: skip
    end = "<!-- end of training result -->"
    PAGE.write_text(between(text, "<!-- training result", end, "\n".join(lines)))


if __name__ == "__main__":
    main()
