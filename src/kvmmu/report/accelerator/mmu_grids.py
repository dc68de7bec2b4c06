"""Tables of the KV-MMU and its chip: its share of energy, its variants, layouts, area."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvmmu.report.accelerator.cells import Cell, make_grid, number
from kvmmu.report.accelerator.names import (
    mmu_term,
    plain,
    share_text,
    three_digits,
    times,
    unit_name,
)
from kvmmu.report.accelerator.study import CORNERS, mmu_corners
from kvmmu.report.evaluation.tables import Grid

__all__ = ["area_grid", "layout_grid", "mmu_grid", "stall_grid", "variant_grid"]

Study = Mapping[str, Any]


def mmu_grid(study: Study) -> Grid:
    """Lay out the KV-MMU's share of all energy, its terms largest first."""
    shares, corners = study["simulation"]["mmu_share"], mmu_corners(study)
    own = study["simulation"]["configuration"]["corner"]
    columns = {f"whole run, {corner}": made for corner, made in corners.items()}
    if "decode" in shares:
        columns = {f"decode, {own}": shares["decode"]} | columns
    words = {"tables": "all tables, logic included", "with_collection": "with score collection"}
    whole = shares["end_to_end"]
    terms = sorted((t for t in whole if t not in words), key=lambda term: -whole[term])
    rows = [
        [(words.get(term) or f"  {mmu_term(term)}", None)]
        + [number(made.get(term, 0.0), share_text) for made in columns.values()]
        for term in (*words, *terms)
    ]
    return make_grid(_share_title(study, ""), ["term", *columns], rows)


def variant_grid(study: Study) -> Grid:
    """Lay out that share for every granularity, store of the tables and flavour of SRAM."""
    rows: list[list[Cell]] = []
    refused = []
    for row in study.get("mmu_variants", []):
        name = f"{row['granularity']}, {row['store'].upper()}"
        if "nominal" not in row:
            refused.append(f"{name}: {row['refused']}")
            continue
        cells = [number(row[corner]["tables"], share_text) for corner in CORNERS]
        cells += [number(row[corner]["with_collection"], share_text) for corner in CORNERS]
        area = row["nominal"]["mmu_area_mm2"]
        flavour = row["sram_flavour"].upper()
        rows.append([(f"{name}, {flavour}", None), *cells, (f"{area:.3g}", area)])
    rows += [[(text, None), *[("–", None)] * 7] for text in refused]
    head = [f"{what}, {corner}" for what in ("tables", "with collection") for corner in CORNERS]
    title = _share_title(study, ", whole run, by its tables and the chip's SRAM")
    return make_grid(title, ["victim per, tables in, SRAM", *head, "mm2"], rows)


def stall_grid(study: Study) -> Grid:
    """Lay out the stalls of a decode step by the KV-MMU's ways and by cause."""
    made = study.get("stalls") or {"rows": [], "own_ways": None}
    rows: list[list[Cell]] = []
    for row in made["rows"]:
        mark = " *" if row["ways"] == made["own_ways"] else "" if row["is_built"] else " (no RTL)"
        cycles = [*row["by_cause"].values(), row["total"], row["rescale_cycles"]]
        share = row["total"] / row["step_cycles"]
        cells = [number(n, "{:,.0f}".format) for n in cycles]
        rows.append([(f"{row['ways']}{mark}", row["ways"]), *cells, number(share, share_text)])
    causes = list(made["rows"][0]["by_cause"]) if rows else []
    head = ["ways", *causes, "all", "if all rescale, more", "of the step"]
    title = "Stalls of a decode step, cycles (simulated; * this chip's ways)"
    return make_grid(title, head, rows)


def _share_title(study: Study, more: str) -> str:
    claim = share_text(study["paper"]["mmu_share"])
    return f"KV-MMU's share of all energy{more} (simulated; the paper's abstract: {claim})"


_LAYOUT_COLUMNS: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "stream_gbps": ("stream, GB/s", "{:.1f}".format),
    "write_ns": ("a slot written, ns", three_digits),
    "step_ns": ("a region's step, us", lambda ns: three_digits(ns / 1e3)),
    "step_pj": ("its energy, uJ", lambda pj: three_digits(pj / 1e6)),
    "slowdown": ("slower than the best", times),
}


def layout_grid(study: Study, *, is_short: bool = False) -> Grid:
    """Lay out slot layouts on address mappings, best first; the short form skips the middle."""
    choices, chosen = study["layouts"]["choices"], study["layouts"]["chosen"]
    own = [n for n, c in enumerate(choices) if _is_chosen(c, chosen)]
    kept = sorted({0, 1, *own, len(choices) - 1}) if is_short else range(len(choices))
    keys = [key for key in _LAYOUT_COLUMNS if all(key in choice for choice in choices)]
    rows = [
        [(f"{choices[n]['layout']} on {plain(choices[n]['mapping'])}{' *' * (n in own)}", None)]
        + [number(choices[n][key], _LAYOUT_COLUMNS[key][1]) for key in keys]
        for n in kept
        if n < len(choices)
    ]
    title = f"Slot layouts on address mappings, {len(choices)} pairs (simulated; * used here)"
    return make_grid(title, ["pair", *(_LAYOUT_COLUMNS[key][0] for key in keys)], rows)


def _is_chosen(choice: Mapping[str, Any], chosen: Mapping[str, Any]) -> bool:
    return bool(choice["layout"] == chosen["layout"] and choice["mapping"] == "preset")


def area_grid(study: Study) -> Grid:
    """Lay out area and leakage by unit."""
    area, leak = study["simulation"]["area_mm2"], study["simulation"]["leakage_w"]
    rows = [
        [
            (unit_name(unit), None),
            (f"{value:.3f}", value),
            number(value / area["total"], share_text),
            (f"{1e3 * leak[unit]:.3g}", 1e3 * leak[unit]),
        ]
        for unit, value in area.items()
    ]
    return make_grid("Area and leakage (simulated)", ["unit", "mm2", "of all", "leakage, mW"], rows)
