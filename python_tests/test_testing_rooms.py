"""How the test kit's modules stand to one another, and the names that they are known by."""

import ast
import graphlib
import importlib
from pathlib import Path

import pytest

import hetkern.testing

ROOT = Path(hetkern.testing.__file__).parent


def modules(root, name):
    """Each module under a package's folder, by its name."""
    found = {}
    for file in sorted(root.rglob("*.py")):
        parts = [name, *file.relative_to(root).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(file, known):
    """The modules among those known that a file imports, at its top or within a function."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # A name from a package is its module, if there is one.
            several = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else node.module for name in several]
        else:
            continue
        yield from (name for name in names if name in known)


def graph(root, name):
    """What each module needs; a module needs its imports' packages, except those that it is in."""
    known = modules(root, name)
    needs = {}
    for module, file in known.items():
        needs[module] = set(imported(file, known))
        for other in list(needs[module]):
            parents = [other[:i] for i, letter in enumerate(other) if letter == "."]
            needs[module] |= {
                p for p in parents if p in known and not f"{module}.".startswith(f"{p}.")
            }
    return needs


def test_no_module_of_the_kit_imports_in_a_circle():
    needs = graph(ROOT, "hetkern.testing")
    assert "hetkern.testing.traffic.counting" in needs["hetkern.testing.traffic.command"]
    list(graphlib.TopologicalSorter(needs).static_order())


@pytest.mark.parametrize("late", [False, True])
def test_a_circle_is_found(tmp_path, late):
    (tmp_path / "rooms").mkdir()
    (tmp_path / "__init__.py").touch()
    (tmp_path / "one.py").write_text("from kit.rooms import two\n")
    (tmp_path / "rooms/__init__.py").touch()
    body = "from kit.one import thing\n"
    (tmp_path / "rooms/two.py").write_text(f"def f():\n    {body}" if late else body)
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter(graph(tmp_path, "kit")).static_order())


@pytest.mark.parametrize(
    "name",
    ["devices", "emulation", "layouts", "pytest_plugin", "repro", "traffic", "triton_aot",
     "triton_interpreter", "triton_memory", "triton_numbers"],
)  # fmt: skip
def test_what_others_import_has_its_name(name):
    module = importlib.import_module(f"hetkern.testing.{name}")
    assert module is getattr(hetkern.testing, name)
