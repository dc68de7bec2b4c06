"""kvmmu accelerators: the machines, memories and models that can be simulated."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from kvmmu.cli.lists import AsJson

__all__ = ["accelerators"]

_BATCH = 16
"""The batch at which machine balance is printed: the paper's."""

Batch = Annotated[int, typer.Option(help="Lanes at which PEs / (BW x B / f) is reckoned.")]


def accelerators(*, batch: Batch = _BATCH, as_json: AsJson = False) -> None:
    """List accelerators, published machines, DRAM standards and models.

    An accelerator can be simulated. A published machine is shown with a figure of its paper, as
    published and as its dataflow computes it, and the error; where none is met within 15 %, it is
    no more than a roofline, and is shown as one. PEs / (BW x B / f): below 1 a step of int8 weights
    is compute-bound, above it memory-bound.
    """
    if batch < 1:
        raise ValueError(f"--batch must be at least 1, got {batch}")
    from kvmmu.accel.profiles import TOLERANCE

    made = {
        "batch": batch,
        "tolerance": TOLERANCE,
        "accelerators": _presets(batch),
        "published": _profiles(batch),
        "drams": _drams(),
        "models": _models(),
    }
    if as_json:
        typer.echo(json.dumps(made))
        return
    _print(made)
    typer.echo("A YAML file, a DRAM's or an accelerator's, serves as well as a name.", err=True)


def _presets(batch: int) -> list[dict[str, Any]]:
    from kvmmu.accel.dram.spec import load_dram
    from kvmmu.accel.spec.accelerator import balance
    from kvmmu.accel.spec.load import list_accelerators, load_accelerator

    rows = []
    for name in list_accelerators():
        spec = load_accelerator(name)
        dram = load_dram(spec.dram)
        rows.append(
            {
                "name": name,
                "title": spec.title,
                "dataflow": spec.dataflow,
                "node_nm": spec.process.node_nm,
                "num_pes": spec.num_pes,
                "clock_mhz": spec.clock.clock_mhz,
                "dram": dram.name,
                "dram_gbps": dram.peak_gbps,
                "balance": balance(spec, dram.peak_gbps, batch),
            }
        )
    return rows


def _profiles(batch: int) -> list[dict[str, Any]]:
    from kvmmu.accel.profiles import list_profiles, load_profile

    rows = []
    for name in list_profiles():
        made = load_profile(name)
        figures = [
            {
                "what": figure.what,
                "published": figure.published,
                "computed": figure.computed,
                "unit": figure.unit,
                "error": figure.error,
                "source": figure.source,
            }
            for figure in made.reproduce()
        ]
        rows.append(
            {
                "name": name,
                "title": made.title,
                "dataflow": made.dataflow,
                "shown_as": made.shown_as,
                "node_nm": made.machine.node_nm,
                "num_pes": made.num_pes,
                "clock_mhz": made.clock_mhz,
                "dram_gbps": made.bandwidth_gbps,
                "balance": made.balance(batch),
                "figures": figures,
            }
        )
    return rows


def _drams() -> list[dict[str, Any]]:
    from kvmmu.accel.dram.spec import list_drams, load_dram

    specs = [load_dram(name) for name in list_drams()]
    return [
        {
            "name": spec.name,
            "title": spec.title,
            "gbps": spec.peak_gbps,
            "capacity_bytes": spec.capacity_bytes,
            "cross_checked": spec.cross_checked,
        }
        for spec in specs
    ]


def _models() -> list[dict[str, Any]]:
    from kvmmu.accel.spec.load import list_models_specs, load_model

    specs = [load_model(name) for name in list_models_specs()]
    return [
        {
            "name": spec.name,
            "title": spec.title,
            "num_parameters": spec.num_parameters,
            "num_layers": spec.num_layers,
            "num_heads": spec.num_heads,
            "num_kv_heads": spec.num_kv_heads,
            "head_dim": spec.head_dim,
            "max_positions": spec.max_positions,
        }
        for spec in specs
    ]


def _print(made: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    from kvmmu.report.accelerator.lists import list_grids, reproduction_lines
    from kvmmu.report.accelerator.terminal import grid_table

    console = Console(highlight=False, markup=False)
    for name, grid in list_grids(made).items():
        for part in grid_table(grid):
            console.print(part)
        if name == "published":
            for line in reproduction_lines(made):
                console.print(Text(line, style="dim"))
            console.print()
