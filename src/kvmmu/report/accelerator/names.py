"""How designs, units and kinds of traffic are worded, grouped and written, everywhere alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = [
    "BYTE_KINDS",
    "MODES",
    "SCOPES",
    "bytes_text",
    "by_group",
    "energy_text",
    "joined_kinds",
    "mmu_term",
    "plain",
    "scale_for",
    "share_text",
    "three_digits",
    "time_text",
    "times",
    "unit_name",
]

Row = dict[str, Any]

ENERGY_GROUPS: Mapping[str, tuple[str, ...]] = {
    "DRAM, switching": ("dram_activate", "dram_column", "dram_io"),
    "DRAM, standby": ("dram_background", "dram_refresh"),
    "SRAM buffers": ("weight_buffer", "kv_buffer", "activation_buffer", "logits_buffer"),
    "PE array": ("array",),
    "softmax, vector": ("softmax", "vector"),
    "all on chip": ("all_in",),
    "KV-MMU": (),
    "leakage": (),
}
"""Groups of units as pictures and short tables show them; by_group fills the last two."""

BYTE_KINDS: Mapping[str, str] = {
    "weight": "weights",
    "kv_read": "K and V read, decode",
    "kv_read_chunk": "K and V read, prefill",
    "kv_write": "K and V written",
    "kv_stage": "K and V staged",
    "activation": "activations",
    "score": "score tables",
    "embedding": "embeddings",
    "page_table": "page tables",
    "copy": "copies and merges",
}
SCOPES = {"decode": "decode", "end_to_end": "whole run"}
MODES = {
    "overlapped": "both overlapped",
    "baseline_serial": "baseline serial",
    "serial": "both serial",
}
_UNITS = {
    "dram_activate": "DRAM, opening rows",
    "dram_column": "DRAM, reading and writing",
    "dram_io": "DRAM, pins and PHY",
    "dram_background": "DRAM, standby",
    "dram_refresh": "DRAM, refresh",
    "weight_buffer": "weight buffer",
    "kv_buffer": "KV buffer",
    "activation_buffer": "activation buffer",
    "logits_buffer": "logits buffer",
    "array": "PE array",
    "softmax": "softmax",
    "vector": "vector unit",
    "mmu_score": "KV-MMU, score SRAM",
    "mmu_logic": "KV-MMU, logic",
    "mmu_clock": "KV-MMU, clock",
    "mmu_scores": "KV-MMU, score SRAM",
    "mmu_dram": "KV-MMU, score tables in DRAM",
    "mmu_collect": "KV-MMU, score collection",
    "total": "all",
}
_TERMS = {
    "mmu_logic": "logic",
    "mmu_clock": "clock",
    "mmu_scores": "score SRAM",
    "mmu_dram": "score tables in DRAM",
    "mmu_collect": "second look for scores",
    "leak_mmu_score": "leakage, score SRAM",
    "leak_mmu_logic": "leakage, logic",
    "logits_buffer": "logits buffer",
    "leak_logits_buffer": "leakage, logits buffer",
}


def unit_name(unit: str) -> str:
    """Word a unit of energy, area or leakage."""
    if unit.startswith("leak_"):
        return f"leakage, {_UNITS.get(unit[5:], plain(unit[5:]))}"
    return _UNITS.get(unit, plain(unit))


def mmu_term(term: str) -> str:
    """Word a part of the KV-MMU's energy."""
    return _TERMS.get(term, plain(term))


def plain(name: str) -> str:
    """Write a key as words."""
    return name.replace("_", " ")


def by_group(units: Mapping[str, float]) -> dict[str, float]:
    """Add energy by unit up to groups; what no group names is "other", so that sums stay."""
    sums = dict.fromkeys(ENERGY_GROUPS, 0.0)
    homes = {unit: group for group, names in ENERGY_GROUPS.items() for unit in names}
    for unit, value in units.items():
        own = "leakage" if unit.startswith("leak_") else "other"
        group = "KV-MMU" if "mmu_" in unit else homes.get(unit, own)
        sums[group] = sums.get(group, 0.0) + value
    return {group: value for group, value in sums.items() if value}


def joined_kinds(rows: Iterable[Mapping[str, float]]) -> list[str]:
    """List the kinds of traffic that any of the rows has, known ones first."""
    seen = {kind for row in rows for kind, value in row.items() if value}
    known = [kind for kind in BYTE_KINDS if kind in seen]
    return known + sorted(seen - set(known))


# Figures ------------------------------------------------------------------------------------


def _scaled(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    """Write three digits with the largest prefix that leaves a whole number before the point."""
    if value == 0:
        return f"0 {steps[-1][1]}"
    for size, unit in steps:
        if abs(value) >= size * 0.9995 or size == steps[-1][0]:
            return f"{three_digits(value / size)} {unit}"
    raise ValueError(f"steps must not be empty, got {steps!r}")


def three_digits(value: float) -> str:
    """Write a figure with three digits, thousands with commas."""
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.0995 or value == 0 else f"{value:.2g}"


_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
_JOULES = ((1e3, "kJ"), (1.0, "J"), (1e-3, "mJ"), (1e-6, "uJ"), (1e-9, "nJ"))
_SCALES = {"bytes": _BYTES, "s": _SECONDS, "J": _JOULES}


def scale_for(largest: float, measure: str) -> tuple[float, str]:
    """Return the size and name of the unit in which an axis up to `largest` is written."""
    steps = _SCALES[measure]
    return next((step for step in steps if largest >= step[0]), steps[-1])


def bytes_text(value: float) -> str:
    """Write bytes; 1 GB is 1e9 bytes."""
    return _scaled(value, _BYTES)


def time_text(seconds: float) -> str:
    """Write seconds."""
    return _scaled(seconds, _SECONDS)


def energy_text(joules: float) -> str:
    """Write joules."""
    return _scaled(joules, _JOULES)


def share_text(share: float) -> str:
    """Write a share in percent; a small one keeps two digits."""
    value, size = 100 * share, abs(100 * share)
    if size == 0:
        return "0 %"
    if size < 0.00095:
        return "< 0.001 %"
    if size >= 0.995:
        return f"{value:.1f} %" if size >= 9.995 else f"{value:.2f} %"
    return f"{value:.2g} %"


def times(ratio: float) -> str:
    """Write a ratio."""
    return f"{ratio:.2f}x" if ratio < 99.95 else f"{ratio:,.0f}x"
