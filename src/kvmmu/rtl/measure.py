"""Replay a recorded trace on a mapped netlist: is every write right, and what did it cost.

What the netlist writes is compared with the model (replay.py), and its toggles become energy
through the liberty's tables (gates/energy.py). costs.py finds from several replays what a beat, a
row, a step and a cycle cost. A block with more tables a layer than the trace gets each of the
trace's tables several times.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvmmu.rtl.build import toy_liberties
from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.figures import SLEW_NS, macros_in
from kvmmu.rtl.gates.energy import Energy, count_energy
from kvmmu.rtl.gates.liberty import Library
from kvmmu.rtl.gates.liberty_read import read_library
from kvmmu.rtl.gates.netlist import Netlist
from kvmmu.rtl.gates.netlist_read import read_netlist
from kvmmu.rtl.gates.simulate import GateSimulation
from kvmmu.rtl.gates.timing import Timing, analyse_timing
from kvmmu.rtl.ports import Op
from kvmmu.rtl.replay import Replay, replay_on_netlist
from kvmmu.rtl.report import REPORT
from kvmmu.rtl.synth import NETLIST
from kvmmu.rtl.transactions import BlockSettings
from kvmmu.rtl.verify.stimuli import Item
from kvmmu.rtl.verify.traces import block_of, read_decodes, trace_items
from kvmmu.trace import Trace

__all__ = ["items_for", "measure", "measure_build", "settings_for"]


def measure(
    netlist: Netlist,
    library: Library,
    timing: Timing,
    config: BlockConfig,
    settings: BlockSettings,
    items: Iterable[Item],
    *,
    period_ns: float,
    mass_probability: float = 1.0,
    idle_cycles: int = 0,
) -> tuple[Replay, Energy]:
    """Replay on a fresh simulation of the netlist and price what it counted."""
    simulation = GateSimulation(netlist, idle_rdata="hold")
    done = replay_on_netlist(
        simulation,
        config,
        settings,
        items,
        mass_probability=mass_probability,
        idle_cycles=idle_cycles,
    )
    energy = count_energy(netlist, library, simulation.activity(), timing, period_ns=period_ns)
    return done, energy


def settings_for(trace: Trace, config: BlockConfig, *, beats: int = 1) -> BlockSettings:
    """Return a trace's settings for a block that may be larger than the trace needs.

    Raises ValueError if the block is too small, or cannot have each table of a layer equally often.
    """
    needed, settings = block_of(trace, ways=config.ways, beats=beats)
    for name in ("slots", "lanes", "layers"):
        if getattr(needed, name) > getattr(config, name):
            raise ValueError(
                f"the block must have at least {getattr(needed, name)} {name} for this trace, "
                f"got {getattr(config, name)}"
            )
    if config.heads % needed.heads:
        raise ValueError(
            f"the block must have a multiple of {needed.heads} tables a layer for this trace, "
            f"got {config.heads}"
        )
    layers = (settings.layers * config.layers)[: config.layers]  # unused ones need a C too
    return replace(settings, layers=layers)


def items_for(
    trace: Trace,
    config: BlockConfig,
    *,
    beats: int = 1,
    most_steps: int | None = None,
    most_tables: int | None = None,
) -> Iterator[Item]:
    """Yield a trace's commands for a block, each of a layer's tables as often as the block has it.

    The block's head h does what the trace's head h modulo its heads did. most_tables leaves out the
    steps of lanes but the first and of tables past so many of that lane.
    """
    heads = trace.header.num_tables
    layer: list[Item] = []
    for item in trace_items(trace, ways=config.ways, beats=beats, most_steps=most_steps):
        if item.command.op != Op.STEP:
            yield item
            continue
        layer.append(item)
        if len(layer) < heads:
            continue
        for head in range(config.heads):
            command = replace(layer[head % heads].command, head=head)
            table = config.table_of(command.lane, command.layer, head)
            if most_tables is None or table < most_tables:
                yield replace(layer[head % heads], command=command)
        layer.clear()


def measure_build(
    folder: Path,
    trace: Path,
    *,
    liberty: Path | None,
    sram_liberties: Sequence[Path] = (),
    beats: int = 1,
    mass_probability: float = 1.0,
    most_steps: int | None = None,
    clock_mhz: float | None = None,
) -> tuple[Replay, Energy]:
    """Replay a trace file on what `kvmmu rtl build` left in a folder.

    Raises ValueError for a folder without a netlist, or libraries that are not the build's.
    """
    report, netlist_file = _report(folder), folder / "synth" / NETLIST
    if clock_mhz is not None and not clock_mhz > 0:
        raise ValueError(f"clock_mhz must be above 0, got {clock_mhz!r}")
    if sram_liberties and liberty is None:
        raise ValueError("sram_liberties must go with a liberty, got them alone")
    toy, toy_sram = toy_liberties()
    cells = read_library(liberty or toy)
    srams = [read_library(path) for path in (sram_liberties if liberty else [toy_sram])]
    built = [report["library"], *report["sram_libraries"]]
    if [one.digest for one in (cells, *srams)] != [one["sha256"] for one in built]:
        names = ", ".join(one["file"] for one in built)
        raise ValueError(f"libraries must be those of the build, in its order: {names}")
    netlist = read_netlist(netlist_file, cells)
    config = BlockConfig(**report["config"])
    read = read_decodes(trace)
    return measure(
        netlist,
        cells,
        analyse_timing(
            netlist,
            cells,
            tuple(macro for library in srams for macro in macros_in(library)),
            input_slew_ns=SLEW_NS,
            clock_slew_ns=SLEW_NS,
        ),
        config,
        settings_for(read, config, beats=beats),
        items_for(read, config, beats=beats, most_steps=most_steps),
        period_ns=1e3 / (report["clock_mhz"] if clock_mhz is None else clock_mhz),
        mass_probability=mass_probability,
    )


def _report(folder: Path) -> dict[str, Any]:
    """Read what a build with synthesis wrote of itself. Raises ValueError if there is none."""
    file = folder / REPORT
    try:
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        is_whole = "library" in report and (folder / "synth" / NETLIST).is_file()
    except (OSError, ValueError):
        is_whole = False
    if not is_whole:
        raise ValueError(
            f"the build must hold a netlist and its {REPORT}, got {str(folder)!r}; "
            "make it with `kvmmu rtl build`, without --no-synth"
        )
    return report
