"""Simulated patterns on disk: small JSON files that may be lost, broken or shared at any time.

The folder is `cache_dir`, or $KVMMU_CACHE_DIR, or the user's cache folder (XDG). A key covers the
timing-relevant parts of the specification, the pattern and the source text of the simulator. What
a first run asks for is shipped under the same keys (recipes/ship_dram_patterns.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kvmmu.accel.dram.spec import DramSpec

__all__ = ["SHIPPED", "cache_folder", "load_cached", "pattern_key", "store_cached"]

SIMULATOR = (
    "controller.py",
    "device.py",
    "gaps.py",
    "mapping.py",
    "patterns.py",
    "requests.py",
    "scheduler.py",
)

SHIPPED = Path(__file__).parents[1] / "configs" / "dram_patterns.json"


@cache
def _shipped() -> dict[str, Any]:
    """Read the shipped patterns; those of other code or specifications are never asked for."""
    try:
        made: dict[str, Any] = json.loads(SHIPPED.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return made


def cache_folder(cache_dir: Path | None = None) -> Path:
    """Return the folder of cached patterns; it need not exist."""
    if cache_dir is not None:
        return cache_dir / "dram"
    if named := os.environ.get("KVMMU_CACHE_DIR"):
        return Path(named) / "dram"
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "kvmmu" / "dram"


@cache
def _code_version() -> str:
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for name in SIMULATOR:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def pattern_key(spec: DramSpec, pattern: Any) -> str:
    """Return the key of a pattern's simulation: energy and names are not part of it."""
    if not is_dataclass(pattern) or isinstance(pattern, type):
        raise TypeError(f"pattern must be a dataclass instance, got {pattern!r}")
    parts = {
        "code": _code_version(),
        "spec": spec.model_dump(
            include={"organization", "timings", "address", "controller"},
            exclude={
                group: {"source"} for group in ("organization", "timings", "address", "controller")
            },
        ),
        "pattern": asdict(pattern),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load_cached(cache_dir: Path | None, key: str, fields: tuple[str, ...]) -> dict[str, Any] | None:
    """Return the stored numbers, or None if there are none that are whole.

    Shipped numbers stand in for the user's folder, not for one that is asked for by name.
    """
    try:
        data = json.loads((cache_folder(cache_dir) / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        data = None if cache_dir is not None else _shipped().get(key)
    whole = isinstance(data, dict) and set(data) == set(fields)
    if not whole or not all(_is_count(value) for value in data.values()):
        return None
    return dict(data)


def _is_count(value: object) -> bool:
    """Say whether a stored value can be a result: a positive finite number or zero."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e18


def store_cached(cache_dir: Path | None, key: str, values: Mapping[str, float]) -> None:
    """Write the numbers in one step; a folder that cannot be written costs only time later."""
    folder = cache_folder(cache_dir)
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(dict(values), file)
            os.replace(name, folder / f"{key}.json")
        except OSError:
            with suppress(OSError):
                os.unlink(name)
            raise
