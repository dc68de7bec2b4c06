"""Replay commands and masses on the mapped netlist: is every write right, and what did it cost.

The netlist is simulated cycle by cycle without delay (gates/simulate.py); what it writes is
compared with the model, and its toggles become energy through the liberty's tables
(gates/energy.py). costs.py finds from several replays what a beat, a row, a step and a cycle cost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmmu.rtl.build import toy_liberties
from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.figures import SLEW_NS, macros_in
from kvmmu.rtl.gates.energy import Energy, count_energy
from kvmmu.rtl.gates.liberty import Library
from kvmmu.rtl.gates.liberty_read import read_library
from kvmmu.rtl.gates.netlist import Netlist
from kvmmu.rtl.gates.netlist_read import read_netlist
from kvmmu.rtl.gates.simulate import GateSimulation
from kvmmu.rtl.gates.streams import Sink, Source, StreamRun, simulate_streams
from kvmmu.rtl.gates.timing import Timing, analyse_timing
from kvmmu.rtl.model import BlockModel
from kvmmu.rtl.ports import BlockError, Op, command_layout, mass_layout
from kvmmu.rtl.report import REPORT
from kvmmu.rtl.synth import NETLIST
from kvmmu.rtl.transactions import BlockSettings, Write
from kvmmu.rtl.verify.packing import (
    command_bits,
    layer_fields,
    mass_beats,
    settings_bits,
    write_of,
)
from kvmmu.rtl.verify.stimuli import Item
from kvmmu.rtl.verify.traces import block_of, read_decodes, trace_items
from kvmmu.trace import Trace

__all__ = [
    "Replay",
    "measure",
    "measure_build",
    "replay_on_netlist",
    "settings_for",
]

_LIMIT_CYCLES = 30_000_000
"""Below what the simulation can count between two clears."""


@dataclass(frozen=True)
class Replay:
    """Say what a netlist did with a list of commands.

    cycles from the first command on; beats, rows and steps that went in; stall_cycles in which a
    beat was offered and not taken; mismatches of writes with the model, and of writes with the
    recorded slots.
    """

    cycles: int
    steps: int
    rows: int
    beats: int
    evictions: int
    stall_cycles: int
    mismatches: int
    recorded_mismatches: int
    first_mismatch: str | None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self)


def replay_on_netlist(
    simulation: GateSimulation,
    config: BlockConfig,
    settings: BlockSettings,
    items: Iterable[Item],
    *,
    mass_probability: float = 1.0,
    write_probability: float = 1.0,
    seed: int = 0,
    idle_cycles: int = 0,
) -> Replay:
    """Set the netlist up, count activity from there, run every item and compare each write.

    A step's masses are offered once its write was taken, each cycle with mass_probability;
    idle_cycles follow the last. The simulation must be fresh: its state is that after a reset.
    Raises RuntimeError if the netlist does not answer all commands.
    """
    todo = list(items)
    wanted = BlockModel(config, settings).run(
        [item.command for item in todo],
        [item.masses for item in todo if item.command.op == Op.STEP],
    )
    if wanted.error != BlockError.NONE:
        raise ValueError(f"items must be commands that the block takes, got {wanted.error!r}")
    _set_up(simulation, config, settings)
    simulation.clear_activity()
    sources, num_rows = _sources(config, todo, mass_probability)
    sinks = {
        "rsp": Sink(sum(item.command.op == Op.ADMIT for item in todo)),
        "write": Sink(len(wanted.writes), write_probability),
    }
    run = simulate_streams(
        simulation,
        sources,
        sinks,
        max_cycles=_LIMIT_CYCLES,
        seed=seed,
        drain_cycles=idle_cycles,
    )
    if not run.done:
        raise RuntimeError(
            f"the netlist must answer every command, got {dict(run.taken)} beats taken "
            f"and {len(run.captured['write'])} of {len(wanted.writes)} writes"
        )
    return _compare(config, wanted.writes, todo, run, num_rows)


def _set_up(simulation: GateSimulation, config: BlockConfig, settings: BlockSettings) -> None:
    """Hold reset for a cycle, apply the settings and write every layer's."""
    quiet = dict.fromkeys(simulation.input_ports, 0)
    simulation.step(quiet | {"rst": 1})
    simulation.step({"rst": 0, "settings": settings_bits(config, settings)})
    for fields in layer_fields(config, settings):
        simulation.step({f"layer_settings__{name}": value for name, value in fields.items()})
    simulation.step({"layer_settings__enable": 0})


def _words(numbers: Sequence[int], bits: int) -> NDArray[np.uint64]:
    """Turn whole numbers into beats [n, words] of 64 bits, low word first."""
    size = -(-bits // 64)
    flat = b"".join(number.to_bytes(8 * size, "little") for number in numbers)
    return np.frombuffer(flat, dtype="<u8").astype(np.uint64).reshape(len(numbers), size)


def _sources(
    config: BlockConfig, items: Sequence[Item], mass_probability: float
) -> tuple[dict[str, Source], int]:
    """Make the streams that go in, and count the rows."""
    commands = [command_bits(config, item.command) for item in items]
    beats: list[int] = []
    gates: list[int] = []
    rows = steps = 0
    for item in items:
        if item.command.op != Op.STEP:
            continue
        steps += 1
        packed = mass_beats(config, item.masses)
        beats += packed
        gates += [steps] * len(packed)
        rows += len(item.masses)
    masses = Source(
        _words(beats, mass_layout(config).size),
        probability=mass_probability,
        after="write",
        gates=np.array(gates, dtype=np.int64),
    )
    return {"cmd": Source(_words(commands, command_layout(config).size)), "mass": masses}, rows


def _compare(
    config: BlockConfig,
    wanted: Sequence[Write],
    items: Sequence[Item],
    run: StreamRun,
    rows: int,
) -> Replay:
    """Compare each write with the model's, and its slot with the recording's."""
    got = [write_of(config, _number(beat)) for beat in run.captured["write"]]
    wrong = [n for n, (one, other) in enumerate(zip(got, wanted)) if one != other]
    recorded = [item.recorded_slot for item in items if item.command.op == Op.STEP]
    strange = sum(slot is not None and slot != write.slot for slot, write in zip(recorded, got))
    first = f"write {wrong[0]}: {got[wrong[0]]}, model {wanted[wrong[0]]}" if wrong else None
    return Replay(
        cycles=run.cycles,
        steps=len(wanted),
        rows=rows,
        beats=run.taken["mass"],
        evictions=sum(write.evicts for write in wanted),
        stall_cycles=run.stalls["mass"],
        mismatches=len(wrong),
        recorded_mismatches=int(strange),
        first_mismatch=first,
    )


def _number(words: NDArray[np.uint64]) -> int:
    return int.from_bytes(words.astype("<u8").tobytes(), "little")


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

    Raises ValueError if the block is too small, or has another number of tables a layer.
    """
    needed, settings = block_of(trace, ways=config.ways, beats=beats)
    for name in ("slots", "lanes", "layers"):
        if getattr(needed, name) > getattr(config, name):
            raise ValueError(
                f"the block must have at least {getattr(needed, name)} {name} for this trace, "
                f"got {getattr(config, name)}"
            )
    if needed.heads != config.heads or config.store != "sram":
        raise ValueError(
            f"the block must have {needed.heads} tables a layer, all on chip, for this trace, "
            f"got {config.heads} and store {config.store!r}"
        )
    layers = (settings.layers * config.layers)[: config.layers]  # unused ones need a C too
    return replace(settings, layers=layers)


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
    report_file, netlist_file = folder / REPORT, folder / "synth" / NETLIST
    if not report_file.is_file() or not netlist_file.is_file():
        raise ValueError(
            f"the build must hold {REPORT} and a netlist, got {str(folder)!r}; "
            "make it with `kvmmu rtl build`"
        )
    report = json.loads(report_file.read_text(encoding="utf-8"))
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
        trace_items(read, ways=config.ways, beats=beats, most_steps=most_steps),
        period_ns=1e3 / (clock_mhz or report["clock_mhz"]),
        mass_probability=mass_probability,
    )
