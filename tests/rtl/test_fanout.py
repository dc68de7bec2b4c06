"""Buffers between units: who gets one, who stays, and that the logic is the same."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from kvmmu.rtl.fanout import buffer_nets, buffers_of
from kvmmu.rtl.gates.boolean import parse_expression
from kvmmu.rtl.gates.liberty_read import read_library
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
    while net in drivers and drivers[net]["type"] == "BUF":
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
    assert added[0] < added[1]
