"""The README's support table, from the results of a test run.

``python python_tests/support_table.py RESULTS.xml…`` reads what ``pytest --junitxml`` wrote and
rewrites the table: a cell says how many tests of that family ran on that implementation and dtype,
and none of them may have failed.
"""

import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- support table", "<!-- end of support table -->"
FAMILIES = {"softmax": "softmax, log_softmax", "cross_entropy": "cross_entropy"}
IMPLEMENTATIONS = {
    "cpu-avx512": "cpu-avx512",
    "cpu-avx2": "cpu-avx2",
    "cpu-base": "cpu-base",
    "reference": "reference",
    "cuda": "cuda (emulated)",
    "triton": "triton (interpreted)",
}
DTYPES = ("float32", "float64", "bfloat16", "float16")


def count(*results: Path) -> tuple[Counter, set]:
    """Passed tests, and the cells with a failure, by (family, implementation, dtype)."""
    passed: Counter = Counter()
    failed = set()
    for case in (c for file in results for c in ElementTree.parse(file).iter("testcase")):
        name, file = case.get("name", ""), case.get("classname", "")
        family = next((f for f in FAMILIES if f"test_{f}" in file), None)
        implementation = next((i for i in IMPLEMENTATIONS if i in name), None)
        dtype = next((d for d in DTYPES if re.search(rf"(?<!b){d}", name)), None)
        if family is None or implementation is None or case.find("skipped") is not None:
            continue
        cell = family, implementation, dtype
        if case.find("failure") is not None or case.find("error") is not None:
            failed.add(cell)
        else:
            passed[cell] += 1
    return passed, failed


def table(passed: Counter, failed: set) -> str:
    """Markdown."""
    lines = ["| family | implementation | " + " | ".join(DTYPES) + " | every dtype, wiring |"]
    lines.append("|" + "---|" * (len(DTYPES) + 3))
    for family, title in FAMILIES.items():
        for implementation in IMPLEMENTATIONS:
            cells = [(family, implementation, dtype) for dtype in (*DTYPES, None)]
            shown = [
                "fails" if c in failed else f"✓ {passed[c]}" if passed[c] else "-" for c in cells
            ]
            lines.append(f"| {title} | {IMPLEMENTATIONS[implementation]} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    """Rewrite the table between its marks."""
    text = README.read_text()
    head, rest = text.split(BEGIN, 1)
    mark, rest = rest.split("-->", 1)
    tail = rest.split(END, 1)[1]
    body = table(*count(*map(Path, sys.argv[1:])))
    README.write_text(f"{head}{BEGIN}{mark}-->\n{body}\n{END}{tail}")
    print(body)


if __name__ == "__main__":
    main()
