"""The bench that Icarus loads: drives the streams of the emitted Verilog and watches them.

KVMMU_VECTORS names a JSON file that run.py wrote. Besides the expected answers it checks by itself
that payload and valid stay while ready is 0, that there is one write a step, that the slot exists
and that the token which leaves it is not protected.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, RisingEdge

_RESET_CYCLES = 3
_STUCK_CYCLES = 4000


class Port:
    """One stream: its three signals, and what it did while it waited."""

    def __init__(self, dut: Any, name: str) -> None:
        self.name = name
        self.valid = getattr(dut, f"{name}__valid")
        self.ready = getattr(dut, f"{name}__ready")
        self.payload = getattr(dut, f"{name}__payload")
        self.waiting: int | None = None
        self.is_up = False

    def offered(self) -> int | None:
        """Return the payload that is offered, checking that it stayed while it waited."""
        is_valid = int(self.valid.value)
        assert is_valid or self.waiting is None, f"{self.name}: valid fell before ready"
        if not is_valid:
            return None
        bits = int(self.payload.value)
        assert self.waiting in (None, bits), f"{self.name}: payload changed while it waited"
        self.waiting = bits
        return bits

    def taken(self) -> None:
        """Note that the beat moved."""
        self.waiting = None


class Watch:
    """What each table holds, by the writes alone."""

    def __init__(self, vectors: dict[str, Any]) -> None:
        self.fields = vectors["write_fields"]
        self.num_slots = vectors["num_slots"]
        self.num_sinks, self.window = vectors["num_sinks"], max(vectors["window"], 1)
        self.tables: dict[tuple[int, int, int], dict[int, int]] = {}

    def see(self, bits: int) -> None:
        """Check one write against the rules."""
        values = {n: bits >> at & ((1 << width) - 1) for n, (at, width) in self.fields.items()}
        key = values["lane"], values["layer"], values["head"]
        slot, position = values["slot"], values["position"]
        table = self.tables.setdefault(key, {}) if position else {}
        self.tables[key] = table
        assert slot < self.num_slots[key[1]], f"slot {slot} does not exist in layer {key[1]}"
        assert bool(values["evicts"]) == (slot in table), f"evicts is wrong of slot {slot}"
        if slot in table:
            left = table[slot]
            assert left >= self.num_sinks, f"sink {left} left"
            assert left <= position - self.window, f"position {left} left inside the window"
        table[slot] = position


async def _start(dut: Any, vectors: dict[str, Any]) -> None:
    """Reset the block and write its settings."""
    cocotb.start_soon(Clock(dut.clk, 2, unit="ns").start())
    for name in ("cmd__valid", "mass__valid", "rsp__ready", "write__ready"):
        getattr(dut, name).value = 0
    dut.layer_settings__enable.value = 0
    dut.settings.value = vectors["settings"]
    dut.rst.value = 1
    for _ in range(_RESET_CYCLES):
        await FallingEdge(dut.clk)
    dut.rst.value = 0
    for fields in vectors["layers"]:
        for name, value in fields.items():
            getattr(dut, f"layer_settings__{name}").value = value
        await FallingEdge(dut.clk)
    dut.layer_settings__enable.value = 0


def _offer(port: Port, beats: list[int], draw: random.Random, gap: float) -> None:
    """Put the next beat up, unless this cycle is a gap; what is up stays up."""
    port.is_up = port.is_up or bool(beats and draw.random() >= gap)
    port.valid.value = int(port.is_up)
    if port.is_up:
        port.payload.value = beats[-1]


@cocotb.test()  # type: ignore[untyped-decorator]
async def replay_vectors(dut: Any) -> None:
    """Replay the vectors with gaps and back-pressure; every answer is as expected."""
    vectors = json.loads(Path(os.environ["KVMMU_VECTORS"]).read_text(encoding="utf-8"))
    draw, gap = random.Random(vectors["seed"]), vectors["gap"]
    await _start(dut, vectors)
    sources = {name: Port(dut, name) for name in ("cmd", "mass")}
    sinks = {name: Port(dut, name) for name in ("rsp", "write")}
    beats = {name: vectors[name][::-1] for name in sources}
    wanted = {name: vectors[name][::-1] for name in sinks}
    watch, quiet = Watch(vectors), 0
    while any(beats.values()) or any(wanted.values()):
        for name, port in sources.items():
            _offer(port, beats[name], draw, gap)
        for port in sinks.values():
            port.ready.value = int(draw.random() >= gap)
        await RisingEdge(dut.clk)  # the values read here are those before the edge
        quiet += 1
        for name, port in sources.items():
            if port.is_up and int(port.ready.value):
                beats[name].pop()
                port.is_up, quiet = False, 0
        for name, port in sinks.items():
            bits = port.offered()
            if bits is None or not int(port.ready.value):
                continue
            port.taken()
            quiet = 0
            assert wanted[name], f"{name}: one beat too many"
            want = wanted[name].pop()
            assert bits & want[1] == want[0], f"{name}: wanted {want[0]:#x}, got {bits:#x}"
            if name == "write":
                watch.see(bits)
        assert int(dut.error.value) == 0, f"the block stopped: {int(dut.error.value)}"
        assert quiet < _STUCK_CYCLES, f"no beat moved in {_STUCK_CYCLES} cycles"
        await FallingEdge(dut.clk)
