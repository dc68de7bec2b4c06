"""The public surface: __all__ is the truth, and importing kvmmu costs nothing."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from test_layers import ROOMS

import kvmmu

PACKAGE = Path(kvmmu.__file__).parent
HEAVY = ("torch", "transformers", "tokenizers", "numba", "matplotlib", "pydantic")


def modules_after(statement: str) -> set[str]:
    """Name the top-level modules a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_all_is_sorted_and_has_no_duplicates():
    assert list(kvmmu.__all__) == sorted(set(kvmmu.__all__))


@pytest.mark.parametrize("name", kvmmu.__all__)
def test_public_name_resolves(name):
    assert getattr(kvmmu, name) is not None


def test_all_names_everything_public():
    for name in kvmmu.__all__:
        getattr(kvmmu, name)
    public = {
        name
        for name, value in vars(kvmmu).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }
    assert public <= set(kvmmu.__all__)


def test_dir_lists_the_public_names():
    assert set(kvmmu.__all__) <= set(dir(kvmmu))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = kvmmu.nothing_of_this_name


def test_no_function_bears_a_rooms_name():
    clashes = [
        name for name in set(kvmmu.__all__) & ROOMS if not inspect.ismodule(getattr(kvmmu, name))
    ]
    assert clashes == []


def test_version_is_the_distributions():
    assert kvmmu.__version__ == metadata.version("kvmmu")


def test_every_public_class_and_function_has_a_docstring():
    bare = [
        name
        for name in kvmmu.__all__
        if (inspect.isclass(getattr(kvmmu, name)) or inspect.isroutine(getattr(kvmmu, name)))
        and not inspect.getdoc(getattr(kvmmu, name))
    ]
    assert bare == []


def test_importing_kvmmu_imports_nothing_heavy():
    assert modules_after("import kvmmu").isdisjoint(HEAVY)


@pytest.mark.parametrize("room", ["trace", "fixed_point", "geometry", "registry", "accel", "rtl"])
def test_room_runs_without_torch(room):
    if not ((PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file()):
        pytest.skip(f"kvmmu.{room} is not there")
    assert modules_after(f"import kvmmu.{room}").isdisjoint({"torch", "transformers"})
