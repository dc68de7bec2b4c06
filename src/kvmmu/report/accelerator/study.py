"""A study's JSON: read, checked, and asked for what several pictures and tables need."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvmmu.report.accelerator.names import bytes_text

__all__ = [
    "CORNERS",
    "FILE",
    "accuracy_words",
    "baselines",
    "called",
    "fitting_full",
    "full_of",
    "kv_traffic",
    "mmu_corners",
    "ours_name",
    "read_study",
    "results_of",
    "scopes_of",
]

FILE = "simulation.json"
"""The file that `kvmmu simulate --output` writes and `kvmmu report` reads."""

_NEEDED = ("simulation", "paper", "accuracy", "labels", "other_drams", "sensitivity", "context",
           "iso_capacity", "layouts", "bounds")  # fmt: skip

CORNERS = ("low", "nominal", "high")
Row = dict[str, Any]


def read_study(path: Path) -> Row:
    """Read a study. Raises ValueError where the file is none."""
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} must be a JSON file of kvmmu simulate, got {error}") from error
    missing = [name for name in _NEEDED if not isinstance(made, dict) or name not in made]
    if missing:
        raise ValueError(
            f"{path} must be a study of kvmmu simulate, got one without {missing[0]!r}; "
            "simulate anew"
        )
    return dict(made)


def baselines(study: Mapping[str, Any]) -> list[Row]:
    """List the baselines, those that do not fit the DRAM included."""
    return list(study["simulation"]["baselines"])


def results_of(study: Mapping[str, Any]) -> list[Row]:
    """List every design, ours first."""
    return [study["simulation"]["ours"], *baselines(study)]


def full_of(study: Mapping[str, Any]) -> Row | None:
    """Return the full cache in our own bits: what every single-baseline figure compares with."""
    return next((made for made in baselines(study) if made["name"].startswith("full")), None)


def fitting_full(study: Mapping[str, Any]) -> Row | None:
    """Return the widest full cache that fits the DRAM."""
    full = [b for b in baselines(study) if b["fits"] and b["name"].startswith("full")]
    return max(full, key=lambda made: made["kv_bits"], default=None)


def called(made: Mapping[str, Any]) -> str:
    """Name a design; what does not fit the DRAM is named with its size."""
    size = "" if made["fits"] else f" ({bytes_text(made['capacity_bytes'])} > DRAM)"
    return f"{made['title']}{size}"


def ours_name(study: Mapping[str, Any]) -> str:
    """Name our policy in short: the design's title up to its first comma, "RCE" as a rule."""
    return str(study["simulation"]["ours"]["title"]).partition(",")[0].strip()


def scopes_of(study: Mapping[str, Any]) -> list[str]:
    """List the scopes that the run has: decode, if it decodes, and the whole run."""
    return list(study["simulation"]["mmu_share"])


def mmu_corners(study: Mapping[str, Any]) -> dict[str, Row]:
    """Return the KV-MMU's shares of the whole run by corner; without variants, its own corner's."""
    made = study["simulation"]["configuration"]
    own = {"granularity": made["granularity"], "sram_flavour": made["sram_flavour"]}
    own |= {"store": (made["mmu"] or {}).get("store")}
    for row in study.get("mmu_variants", []):
        if "nominal" in row and all(row[key] == value for key, value in own.items()):
            return {corner: row[corner] for corner in CORNERS}
    return {made["corner"]: study["simulation"]["mmu_share"]["end_to_end"]}


def kv_traffic(bound: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Return (moved, least) bytes of K and V by phase."""
    moved, least = bound["moved_bytes"], bound["compulsory_bytes"]
    return {
        phase: (moved[phase], least[phase])
        for phase in ("decode", "mixed", "prefill")
        if phase in least
    }


def accuracy_words(study: Mapping[str, Any]) -> str:
    """Say what accuracy belongs to the ratios."""
    accuracy = study["accuracy"]
    return "accuracy not measured" if accuracy is None else f"accuracy: {accuracy['what']}"
