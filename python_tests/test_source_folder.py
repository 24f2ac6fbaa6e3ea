"""Python started in a clone: what is installed runs, and not sources that have no library.

No editable install's import hook takes part: ``-S`` leaves it out, and torch is found by path.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hetkern import _library, impl

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(impl.missing_library is not None, reason=str(impl.missing_library))

TELL = """
import json, sys
import hetkern, torch
from hetkern.nn.functional import softmax
report = hetkern.doctor()
print(json.dumps({
    "impl": hetkern.explain(hetkern.softmax, torch.ones(3)).impl,
    "files": sorted({m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "hetkern"}),
    "hetkern": report["hetkern"],
    "library": report["library"],
    "cpu": report['impl="cpu"'],
    "same": softmax.__globals__["ops"].softmax is hetkern.softmax,
    "mark": getattr(hetkern, "mark", None),
}))
"""


def package(folder, with_library):
    """A copy of the package in ``folder``, as a clone or site-packages has it."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "hetkern", folder / "hetkern", ignore=ignored)
    if with_library:
        (library,) = [f for f in torch.ops.loaded_libraries if Path(f).name == _library.NAME]
        built = [Path(library)]
        if impl.native is not None:
            built.append(Path(impl.native.__file__))
        for file in built:
            (folder / "hetkern" / file.name).symlink_to(file)
    return folder / "hetkern"


def started_in(clone, *path, **environment):
    """What Python tells of hetkern when it is started in ``clone``."""
    paths = [*map(str, path), *[p for p in sys.path if Path(p).name.endswith("-packages")]]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HETKERN_")}
    done = subprocess.run(
        [sys.executable, "-S", "-c", TELL],
        env={**kept, "PYTHONPATH": os.pathsep.join(paths), **environment},
        cwd=clone,
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.fixture
def clone(tmp_path):
    (tmp_path / "clone").mkdir()
    return package(tmp_path / "clone", with_library=False)


@pytest.fixture
def site(tmp_path):
    (tmp_path / "site").mkdir()
    return package(tmp_path / "site", with_library=True)


def test_the_installed_package_runs_and_the_doctor_says_so(clone, site):
    """All of it, also where the clone's Python is of another day."""
    with (clone / "__init__.py").open("a") as file:
        file.write("\nmark = 'of the clone'\n")
    (clone / "ops" / "__init__.py").write_text("raise ImportError('of another day')\n")
    told, warned = started_in(clone.parent, site.parent)
    assert told["impl"] == "cpu" and told["cpu"] == "can run" and warned == ""
    assert told["same"] and told["mark"] is None
    assert {Path(file).is_relative_to(site) for file in told["files"]} == {True}
    assert Path(told["library"]).samefile(site / _library.NAME)
    assert told["hetkern"].endswith(f"in {site}; {clone} has no library and is passed over")


def test_sources_that_hide_nothing_run_as_they_did(clone, tmp_path):
    told, _ = started_in(clone.parent, tmp_path)
    assert told["impl"] == "reference"
    assert told["cpu"].endswith(f"not in {clone}: build it with `pip install .`")
    assert told["hetkern"].endswith(f"in {clone}")


@pytest.mark.parametrize("how", ["built in place", "named by HETKERN_LIBRARY"])
def test_sources_with_a_library_run_themselves(how, clone, site):
    environment = {}
    if how == "built in place":
        shutil.copytree(site, clone, symlinks=True, dirs_exist_ok=True)
    else:
        environment["HETKERN_LIBRARY"] = str(site / _library.NAME)
    told, _ = started_in(clone.parent, site.parent, **environment)
    assert told["impl"] == "cpu"
    assert told["hetkern"].endswith(f"in {clone}")
    assert {Path(file).is_relative_to(site) for file in told["files"]} <= {False}
