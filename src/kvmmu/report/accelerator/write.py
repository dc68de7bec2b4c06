"""Write a study: its JSON and its pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvmmu.report.accelerator.plots import PICTURES
from kvmmu.report.accelerator.study import FILE

__all__ = ["draw", "write_study"]

_PLOTS = "accelerator"
"""The folder of the pictures: beside the plots of an evaluation, not among them."""


def write_study(study: Mapping[str, Any], folder: Path) -> None:
    """Write simulation.json, from which the report draws the rest."""
    text = json.dumps(study, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def draw(study: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Draw every picture; return their files by name."""
    home = folder / _PLOTS
    home.mkdir(parents=True, exist_ok=True)
    return {name: plot(study, home / f"{name}.png") for name, plot in PICTURES.items()}
