"""Replay commands and masses on the mapped netlist, and compare every write with the model.

The netlist is simulated cycle by cycle without delay (gates/simulate.py). Where tables lie in DRAM,
the images that the block sends out are kept and come back when it asks for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.gates.simulate import GateSimulation
from kvmmu.rtl.gates.streams import Sink, Source, Store, StreamRun, simulate_streams
from kvmmu.rtl.model import BlockModel
from kvmmu.rtl.ports import BlockError, Op, command_layout, image_layout, mass_layout
from kvmmu.rtl.transactions import BlockSettings, Write
from kvmmu.rtl.verify.packing import (
    command_bits,
    layer_fields,
    mass_beats,
    settings_bits,
    unpack,
    write_of,
)
from kvmmu.rtl.verify.stimuli import Item

__all__ = ["Replay", "replay_on_netlist"]

_Words = NDArray[np.uint64]
_LIMIT_CYCLES = 30_000_000
"""Below what the simulation can count between two clears."""


@dataclass(frozen=True)
class Replay:
    """Say what a netlist did with a list of commands.

    cycles from the first command on; beats, rows and steps that went in; image_beats of tables that
    went to DRAM or came back; stall_cycles in which a beat was offered and not taken; mismatches of
    writes with the model, and of writes with the recorded slots.
    """

    cycles: int
    steps: int
    rows: int
    beats: int
    image_beats: int
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
        store=_dram(config, num_rows + len(wanted.writes)),
    )
    if not run.done:
        raise RuntimeError(
            f"the netlist must answer every command, got {dict(run.taken)} beats taken "
            f"and {len(run.captured['write'])} of {len(wanted.writes)} writes"
        )
    return _compare(config, wanted.writes, todo, run, num_rows)


def _dram(config: BlockConfig, most_beats: int) -> Store | None:
    """Return the memory of a block with tables in DRAM; a step moves its table once either way."""
    if config.store == "sram":
        return None
    answer = _Images(config).answer
    return Store("image_out", "fetch", "image_in", answer, most_beats)


class _Images:
    """Hold the image of each table that is not on chip, as the beats that it went out in."""

    def __init__(self, config: BlockConfig) -> None:
        self._layout = image_layout(config)
        self._word, self._bit = divmod(self._layout["last"].offset, 64)
        self._of: dict[int, _Words] = {}

    def answer(self, request: _Words, kept: _Words) -> _Words:
        """Keep whole images [n, words] and return the one asked for, which is then gone.

        Raises RuntimeError if the block asks for a table that it has not sent out.
        """
        last = kept[:, self._word] >> np.uint64(self._bit) & np.uint64(1)
        for image in np.split(kept, np.flatnonzero(last) + 1):
            if len(image):
                self._of[unpack(self._layout, _number(image[0]))["table"]] = image
        table = _number(request)
        if table not in self._of:
            raise RuntimeError(f"the netlist must fetch a table that it sent out, got {table}")
        return self._of.pop(table)


def _set_up(simulation: GateSimulation, config: BlockConfig, settings: BlockSettings) -> None:
    """Hold reset for a cycle, apply the settings and write every layer's."""
    quiet = dict.fromkeys(simulation.input_ports, 0)
    simulation.step(quiet | {"rst": 1})
    simulation.step({"rst": 0, "settings": settings_bits(config, settings)})
    for fields in layer_fields(config, settings):
        simulation.step({f"layer_settings__{name}": value for name, value in fields.items()})
    simulation.step({"layer_settings__enable": 0})


def _words(numbers: Sequence[int], bits: int) -> _Words:
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
        image_beats=run.taken.get("image_in", 0) + len(run.captured.get("image_out", ())),
        evictions=sum(write.evicts for write in wanted),
        stall_cycles=run.stalls["mass"],
        mismatches=len(wrong),
        recorded_mismatches=int(strange),
        first_mismatch=first,
    )


def _number(words: _Words) -> int:
    return int.from_bytes(words.astype("<u8").tobytes(), "little")
