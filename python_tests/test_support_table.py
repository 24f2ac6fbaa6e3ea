"""docs/support.md has a row for every argument and a column for every implementation."""

import inspect

import pytest
import support_table as support

import hetkern
from hetkern.ops.family import NAMESPACES

PUBLIC = {
    "softmax": hetkern.softmax,
    "cross_entropy": hetkern.cross_entropy,
    "rnn": hetkern.lstm,
    "attention": hetkern.attention,
}
GIVEN = {"x", "input", "q", "k", "v", "impl"}
TORCHS = {"state", "dropout"}  # a part of every case; drawn by torch's own function


def rows():
    """Cells of the page's table, by title and feature."""
    text = support.PAGE.read_text().split(support.BEGIN)[1].split(support.END)[0]
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    head, _, *body = lines
    assert head == ["family", "feature", *support.IMPLEMENTATIONS.values()]
    return {(row[0], row[1].strip("`")): row[2:] for row in body}


def test_every_implementation_has_a_column():
    named = {name.split("-")[0] for name in support.IMPLEMENTATIONS}
    assert named == {*NAMESPACES, "reference"}


@pytest.mark.parametrize("family", PUBLIC)
def test_every_argument_has_a_row_and_is_shown_by_every_implementation(family):
    arguments = {*inspect.signature(PUBLIC[family]).parameters} - GIVEN - TORCHS
    assert arguments <= set(support.ARGUMENTS[family])
    for feature in support.ARGUMENTS[family]:
        cells = rows()[support.FAMILIES[family], feature]
        for implementation, cell in zip(support.IMPLEMENTATIONS, cells, strict=True):
            without = {"f64"} if implementation == "triton" else set()
            if feature == "dtype":  # a cast of 16-bit numbers
                without = {"f32", "f64"}
            assert set(cell.split()) >= set(support.DTYPES.values()) - without, feature


@pytest.mark.parametrize("family", PUBLIC)
def test_no_suite_is_left_out(family):
    for suite in support.SUITES.values():
        assert all(cell != "fails" for cell in rows()[support.FAMILIES[family], suite])


def test_a_failure_takes_its_cell(tmp_path):
    """And what passed is read from the properties that conftest.py records."""
    results = tmp_path / "results.xml"
    shown = '<properties><property name="shown" value="{}"/></properties>'
    name = "python_tests.test_softmax_"
    results.write_text(
        "<testsuite>"
        f'<testcase classname="{name}values" name="a[cpu-avx2]">'
        f"{shown.format('scale:float32,mask:bfloat16')}</testcase>"
        f'<testcase classname="{name}edges" name="b[cpu-avx2]"><failure/></testcase>'
        f'<testcase classname="{name}edges" name="c[cuda]"/>'
        f'<testcase classname="{name}edges" name="d[triton]"><skipped/></testcase>'
        "</testsuite>"
    )
    cells = support.read(results)
    assert str(cells["softmax", "scale", "cpu-avx2"]) == "f32"
    assert str(cells["softmax", "mask", "cpu-avx2"]) == "bf16"
    assert str(cells["softmax", "edges", "cpu-avx2"]) == "fails"
    assert str(cells["softmax", "edges", "cuda"]) == "✓ 1"
    assert str(cells["softmax", "edges", "triton"]) == "-"
