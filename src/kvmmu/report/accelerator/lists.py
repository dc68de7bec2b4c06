"""What can be simulated, as tables: accelerators, published machines, DRAM standards, models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvmmu.report.accelerator.cells import NONE, Cell, make_grid, number
from kvmmu.report.accelerator.names import bytes_text, three_digits
from kvmmu.report.evaluation.tables import Grid

__all__ = ["list_grids", "reproduction_lines"]

Row = Mapping[str, Any]


def list_grids(made: Row) -> dict[str, Grid]:
    """Lay out every list, by name."""
    what = f"balance: PEs / (BW x B / f) at B = {made['batch']}"
    head = ["dataflow", "nm", "PEs", "MHz", "GB/s", "balance"]
    presets = [
        [(r["name"], None), *_machine(r, r["dataflow"]), (r["dram"], None)]
        for r in made["accelerators"]
    ]
    published = [[(r["name"], None), *_machine(r, r["shown_as"])] for r in made["published"]]
    drams = [
        [
            (r["name"], None),
            number(r["gbps"], three_digits),
            number(r["capacity_bytes"], bytes_text),
        ]
        for r in made["drams"]
    ]
    models = [
        [
            (r["name"], None),
            number(r["num_parameters"] / 1e6, lambda value: f"{value:,.1f} M"),
            *((f"{r[k]:,}", float(r[k])) for k in _SHAPES),
        ]
        for r in made["models"]
    ]
    return {
        "accelerators": make_grid(f"Accelerators ({what})", ["name", *head, "DRAM"], presets),
        "published": make_grid(f"Published machines ({what})", ["name", *head], published),
        "drams": make_grid("DRAM (--dram)", ["name", "GB/s", "capacity"], drams),
        "models": make_grid("Models (--model)", ["name", "parameters", *_SHAPES.values()], models),
    }


_SHAPES = {
    "num_layers": "layers",
    "num_heads": "heads",
    "num_kv_heads": "KV heads",
    "head_dim": "head width",
    "max_positions": "positions",
}


def _machine(row: Row, dataflow: str) -> list[Cell]:
    node = row["node_nm"]
    return [
        (dataflow, None),
        NONE if node is None else (f"{node}", float(node)),
        (f"{row['num_pes']:,}", float(row["num_pes"])),
        number(row["clock_mhz"], "{:,.0f}".format),
        number(row["dram_gbps"], "{:,.1f}".format),
        number(row["balance"], three_digits),
    ]


def reproduction_lines(made: Row) -> list[str]:
    """Word a figure of each published machine: the first that is met, else the nearest."""
    lines = []
    for row in made["published"]:
        figures = row["figures"]
        met = [f for f in figures if abs(f["error"]) <= made["tolerance"]]
        figure = met[0] if met else min(figures, key=lambda f: abs(f["error"]))
        lines.append(
            f"{row['name']}: {figure['what']}: published {figure['published']:.4g} "
            f"{figure['unit']}, computed {figure['computed']:.4g}, error {figure['error']:+.1%}; "
            f"{len(met)} of {len(figures)} published figures within {made['tolerance']:.0%}"
        )
    return lines
