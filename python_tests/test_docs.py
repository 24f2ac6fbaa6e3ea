"""Every ``python`` and ``bash`` block of docs/*.md runs, in order, a page in one folder.

The Python blocks of a page share their names, as in a notebook. A block that cannot run here has
the line ``<!-- not run: REASON -->`` above it.
"""

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from emulating import why_impossible

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
RUN = ("python", "bash")
SHOWN = ("text", "toml", "json")  # languages that are no code to run
BLOCK = re.compile(
    r"^(?:<!-- not run:(?P<reason>[^\n]*)-->\n)?```(?P<language>[^\n]*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass
class Block:
    language: str
    code: str
    line: int  # of the code's first line in the page
    reason: str | None  # why it is not run


def blocks_of(page_text):
    return [
        Block(
            language=match["language"].strip(),
            code=match["code"],
            line=page_text.count("\n", 0, match.start("code")) + 1,
            reason=match["reason"] and match["reason"].strip(),
        )
        for match in BLOCK.finditer(page_text)
    ]


def test_blocks_are_found_with_their_lines_and_reasons():
    page = "# t\n```python\na = 1\n```\ntext\n<!-- not run: needs a GPU -->\n```bash\nls\n```\n"
    assert blocks_of(page) == [
        Block("python", "a = 1\n", 3, None),
        Block("bash", "ls\n", 8, "needs a GPU"),
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_run_or_says_why_not(page):
    text = page.read_text(encoding="utf-8")
    blocks = blocks_of(text)
    assert len(blocks) == text.count("\n```") / 2, "a fence is not closed"
    for block in blocks:
        where = f"{page.name}:{block.line}"
        assert block.language in RUN + SHOWN, f"{where}: {block.language!r} never runs"
        assert block.reason is None or len(block.reason) > 5, f"{where}: not run, and no reason"


@pytest.fixture
def command(tmp_path, monkeypatch):
    """``hetkern`` on the PATH, running this source, and this interpreter as ``python``."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "hetkern"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P "{ROOT}/hetkern/cli.py" "$@"\n')
    script.chmod(0o755)
    path = [str(folder), str(Path(sys.executable).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def one_thread(monkeypatch):
    """The pages' models are too small to share out, and other tests may run beside this one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(threads)


def why_not(page):
    """What this machine lacks for a page's blocks; None if it has all."""
    if page.name == "transformers.md":
        found = importlib.util.find_spec("transformers")
        return None if found else "transformers is not installed"
    if page.name != "kernels.md":
        return None
    missing = None if importlib.util.find_spec("triton") else "triton is not installed"
    return why_impossible() or missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch, command, one_thread):
    if reason := why_not(page):
        pytest.skip(reason)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    names = {"__name__": "__main__"}
    for block in blocks_of(page.read_text(encoding="utf-8")):
        if block.reason is not None or block.language not in RUN:
            continue
        if block.language == "python":
            # Blank lines first: a traceback then names the page's own line.
            code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
            exec(code, names)
        else:
            _run_bash(block, page)


def _run_bash(block, page):
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.code], text=True, capture_output=True, timeout=120
    )
    if result.returncode != 0:
        output = result.stdout + result.stderr
        pytest.fail(f"{page.name}:{block.line}: exit status {result.returncode}\n{output}")
