"""Find specifications by listing folders: a new accelerator or model is one new file.

Names are taken with '-' or '_' and in any case; anything that ends in .yaml, .yml or .json, or
is a folder, is a path.
"""

from __future__ import annotations

from pathlib import Path

from kvmmu.accel.spec.accelerator import AcceleratorSpec
from kvmmu.accel.spec.sourced import parse_spec, read_yaml, require_sources
from kvmmu.errors import SpecError
from kvmmu.registry import unknown_name

__all__ = ["list_accelerators", "load_accelerator"]

_CONFIGS = Path(__file__).parents[1] / "configs"


def list_accelerators() -> list[str]:
    """List the shipped accelerators in alphabetical order."""
    return sorted(path.stem for path in _CONFIGS.glob("*.yaml"))


def load_accelerator(name_or_path: str | Path) -> AcceleratorSpec:
    """Return a shipped accelerator by its name, or the one a YAML file describes.

    Raises SpecError for an unknown name with the nearest known one, and for a wrong file.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
    else:
        name = text.lower().replace("-", "_")
        if name not in list_accelerators():
            raise SpecError(unknown_name("accelerator", text, list_accelerators()))
        path = _CONFIGS / f"{name}.yaml"
    raw = read_yaml(path)
    require_sources(raw, path.name)
    return parse_spec(AcceleratorSpec, raw, path.name)
