"""Buffers between units: who gets one, who stays, and that the logic is the same."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest

from kvmmu.rtl.fanout import buffer_nets, buffers_of, fastest_load, slew_allowed
from kvmmu.rtl.gates.boolean import parse_expression
from kvmmu.rtl.gates.liberty_read import parse_library, read_library
from kvmmu.rtl.gates.macros import macros_of

amaranth = pytest.importorskip("amaranth", reason="needs kvmmu[rtl]")
from kvmmu.rtl.build import toy_liberties  # noqa: E402

INPUT, DRIVEN, CLOCK = 2, 3, 4


@pytest.fixture(scope="module")
def toy():
    return read_library(toy_liberties()[0])


@pytest.fixture(scope="module")
def macros():
    return macros_of(read_library(toy_liberties()[1]))


def cell(library, kind, **nets):
    pins = library.cells[kind].pins
    return {
        "hide_name": 0,
        "type": kind,
        "parameters": {},
        "attributes": {},
        "port_directions": {pin: pins[pin].direction for pin in nets},
        "connections": {pin: [net] for pin, net in nets.items()},
    }


def module(library, readers):
    """Let an inverter of unit `a` drive `readers` inverters of unit `b`."""
    cells = {"a.g0": cell(library, "INV", A=INPUT, Y=DRIVEN)}
    for number in range(readers):
        cells[f"b.g{number}"] = cell(library, "INV", A=DRIVEN, Y=10 + number)
    return {
        "ports": {"x": {"direction": "input", "bits": [INPUT]}},
        "netnames": {"x": {"bits": [INPUT]}},
        "cells": cells,
    }


def fanout(made):
    """Count the readers of each net."""
    counts: dict[int, int] = {}
    for one in made["cells"].values():
        for pin, bits in one["connections"].items():
            if one["port_directions"][pin] == "input":
                for bit in bits:
                    counts[bit] = counts.get(bit, 0) + 1
    return counts


def source(made, net):
    """Walk back through buffers to the net that a reader's net repeats."""
    drivers = {
        one["connections"]["Y"][0]: one
        for one in made["cells"].values()
        if "Y" in one["connections"]
    }
    while net in drivers and drivers[net]["type"].startswith("BUF"):
        net = drivers[net]["connections"]["A"][0]
    return net


def test_buffers_are_cells_that_repeat_their_input(toy):
    for one in buffers_of(toy):
        function = one.pins[one.outputs[0]].function
        assert function.text == parse_expression(one.inputs[0]).text
    assert [one.name for one in buffers_of(toy)] == ["BUF"]


def test_light_net_stays_as_it_is(toy):
    made = module(toy, 3)
    before = copy.deepcopy(made)
    assert buffer_nets(made, toy, ()) == 0
    assert made == before


def test_heavy_net_is_split_and_every_reader_still_sees_its_source(toy):
    made = module(toy, 100)
    added = buffer_nets(made, toy, ())
    assert added == sum(one["type"] == "BUF" for one in made["cells"].values()) > 4
    assert max(fanout(made).values()) <= 25
    for number in range(100):
        assert source(made, made["cells"][f"b.g{number}"]["connections"]["A"][0]) == DRIVEN
    outputs = [one["connections"]["Y"][0] for one in made["cells"].values()]
    assert len(outputs) == len(set(outputs))


def test_buffers_count_to_the_unit_of_the_driver(toy):
    made = module(toy, 100)
    buffer_nets(made, toy, ())
    added = [name for name, one in made["cells"].items() if one["type"] == "BUF"]
    assert all(name.startswith("a.fan") for name in added)


def test_two_passes_add_nothing_more(toy):
    made = module(toy, 100)
    assert buffer_nets(made, toy, ()) > 0
    assert buffer_nets(made, toy, ()) == 0


def test_clock_gets_no_buffer(toy):
    made = module(toy, 1)
    for number in range(200):
        made["cells"][f"c.g{number}"] = cell(toy, "DFF", D=INPUT, CLK=CLOCK, Q=500 + number)
    loads = {pin for pin in toy.cells["DFF"].inputs if toy.cells["DFF"].pins[pin].is_clock}
    assert loads == {"CLK"}
    buffer_nets(made, toy, ())
    for number in range(200):
        assert made["cells"][f"c.g{number}"]["connections"]["CLK"] == [CLOCK]


def test_tied_net_gets_no_buffer(toy):
    made = module(toy, 100)
    made["cells"]["a.g0"] = cell(toy, "TIEHI", Y=DRIVEN)
    assert buffer_nets(made, toy, ()) == 0


def bank(depth):
    width = 8
    return {
        "hide_name": 0,
        "type": f"kvmmu_sram_{depth}x{width}m{width}",
        "parameters": {},
        "attributes": {},
        "port_directions": {
            pin: "output" if pin == "rdata" else "input"
            for pin in ("clk", "en", "we", "addr", "wdata", "wmask", "rdata")
        },
        "connections": {
            "clk": [CLOCK],
            "en": [DRIVEN],
            "we": ["0"],
            "addr": ["0"] * int(np.log2(depth)),
            "wdata": [DRIVEN] * width,
            "wmask": ["1"],
            "rdata": [900 + bit for bit in range(width)],
        },
    }


def test_rows_of_macros_weigh_on_their_net(toy, macros):
    words = max(macro.words for macro in macros)
    added = []
    for rows in (1, 64):
        made = module(toy, 1)
        made["cells"]["b.bank"] = bank(rows * words)
        added.append(buffer_nets(made, toy, macros))
        assert made["cells"]["b.bank"]["connections"]["wmask"] == ["1"]
    bits = made["cells"]["b.bank"]["connections"]["wdata"]
    assert len({DRIVEN, *bits}) == 1 + len(bits)  # of 64 rows, each bit has a buffer of its own
    assert {source(made, bit) for bit in bits} == {DRIVEN}
    assert added[0] < added[1]


# ------------------------------------------------------------------------- which pin, which buffer
def with_buffer(name, *, area, slew, load=0.002):
    """Return the toy library with a second buffer, its slews so many times those of BUF."""
    text = toy_liberties()[0].read_text(encoding="utf-8")
    start, end = text.index("  cell (BUF) {"), text.index("  cell (NAND2) {")
    other = text[start:end].replace("(BUF)", f"({name})").replace("area : 3", f"area : {area}")
    other = other.replace("capacitance : 0.002;", f"capacitance : {load};", 1)
    for values in ('"0.045, 0.245", "0.065, 0.265"', '"0.035, 0.195", "0.055, 0.215"'):
        scaled = re.sub(r"[0-9.]+", lambda match: f"{float(match[0]) * slew:.6f}", values)
        assert values in other
        other = other.replace(values, scaled)
    return parse_library(text[:start] + other + text[start:], "two buffers.lib")


@pytest.fixture(scope="module")
def sized():
    """Return the toy library with a buffer of twice the load and a third of the slew."""
    return with_buffer("BUF3", area=6, slew=1 / 3, load=0.004)


def load_of(made, net, library):
    """Sum the input pins that read a net, in pF."""
    return sum(
        library.cells[one["type"]].pins[pin].capacitance_pf
        for one in made["cells"].values()
        for pin, bits in one["connections"].items()
        if one["port_directions"][pin] == "input" and net in bits
    )


def most_of(library, name):
    return fastest_load(library.cells[name], "Y", slew_allowed(library))


@pytest.mark.parametrize("readers", [30, 60, 200, 1000])
def test_each_buffer_is_the_smallest_that_drives_its_readers(sized, readers):
    made = module(sized, readers)
    buffer_nets(made, sized, ())
    small, strong = (most_of(sized, name) for name in ("BUF", "BUF3"))
    assert 2 * small < strong
    kinds = set()
    for one in made["cells"].values():
        if one["type"] in ("BUF", "BUF3"):
            load = load_of(made, one["connections"]["Y"][0], sized)
            assert one["type"] == ("BUF" if load <= small else "BUF3")
            assert load <= strong
            kinds.add(one["type"])
    assert load_of(made, DRIVEN, sized) <= most_of(sized, "INV")
    assert "BUF3" in kinds or readers == 30


def test_a_larger_buffer_that_is_weaker_is_not_used(toy):
    made, other = module(toy, 100), module(toy, 100)
    buffer_nets(made, toy, ())
    buffer_nets(other, with_buffer("BUFX", area=5, slew=3.0), ())
    assert other == made


def test_readers_behind_buffers_of_any_size_see_their_source(sized):
    made = module(sized, 300)
    buffer_nets(made, sized, ())
    for number in range(300):
        assert source(made, made["cells"][f"b.g{number}"]["connections"]["A"][0]) == DRIVEN


def test_an_input_of_the_block_is_taken_to_come_from_the_smallest_buffer(sized):
    made = module(sized, 0)
    for number in range(100):
        made["cells"][f"b.g{number}"] = cell(sized, "INV", A=INPUT, Y=10 + number)
    buffer_nets(made, sized, ())
    assert 0 < load_of(made, INPUT, sized) <= most_of(sized, "BUF")
    added = [name for name, one in made["cells"].items() if one["type"].startswith("BUF")]
    assert added
    assert all(name.startswith("fan") for name in added)  # of no unit


def test_enables_of_clock_gates_are_buffered_and_their_clocks_are_not(toy):
    made = module(toy, 1)
    for number in range(200):
        pins = {"EN": DRIVEN, "CLK": CLOCK, "GCLK": 500 + number}
        made["cells"][f"c.g{number}"] = cell(toy, "CLKGATE", **pins)
    assert buffer_nets(made, toy, ()) > 0
    gates = [one["connections"] for one in made["cells"].values() if one["type"] == "CLKGATE"]
    assert {pins["CLK"][0] for pins in gates} == {CLOCK}
    assert len({pins["EN"][0] for pins in gates}) > 1
