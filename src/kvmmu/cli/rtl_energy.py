"""kvmmu rtl energy: what a recorded trace costs on the gates of a build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvmmu.cli.lists import AsJson
from kvmmu.cli.rtl import Beats, Liberty, SramLiberty, Steps, TraceFile, app, needs_amaranth
from kvmmu.errors import IntegrityError

if TYPE_CHECKING:
    from kvmmu.rtl.gates.energy import Energy
    from kvmmu.rtl.replay import Replay

__all__ = ["energy"]

BuildFolder = Annotated[
    Path, typer.Option("--build", help="The folder that `kvmmu rtl build` wrote.")
]
Share = Annotated[
    float, typer.Option("--mass-share", help="Share of cycles in which a beat of masses is there.")
]
Clock = Annotated[
    float | None, typer.Option("--clock-mhz", help="The clock (default: the build's).")
]


@app.command(
    epilog=(
        "Example: kvmmu rtl energy run.trace --build mmu "
        "--liberty sg13g2_stdcell_typ_1p20V_25C.lib.xz --steps 100"
    )
)
def energy(
    trace: TraceFile,
    *,
    build: BuildFolder,
    liberty: Liberty = None,
    sram_liberty: SramLiberty = None,
    beats: Beats = 1,
    mass_share: Share = 1.0,
    steps: Steps = None,
    clock_mhz: Clock = None,
    as_json: AsJson = False,
) -> None:
    """Replay a trace on a build's netlist, compare every write, and price its toggles.

    Simulated gates, no silicon: no wires, no clock tree, no glitches. Name the libraries that the
    build was made with. Tables in DRAM go out and come back as the block asks; the DRAM's own
    energy is not counted. A block with more KV heads than the trace repeats the trace's heads.
    """
    if not trace.is_file():
        raise ValueError(f"TRACE must be a file that exists, got {str(trace)!r}")
    if not 0 < mass_share <= 1:
        raise ValueError(f"--mass-share must be in (0, 1], got {mass_share:g}")
    if steps is not None and steps < 1:
        raise ValueError(f"--steps must be at least 1, got {steps}")
    if clock_mhz is not None and not 1 <= clock_mhz <= 10_000:
        raise ValueError(f"--clock-mhz must be in [1, 10000], got {clock_mhz:g}")
    with needs_amaranth():
        from kvmmu.rtl.measure import measure_build
    done, made = measure_build(
        build,
        trace,
        liberty=liberty,
        sram_liberties=tuple(sram_liberty or ()),
        beats=beats,
        mass_probability=mass_share,
        most_steps=steps,
        clock_mhz=clock_mhz,
    )
    if as_json:
        typer.echo(json.dumps({"replay": done.to_json(), "energy": made.to_json()}))
    else:
        _print(done, made)
    if done.mismatches or done.recorded_mismatches:
        where = done.first_mismatch or "a slot is not the recorded one"
        raise IntegrityError(f"the netlist must write the slots recorded: {where}")


def _print(done: Replay, made: Energy) -> None:
    """Print the counts, the energy by kind and the units that take most."""
    total = made.parts.total_pj
    rows: list[tuple[str, Any]] = [
        ("cycles", f"{done.cycles:,}"),
        ("steps, rows, beats", f"{done.steps:,}, {done.rows:,}, {done.beats:,}"),
        ("beats of table images", f"{done.image_beats:,}"),
        ("writes that differ", f"{done.mismatches + done.recorded_mismatches:,}"),
        ("energy", f"{total / 1e6:.3f} uJ, {made.pj_per_cycle:.1f} pJ a cycle"),
    ]
    rows += [
        (f"  {name.removesuffix('_pj').replace('_', ' ')}", f"{value / total:.1%}")
        for name, value in vars(made.parts).items()
    ]
    units = sorted(made.by_unit.items(), key=lambda item: -item[1])[:6]
    rows += [(f"  in {name}", f"{value / total:.1%}") for name, value in units]
    for label, value in rows:
        typer.echo(f"{label:24} {value}")
    typer.echo(f"{made.library}, {made.voltage_v:g} V; left out: {', '.join(made.left_out)}")
