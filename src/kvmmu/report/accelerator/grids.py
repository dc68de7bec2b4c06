"""A study as tables of texts: the same ones in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvmmu.report.accelerator.cost_grids import (
    bound_grid,
    byte_grid,
    delay_grid,
    energy_grid,
    unit_grid,
)
from kvmmu.report.accelerator.mmu_grids import (
    area_grid,
    layout_grid,
    mmu_grid,
    stall_grid,
    variant_grid,
)
from kvmmu.report.accelerator.ratio_grids import (
    dram_grid,
    iso_grid,
    pipeline_grid,
    ratio_grid,
    sensitivity_grid,
)
from kvmmu.report.accelerator.study import scopes_of
from kvmmu.report.evaluation.tables import Grid

__all__ = ["grids"]


def grids(study: Mapping[str, Any]) -> dict[str, Grid]:
    """Lay out every table that has rows, by name."""
    made = {"answer": pipeline_grid(study)}
    made |= {f"ratios_{scope}": ratio_grid(study, scope) for scope in scopes_of(study)}
    made |= {
        "drams": dram_grid(study),
        "delay": delay_grid(study),
        "energy": energy_grid(study),
        "bytes": byte_grid(study),
        "bounds": bound_grid(study),
        "mmu": mmu_grid(study),
        "variants": variant_grid(study),
        "stalls": stall_grid(study),
        "sensitivity": sensitivity_grid(study),
        "iso": iso_grid(study),
        "layouts": layout_grid(study),
        "layouts_short": layout_grid(study, is_short=True),
        "area": area_grid(study),
        "units": unit_grid(study),
    }
    return {name: grid for name, grid in made.items() if grid.rows}
