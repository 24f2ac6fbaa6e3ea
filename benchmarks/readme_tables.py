"""The README's figures, rewritten from the files in results/: nothing in them is typed by hand."""

from __future__ import annotations

import json
from typing import Any

from harness import RESULTS, table

README = RESULTS.parent.parent / "README.md"


def between(text: str, begin: str, end: str, body: str) -> str:
    """``text`` with ``body`` between the comment that starts with ``begin`` and ``end``."""
    head, rest = text.split(begin, 1)
    mark, rest = rest.split("-->", 1)
    return f"{head}{begin}{mark}-->\n{body}\n{end}{rest.split(end, 1)[1]}"


def speed(result: dict[str, Any]) -> str:
    """One machine's table, its conditions and its call overhead."""
    where = ", ".join(f"{name} {value}" for name, value in result["conditions"].items())
    limits = ", ".join(f"{n} {speed:.1f} GB/s" for n, speed in result["ceilings_gb_s"].items())
    calls = "; ".join(
        f"{work}: {times['hetkern']} against torch's {times['torch']}"
        for work, times in result["overhead"].items()
    )
    return f"{table(result['rows'])}\n\n{where}. Ceilings: {limits}.\n{calls}."


def in_fresh_memory(result: dict[str, Any]) -> str:
    """How often torch's time ours is where no memory is kept, in one line."""
    ratios = ", ".join(
        f"{row['work']} {row['shape']} {row['dtype']} {row['torch ÷ this']}×"
        for row in result["rows"]
        if row["implementation"] == "hetkern"
    )
    conditions = result["conditions"]
    return (
        f"With `HETKERN_KEEP_MB=0`, every result in fresh memory ({conditions['cpu']}, commit "
        f"{conditions['commit']}): {ratios}."
    )


def main() -> None:
    """Rewrite speed and quality."""
    text = README.read_text()
    files = [p for name in ("softmax", "cross_entropy") for p in sorted(RESULTS.glob(f"{name}-*"))]
    tables = "\n\n".join(
        (in_fresh_memory if file.stem.endswith("-fresh") else speed)(json.loads(file.read_text()))
        for file in files
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
    README.write_text(between(text, "<!-- training result", end, "\n".join(lines)))


if __name__ == "__main__":
    main()
