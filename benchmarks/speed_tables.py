"""The figures of docs/speed.md, rewritten from the files in results/: none is typed by hand."""

from __future__ import annotations

import json
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
    title = {"rnn": "recurrent layers", "rnn_error": "recurrent layers, error against steps"}
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
        return f"{where}. torch's product of two 2048×2048 matrices: {limits}."
    if "ceilings_gb_s" not in result:
        sizes = ", ".join(f"{k} {v}" for k, v in result.items() if k not in ("conditions", "rows"))
        return f"{where}; {sizes}."
    limits = ", ".join(f"{n} {speed:.1f} GB/s" for n, speed in result["ceilings_gb_s"].items())
    calls = "; ".join(
        f"{work}: {times['hetkern']} against torch's {times['torch']}"
        for work, times in result["overhead"].items()
    )
    return f"{where}. Ceilings: {limits}.\n{calls}."


def main() -> None:
    """Rewrite speed and quality."""
    text = PAGE.read_text()
    tables = "\n\n".join(
        speed(family, vendor)
        for family in ("softmax", "cross_entropy", "rnn", "rnn_error")
        for vendor in ("amd", "intel", "cpu")
        if (RESULTS / f"{family}-{vendor}.json").exists()
    )
    text = between(text, "<!-- speed tables", "<!-- end of speed tables -->", tables)
    lines = []
    for file in sorted(RESULTS.glob("tinyshakespeare-*")):
        run = json.loads(file.read_text())
        lines.append(
            f"- tiny-shakespeare, nanoGPT's CPU model and budget ({run['steps']} steps, "
            f"characters): **{run['val_loss']:.3f} nats** over the full validation split (wanted: "
            f"at most {run['limit']}), {run['val_bits_per_byte']:.3f} bits per byte, "
            f"{run['seconds']:.0f} s on {run['threads']} threads with `--kernels {run['kernels']}`."
        )
    end = "<!-- end of training result -->"
    PAGE.write_text(between(text, "<!-- training result", end, "\n".join(lines)))


if __name__ == "__main__":
    main()
