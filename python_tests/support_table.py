"""The support table of docs/support.md, from the results of a test run.

``python python_tests/support_table.py RESULTS.xml…`` reads what ``make test`` left in
build/results. A row is a feature of a family, a column an implementation. A feature that changes
values lists the dtypes in which a test held it, forward and backward, to its error budget; another
one says how many tests passed. A failure takes the cell.
"""

import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "support.md"
BEGIN, END = "<!-- support table", "<!-- end of support table -->"
FAMILIES = {
    "softmax": "softmax, log_softmax",
    "cross_entropy": "cross_entropy",
    "rnn": "rnn, lstm, gru",
    "attention": "attention, attention_varlen, attention_decode",
}
IMPLEMENTATIONS = {
    "cpu-avx512": "cpu-avx512",
    "cpu-avx2": "cpu-avx2",
    "cpu-base": "cpu-base",
    "reference": "reference",
    "cuda": "cuda (emulated)",
    "triton": "triton (interpreted)",
}
DTYPES = {"float32": "f32", "float64": "f64", "bfloat16": "bf16", "float16": "f16"}
#: Arguments of the public functions, by the names that a case has for them.
ARGUMENTS = {
    "softmax": ("dim", "dtype", "scale", "softcap", "bias", "mask", "causal", "sink"),
    "cross_entropy": (
        "target",
        "class probabilities",
        "weight",
        "ignore_index",
        "reduction",
        "label_smoothing",
        "scale",
        "softcap",
        "z_loss",
        "return_stats",
    ),
    "rnn": (  # without dropout, which is torch's own
        "cell",
        "weights",
        "bidirectional",
        "batch_first",
        "lengths",
        "batch_sizes",
        "reset",
        "variational_dropout",
        "recurrent_dropout",
    ),
    "attention": (
        "causal",
        "window",
        "scale",
        "softcap",
        "bias",
        "mask",
        "alibi_slopes",
        "sink",
        "dropout_p",
        "return_lse",
        "cu_seqlens_q",
        "cache_seqlens",
    ),
}
#: What is shown by tests of their own: the last part of a test file's name.
SUITES = {
    "edges": "edges: NaN, ±inf, empty, emptied",
    "derivatives": "second derivatives, forward mode, torch.func",
    "wiring": "torch.compile, export, autocast, threads",
    "bits": "same bits in any company",
    "errors": "errors by name",
    "mutations": "mutants caught",
}


@dataclass
class Cell:
    """What was shown of a feature."""

    dtypes: set[str] = field(default_factory=set)
    passed: int = 0
    failed: bool = False

    def __str__(self) -> str:
        """Dtypes where they are known, else a number of tests."""
        if self.failed:
            return "fails"
        named = " ".join(short for name, short in DTYPES.items() if name in self.dtypes)
        return named or (f"✓ {self.passed}" if self.passed else "-")


def read(*results: Path) -> dict[tuple[str, str, str], Cell]:
    """Cells by family, feature and implementation."""
    cells: dict[tuple[str, str, str], Cell] = defaultdict(Cell)
    for case in (c for file in results for c in ElementTree.parse(file).iter("testcase")):
        where = re.search(rf"test_({'|'.join(FAMILIES)})_(\w+)$", case.get("classname", ""))
        implementation = next((i for i in IMPLEMENTATIONS if i in case.get("name", "")), None)
        if where is None or implementation is None or case.find("skipped") is not None:
            continue
        family, suite = where.groups()
        failed = case.find("failure") is not None or case.find("error") is not None
        for feature, dtype in _shown(case, family):
            cells[family, feature, implementation].dtypes.add(dtype)
        cell = cells[family, suite, implementation]
        cell.passed += not failed
        cell.failed |= failed
    return cells


def _shown(case: ElementTree.Element, family: str) -> list[tuple[str, str]]:
    found = [p.get("value", "") for p in case.iter("property") if p.get("name") == "shown"]
    pairs = [tuple(pair.split(":")) for value in found for pair in value.split(",")]
    if family == "cross_entropy":  # a case without probabilities has class indices
        dtypes = {dtype for _, dtype in pairs}
        if "class probabilities" not in {feature for feature, _ in pairs}:
            pairs += [("target", dtype) for dtype in dtypes]
    if family == "rnn":  # every case has weights, and states
        pairs += [("weights", dtype) for feature, dtype in pairs if feature == "cell"]
    return pairs


def table(cells: dict[tuple[str, str, str], Cell]) -> str:
    """Markdown."""
    head = ["family", "feature", *IMPLEMENTATIONS.values()]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for family, title in FAMILIES.items():
        for feature in (*ARGUMENTS[family], *SUITES):
            shown = [str(cells[family, feature, i]) for i in IMPLEMENTATIONS]
            name = SUITES.get(feature) or (feature if " " in feature else f"`{feature}`")
            lines.append(f"| {title} | {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    """Rewrite the table between its marks."""
    text = PAGE.read_text()
    head, rest = text.split(BEGIN, 1)
    mark, rest = rest.split("-->", 1)
    tail = rest.split(END, 1)[1]
    body = table(read(*map(Path, sys.argv[1:])))
    PAGE.write_text(f"{head}{BEGIN}{mark}-->\n{body}\n{END}{tail}")
    print(body)


if __name__ == "__main__":
    main()
