"""Find specifications by listing folders: a new accelerator or model is one new file.

Names are taken with '-' or '_' and in any case. A pathlib.Path is a path, and so is text that
holds a slash or ends in .yaml, .yml or .json: a name never means a file of the working folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from kvmmu.accel.spec.accelerator import AcceleratorSpec
from kvmmu.accel.spec.hf_config import model_of_config
from kvmmu.accel.spec.model import ModelSpec
from kvmmu.accel.spec.sourced import Source, SpecModel, parse_spec, read_yaml, require_sources
from kvmmu.errors import SpecError
from kvmmu.registry import unknown_name

__all__ = ["list_accelerators", "list_models_specs", "load_accelerator", "load_model"]

_CONFIGS = Path(__file__).parents[1] / "configs"
_MODELS = _CONFIGS / "models"
_SHIPPED = Path(__file__).parents[2] / "models"  # data: read as files, never imported


class _ModelPreset(SpecModel):
    """A model's file: the keys of its published config.json and how many parameters it has."""

    name: str
    title: str
    num_parameters: int = Field(gt=0)
    source: Source
    config: dict[str, Any]


def _is_path(name_or_path: str | Path) -> bool:
    text = str(name_or_path)
    return (
        isinstance(name_or_path, Path) or "/" in text or text.endswith((".yaml", ".yml", ".json"))
    )


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def list_accelerators() -> list[str]:
    """List the shipped accelerators in alphabetical order."""
    return sorted(path.stem for path in _CONFIGS.glob("*.yaml"))


def load_accelerator(name_or_path: str | Path) -> AcceleratorSpec:
    """Return a shipped accelerator by its name, or the one a YAML file describes.

    Raises SpecError for an unknown name with the nearest known one, and for a wrong file.
    """
    if _is_path(name_or_path):
        path = Path(name_or_path)
    else:
        path = _CONFIGS / f"{_plain(str(name_or_path))}.yaml"
        if path.stem not in list_accelerators():
            if (_CONFIGS / "profiles" / path.name).is_file():
                raise SpecError(
                    f"accelerator must be one that can be simulated "
                    f"({', '.join(list_accelerators())}), got the profile {path.stem!r} of a "
                    "published machine; kvmmu plan takes it"
                )
            raise SpecError(unknown_name("accelerator", str(name_or_path), list_accelerators()))
    raw = read_yaml(path)
    require_sources(raw, path.name)
    return parse_spec(AcceleratorSpec, raw, path.name)


def list_models_specs() -> list[str]:
    """List the models known by name: presets, then the folders of shipped models."""
    presets = sorted(path.name.removesuffix(".yaml") for path in _MODELS.glob("*.yaml"))
    return presets + sorted(path.parent.name for path in _SHIPPED.glob("*/config.json"))


def load_model(name_or_path: str | Path) -> ModelSpec:
    """Return a model by its name, or the one a Hugging Face folder or config.json describes.

    Raises SpecError for an unknown name with the nearest known one, and for a wrong file.
    """
    if _is_path(name_or_path):
        path = Path(name_or_path)
        return _preset(path) if path.suffix in (".yaml", ".yml") else _published(path)
    known = {_plain(name): name for name in list_models_specs()}
    name = known.get(_plain(str(name_or_path)))
    if name is None:
        raise SpecError(unknown_name("model", str(name_or_path), list_models_specs()))
    preset = _MODELS / f"{name}.yaml"
    return _preset(preset) if preset.exists() else _published(_SHIPPED / name)


def _preset(path: Path) -> ModelSpec:
    raw = read_yaml(path)
    require_sources(raw, path.name)
    preset = parse_spec(_ModelPreset, raw, path.name)
    model = model_of_config(
        preset.config,
        name=preset.name,
        title=preset.title,
        source=str(preset.config["source"]),
        file=path.name,
    )
    if model.num_parameters != preset.num_parameters:
        raise SpecError(
            f"{path.name}: num_parameters must be {model.num_parameters}, what its config gives, "
            f"got {preset.num_parameters}"
        )
    return model


def _published(path: Path) -> ModelSpec:
    """Read a folder with a config.json, or the file itself."""
    file = path / "config.json" if path.is_dir() else path
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{file} must be a readable config.json, got {error.strerror}") from error
    except ValueError as error:
        raise SpecError(f"{file} must be JSON, got {error}") from error
    if not isinstance(values, dict):
        raise SpecError(f"{file} must hold a JSON object, got {type(values).__name__}")
    name = file.resolve().parent.name if file.name == "config.json" else file.stem
    return model_of_config(
        values, name=name, title=name, source=f"{file.name} of {name}", file=str(file)
    )
