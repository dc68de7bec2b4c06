"""Netlists as arrays, and what a netlist must not be."""

from __future__ import annotations

import pytest
from toy_gates import Sketch, bus, toy_library

from kvmmu.errors import SpecError
from kvmmu.rtl.gates.netlist_read import parse_netlist


def test_gates_stand_after_the_drivers_of_their_inputs() -> None:
    netlist = (
        Sketch({"a": "a"}, {"y": "y"})
        .cell("last", "INV", A="m2", Y="y")
        .cell("mid", "INV", A="m1", Y="m2")
        .cell("first", "INV", A="a", Y="m1")
        .netlist()
    )
    assert netlist.node_names == ("first", "mid", "last")
    assert netlist.area_um2 == 6.0
    assert netlist.net_names[int(netlist.outputs_of(0)[0])] == "m1"


def test_flip_flops_follow_the_gates_and_name_the_clock() -> None:
    netlist = (
        Sketch({"clk": "clk"}, {"q": "q"})
        .cell("f", "DFF", D="d", CLK="clk", Q="q")
        .cell("g", "INV", A="q", Y="d")
        .netlist()
    )
    assert netlist.node_names == ("g", "f")
    assert (netlist.num_gates, netlist.clock) == (1, "clk")
    assert len(netlist.inputs_of(1)) == 1  # the clock is not an input of the node


def test_constants_are_nets_0_and_1() -> None:
    netlist = Sketch({}, {"y": "y", "z": "1"}).cell("g", "AND2", A="0", B="1", Y="y").netlist()
    assert netlist.inputs_of(0).tolist() == [0, 1]
    assert netlist.outputs["z"].tolist() == [1]


def test_memory_ports_become_nets() -> None:
    netlist = _memory().netlist()
    (memory,) = netlist.memories
    assert (memory.depth, memory.width, memory.granule) == (16, 8, 4)
    assert (len(memory.addr), len(memory.wmask), len(memory.rdata)) == (4, 2, 8)


def _memory(**changes: object) -> Sketch:
    pins = {"en": "en", "we": "we", "addr": bus("a", 4), "wdata": bus("d", 8)}
    pins |= {"wmask": bus("m", 2)}
    inputs = {"clk": "clk", **pins}
    sketch = Sketch(inputs, {"rdata": bus("r", 8)})
    pins |= {"clk": "clk", "rdata": bus("r", 8)} | changes
    return sketch.cell("bank", "kvmmu_sram_16x8m4", **pins)


@pytest.mark.parametrize(
    ("sketch", "message"),
    [
        (Sketch({"a": "a"}, {"y": "y"}).cell("g", "$_NOT_", A="a", Y="y"), "techmap"),
        (Sketch({"a": "a"}, {"y": "y"}).cell("g", "INV", A="x", Y="y"), "setundef"),
        (Sketch({}, {"y": "x"}), "setundef"),
        (Sketch({"a": "a"}, {"y": "y"}).cell("g", "INV", A="b", Y="y"), "'b' must have a driver"),
        (Sketch({}, {"y": "y"}), "must have a driver, read by port y"),
        (Sketch({"a": "a"}, {"y": "y"}).cell("g", "INV", Y="y"), "must connect"),
        (Sketch({"a": "a"}, {"y": "y"}).cell("g", "INV", A="a", Y="y", Z="a"), "must connect"),
        (
            Sketch({"a": "a"}, {"y": "y"})
            .cell("g", "INV", A="a", Y="y")
            .cell("h", "INV", A="a", Y="y"),
            "one driver, got g and h",
        ),
        (Sketch({"a": "a"}, {"y": "y"}).cell("g", "INV", A="a", Y="a"), "got port a and g"),
        (Sketch({"a": "a"}, {"y": "y"}).cell("g", "INV", A="a", Y="0"), "got constant and g"),
        (
            Sketch({"a": "a"}, {"y": "y"})
            .cell("g", "NAND2", A="a", B="z", Y="y")
            .cell("h", "INV", A="y", Y="z"),
            "loop",
        ),
        (
            Sketch({"c": "c", "d": "d"}, {"q": "q", "r": "r"})
            .cell("f", "DFF", D="d", CLK="c", Q="q")
            .cell("g", "DFF", D="c", CLK="d", Q="r"),
            "clocked by one input port",
        ),
        (
            Sketch({"c": "c", "d": "d"}, {"q": "q"})
            .cell("i", "INV", A="c", Y="n")
            .cell("f", "DFF", D="d", CLK="n", Q="q"),
            "clocked by one input port",
        ),
        (_memory(rdata=bus("r", 7)), "must have ports"),
    ],
)  # fmt: skip
def test_broken_netlist_is_refused(sketch: Sketch, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        sketch.netlist()


def test_netlist_must_be_json_with_one_top() -> None:
    with pytest.raises(SpecError, match="JSON"):
        parse_netlist("{", toy_library())
    with pytest.raises(SpecError, match="one module top"):
        parse_netlist('{"modules": {"a": {"attributes": {}}}}', toy_library())
    with pytest.raises(SpecError, match="'b'"):
        parse_netlist('{"modules": {"a": {"attributes": {}}}}', toy_library(), "b")
