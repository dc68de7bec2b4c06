"""Replay commands and masses on the mapped netlist: is every write right, and what did it cost.

The netlist is simulated cycle by cycle without delay (gates/simulate.py); what it writes is
compared with the model, and its toggles become energy through the liberty's tables
(gates/energy.py). `measure` runs one such replay; `fit_costs` finds from several what a beat, a
row, a step and a cycle cost, which is what an accelerator model needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.gates.energy import Energy, count_energy
from kvmmu.rtl.gates.liberty import Library
from kvmmu.rtl.gates.netlist import Netlist
from kvmmu.rtl.gates.simulate import GateSimulation
from kvmmu.rtl.gates.streams import Sink, Source, StreamRun, simulate_streams
from kvmmu.rtl.gates.timing import Timing
from kvmmu.rtl.model import BlockModel
from kvmmu.rtl.ports import BlockError, Op, command_layout, mass_layout
from kvmmu.rtl.transactions import BlockSettings, Write
from kvmmu.rtl.verify.packing import (
    command_bits,
    layer_fields,
    mass_beats,
    settings_bits,
    write_of,
)
from kvmmu.rtl.verify.stimuli import Item

__all__ = ["Costs", "Replay", "fit_costs", "measure", "replay_on_netlist"]

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


@dataclass(frozen=True)
class Costs:
    """Give the logic's energy by what it does, in pJ; SRAM and leakage stand apart.

    A cycle costs cycle_pj whether or not anything moves (the flip-flops' clock pins); a beat, a row
    and a step cost theirs on top. largest_residual: of the runs' energies, relative, that these
    four do not explain.
    """

    beat_pj: float
    row_pj: float
    step_pj: float
    cycle_pj: float
    largest_residual: float


def fit_costs(runs: Sequence[tuple[Replay, Energy]]) -> Costs:
    """Fit the four costs, none below 0, to at least four runs by least squares of relative error.

    Raises ValueError for fewer runs, or runs that do not tell the four apart.
    """
    if len(runs) < 4:
        raise ValueError(f"runs must be at least 4, got {len(runs)}")
    counts = np.array(
        [[done.beats, done.rows, done.steps, energy.cycles] for done, energy in runs], float
    )
    wanted = np.array([_logic_pj(energy) for _, energy in runs])
    scaled = counts / wanted[:, None]
    rank = np.linalg.matrix_rank(scaled)
    if rank < 4:
        raise ValueError(f"runs must differ in beats, rows, steps and cycles, got rank {rank}")
    solution = _not_negative(scaled)
    worst = float(np.abs(scaled @ solution - 1).max())
    beat, row, step, cycle = map(float, solution)
    return Costs(beat, row, step, cycle, worst)


def _not_negative(scaled: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve scaled @ x = 1 by least squares with x >= 0: nothing gives energy back.

    Tries every set of columns that may be above 0; of four there are 15.
    """
    rows, columns = scaled.shape
    best, least = np.zeros(columns), np.inf
    for chosen in range(1, 1 << columns):
        places = [place for place in range(columns) if chosen >> place & 1]
        part, *_ = np.linalg.lstsq(scaled[:, places], np.ones(rows), rcond=None)
        error = float(np.square(scaled[:, places] @ part - 1).sum())
        if (part >= 0).all() and error < least:
            best, least = np.zeros(columns), error
            best[places] = part
    return best


def _logic_pj(energy: Energy) -> float:
    parts = energy.parts
    return parts.internal_pj + parts.switching_pj + parts.clock_pj
