"""Who may import whom, and what no file may do: the table of rooms, checked by name.

Every file of src/kvmmu is parsed, never imported. Imports inside functions and under
`if TYPE_CHECKING:` count like any other.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
PACKAGE = REPO / "src" / "kvmmu"

# ------------------------------------------------------------------------------- the table
# A room imports itself and rooms of lower floors; on floor 0 also its neighbours (no cycles).
FLOORS: tuple[tuple[str, ...], ...] = (
    ("geometry", "units", "errors", "registry", "fixed_point", "trace"),
    ("kernels",),
    ("policies", "budgets", "codecs", "mergers"),  # these meet through the registry only
    ("slots",),
    ("hf",),
    ("engine",),
    ("server",),
    ("evals",),
    ("cli",),
)
GROUND = frozenset(FLOORS[0])
# Side wings stand on floor 0 alone; only the top floor enters them.
WINGS: dict[str, frozenset[str]] = {
    "accel": GROUND,
    "rtl": GROUND,
    "report": GROUND | {"accel"},
}
DATA = frozenset({"models", "data"})  # folders of data: read as files, never imported
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
ROOMS = frozenset(FLOOR_OF) | frozenset(WINGS) | DATA

# Other people's packages that belong to one room, and what the ground and the wings may not see.
ONLY_IN: dict[str, str] = {
    "transformers": "hf",
    "tokenizers": "hf",
    "huggingface_hub": "hf",
    "triton": "kernels",
    "amaranth": "rtl",
    "fastapi": "server",
    "uvicorn": "server",
}
GROUND_PACKAGES = frozenset({"numpy"})  # floor 0 is the standard library and numpy
WINGS_NEVER = frozenset({"torch"})

HOST_TRANSFERS = frozenset({"cpu", "item", "tolist"})
ON_DEVICE = ("kernels", "policies", "slots")
PICKLERS = frozenset({"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"})
NO_PICKLE_IN = ("src", "recipes", "benchmarks", "examples")


def may_import(room: str, other: str) -> bool:
    """Say whether a file of `room` may import from `other`."""
    if room == other:
        return True
    if other in DATA or room in DATA:
        return False
    if room in WINGS:
        return other in WINGS[room]
    if other in WINGS:
        return FLOOR_OF[room] == len(FLOORS) - 1
    if room in GROUND:
        return other in GROUND
    return FLOOR_OF[other] < FLOOR_OF[room]


def place(room: str) -> str:
    """Name where a room stands, for messages."""
    if room in FLOOR_OF:
        return f"floor {FLOOR_OF[room]}"
    return "data" if room in DATA else "side wing"


# ----------------------------------------------------------------------------- reading files
@dataclass(frozen=True)
class Import:
    """One module named by an import, absolute, with the line that names it."""

    module: str
    line: int

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    @property
    def room(self) -> str:
        """The room of kvmmu it names; empty for the package itself."""
        return self.module.split(".")[1] if "." in self.module else ""


def room_of(path: Path, package: Path) -> str:
    """Name the room a file belongs to; empty for the package's own __init__.

    __main__ is the command line's door.
    """
    room = path.relative_to(package).with_suffix("").parts[0]
    return {"__init__": "", "__main__": "cli"}.get(room, room)


def imports(tree: ast.AST, path: Path, package: Path) -> Iterator[Import]:
    """Yield every module a file imports, relative names resolved, `import_module("x")` included."""
    here = ("kvmmu", *path.relative_to(package).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            if module == "kvmmu":  # `from kvmmu import slots` names a room
                yield from (Import(f"kvmmu.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield Import(module, node.lineno)
        elif isinstance(node, ast.Call) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else None
            name = node.func.id if isinstance(node.func, ast.Name) else name
            first = node.args[0]
            if name in {"import_module", "__import__", "find_spec"}:
                text = first.value if isinstance(first, ast.Constant) else None
                if isinstance(text, str) and not text.startswith("."):
                    yield Import(text, node.lineno)


def python_files(folder: Path) -> list[Path]:
    """List the Python files under a folder, caches left out."""
    return sorted(p for p in folder.rglob("*.py") if "__pycache__" not in p.parts)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


# ----------------------------------------------------------------------------------- the rules
def wrong_rooms(package: Path) -> list[str]:
    """Name every import of kvmmu by kvmmu that the table does not allow."""
    found = []
    for path in python_files(package):
        room, name = room_of(path, package), f"kvmmu/{path.relative_to(package).as_posix()}"
        if not room:  # the package's own __init__ names anything, lazily (see below)
            continue
        if room not in ROOMS:
            found.append(f"{name} is in no room; give '{room}' a floor in tests/test_layers.py")
            continue
        for seen in imports(parse(path), path, package):
            if seen.top != "kvmmu" or seen.room == "__version__":
                continue
            where = f"{name}:{seen.line} ({place(room)}) must not import"
            if seen.room not in ROOMS:  # a public name: the package looks down on every room
                if room not in FLOORS[-1]:
                    found.append(f"{where} {seen.module} (the public surface)")
            elif not may_import(room, seen.room):
                found.append(f"{where} kvmmu.{seen.room} ({place(seen.room)})")
    return found


def wrong_packages(package: Path) -> list[str]:
    """Name every import of a third party's package in a room that must not see it."""
    found = []
    for path in python_files(package):
        room, name = room_of(path, package), f"kvmmu/{path.relative_to(package).as_posix()}"
        for seen in imports(parse(path), path, package):
            where = f"{name}:{seen.line} must not import {seen.top}"
            owner = ONLY_IN.get(seen.top)
            known = seen.top == "kvmmu" or seen.top in sys.stdlib_module_names
            if owner and room != owner:
                found.append(f"{where}: only kvmmu/{owner} does")
            elif room in GROUND and not known and seen.top not in GROUND_PACKAGES:
                found.append(f"{where}: floor 0 is the standard library and numpy")
            elif room in WINGS and seen.top in WINGS_NEVER:
                found.append(f"{where}: the side wings run without it")
    return found


def eager_imports(init: Path) -> list[str]:
    """Name the imports that run when the package itself is imported."""
    tree, allowed = parse(init), sys.stdlib_module_names
    found = []
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for seen in imports(ast.Module([node], []), init, init.parent):
                if seen.top not in allowed and not seen.module.startswith("kvmmu.errors"):
                    found.append(f"kvmmu/__init__.py:{seen.line} imports {seen.module} eagerly")
    return found


def host_transfers(package: Path) -> list[str]:
    """Name every call that moves a tensor to the host where tensors must stay."""
    found = []
    for path in (p for room in ON_DEVICE for p in python_files(package / room)):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr in HOST_TRANSFERS:
                    name = path.relative_to(package).as_posix()
                    found.append(f"kvmmu/{name}:{node.lineno} must not call .{node.func.attr}()")
    return found


def picklers(folder: Path) -> list[str]:
    """Name everything in a folder that reads or writes pickle."""
    found = []
    for path in python_files(folder):
        where = path.relative_to(folder.parent).as_posix()
        for node in ast.walk(parse(path)):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name.partition(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module.partition(".")[0]]
                if node.module == "torch" and {a.name for a in node.names} & {"load", "save"}:
                    found.append(f"{where}:{node.lineno} must not use torch.load or torch.save")
            elif isinstance(node, ast.Attribute) and node.attr in {"load", "save"}:
                if isinstance(node.value, ast.Name) and node.value.id == "torch":
                    found.append(f"{where}:{node.lineno} must not use torch.{node.attr}")
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                    found.append(f"{where}:{node.value.lineno} must not allow pickle")
            found += [f"{where}:{node.lineno} must not import {n}" for n in names if n in PICKLERS]
    return found


def room_graph(package: Path) -> dict[str, set[str]]:
    """Map each room to the other rooms it imports."""
    graph: dict[str, set[str]] = {}
    for path in python_files(package):
        room = room_of(path, package)
        if room:
            seen = {i.room for i in imports(parse(path), path, package) if i.top == "kvmmu"}
            graph.setdefault(room, set()).update((seen & ROOMS) - {room})
    return graph


# ----------------------------------------------------------------------------------- the house
def report(found: list[str]) -> str:
    return "\n" + "\n".join(found)


def test_rooms_import_only_downward():
    found = wrong_rooms(PACKAGE)
    assert not found, report(found)


def test_rooms_import_each_other_without_cycles():
    TopologicalSorter(room_graph(PACKAGE)).prepare()  # CycleError names the cycle


def test_packages_stay_in_their_rooms():
    found = wrong_packages(PACKAGE)
    assert not found, report(found)


@pytest.mark.skipif(not (PACKAGE / "__init__.py").exists(), reason="the package has no __init__")
def test_package_imports_nothing_eagerly():
    found = eager_imports(PACKAGE / "__init__.py")
    assert not found, report(found)


def test_tensors_stay_on_their_device():
    found = host_transfers(PACKAGE)
    assert not found, report(found)


@pytest.mark.parametrize("folder", NO_PICKLE_IN)
def test_nothing_reads_or_writes_pickle(folder):
    found = picklers(REPO / folder)
    assert not found, report(found)


# ------------------------------------------------------------------- the rules catch what they say
def house(tmp_path: Path, **files: str) -> Path:
    """Write a small package; `policies__rce="..."` is kvmmu/policies/rce.py."""
    package = tmp_path / "kvmmu"
    for name, text in files.items():
        parts = ["__init__"] if name == "init" else name.split("__")
        path = package.joinpath(*parts).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return package


@pytest.mark.parametrize(
    "line",
    [
        "from kvmmu.slots import mmu",
        "from kvmmu import slots",
        "import kvmmu.slots.mmu as mmu",
        "from ..slots.mmu import MMU",
        "from .. import slots",
        "def f():\n    import kvmmu.slots",
        "if TYPE_CHECKING:\n    from kvmmu.slots import mmu",
        "importlib.import_module('kvmmu.slots')",
    ],
)
def test_upward_import_is_named(tmp_path, line):
    found = wrong_rooms(house(tmp_path, policies__rce=line))
    assert [f.replace(":2 ", ":1 ") for f in found] == [
        "kvmmu/policies/rce.py:1 (floor 2) must not import kvmmu.slots (floor 3)"
    ]


@pytest.mark.parametrize(
    ("room", "other"),
    [
        ("policies", "budgets"),  # same floor: through the registry
        ("geometry", "kernels"),
        ("accel", "kernels"),
        ("rtl", "accel"),
        ("report", "evals"),
        ("engine", "accel"),
        ("evals", "report"),
        ("slots", "models"),
        ("slots", "hf"),
        ("evals", "cli"),
    ],
)
def test_table_forbids(room, other):
    assert not may_import(room, other)


@pytest.mark.parametrize(
    ("room", "other"),
    [
        ("policies", "registry"),
        ("policies", "kernels"),
        ("geometry", "errors"),
        ("slots", "codecs"),
        ("engine", "hf"),
        ("accel", "trace"),
        ("report", "accel"),
        ("cli", "report"),
        ("cli", "evals"),
    ],
)
def test_table_allows(room, other):
    assert may_import(room, other)


def test_public_surface_is_not_imported_from_within(tmp_path):
    package = house(tmp_path, hf__cache="from kvmmu import RCE", cli="from kvmmu import RCE")
    assert wrong_rooms(package) == [
        "kvmmu/hf/cache.py:1 (floor 4) must not import kvmmu.RCE (the public surface)"
    ]


def test_unknown_room_is_named(tmp_path):
    assert wrong_rooms(house(tmp_path, helpers__misc="")) == [
        "kvmmu/helpers/misc.py is in no room; give 'helpers' a floor in tests/test_layers.py"
    ]


def test_package_in_the_wrong_room_is_named(tmp_path):
    package = house(
        tmp_path,
        slots__mmu="import torch, transformers",
        hf__cache="import torch, transformers",
        trace__reader="import json, numpy\nfrom torch import nn",
        accel__spec="import pydantic\ndef f():\n    import torch.nn",
    )
    assert wrong_packages(package) == [
        "kvmmu/accel/spec.py:3 must not import torch: the side wings run without it",
        "kvmmu/slots/mmu.py:1 must not import transformers: only kvmmu/hf does",
        "kvmmu/trace/reader.py:2 must not import torch: floor 0 is the standard library and numpy",
    ]


def test_eager_import_is_named(tmp_path):
    text = "import importlib\nfrom kvmmu.slots import x\nimport torch\ndef f():\n    import numpy"
    assert eager_imports(house(tmp_path, init=text) / "__init__.py") == [
        "kvmmu/__init__.py:2 imports kvmmu.slots eagerly",
        "kvmmu/__init__.py:3 imports torch eagerly",
    ]


def test_host_transfer_is_named(tmp_path):
    text = '"""No .item() here."""\nfrom kvmmu.kernels import cpu\nx = cpu.attend(y)\nz = x.item()'
    assert host_transfers(house(tmp_path, slots__mmu=text)) == [
        "kvmmu/slots/mmu.py:4 must not call .item()"
    ]


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import torch; torch.save(x, 'x')",
        "from torch import load",
        "np.load('x', allow_pickle=True)",
    ],
)
def test_pickle_is_named(tmp_path, line):
    found = picklers(house(tmp_path, hf__cache=line))
    assert len(found) == 1
    assert found[0].startswith("kvmmu/hf/cache.py:1 must not ")


def test_cycle_is_found(tmp_path):
    package = house(tmp_path, units="import kvmmu.errors", errors="import kvmmu.units")
    with pytest.raises(ValueError, match="cycle"):
        TopologicalSorter(room_graph(package)).prepare()
