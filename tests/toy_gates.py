"""Small netlists on the toy library, written by hand as yosys JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from kvmmu.rtl.gates.liberty import Library
from kvmmu.rtl.gates.liberty_read import parse_library
from kvmmu.rtl.gates.macros import Macro, macros_of
from kvmmu.rtl.gates.netlist import Netlist
from kvmmu.rtl.gates.netlist_read import parse_netlist

Nets = str | Sequence[str]


@cache
def toy_library() -> Library:
    return parse_library(files("kvmmu.rtl.gates").joinpath("toy.lib").read_text(), "toy.lib")


@cache
def toy_macros() -> tuple[Macro, ...]:
    text = files("kvmmu.rtl.gates").joinpath("toy_sram.lib").read_text()
    return macros_of(parse_library(text, "toy_sram.lib"))


class Sketch:
    """Name nets by strings; "0", "1" and "x" are constants. A port is a net or a list of nets."""

    def __init__(self, inputs: Mapping[str, Nets], outputs: Mapping[str, Nets]) -> None:
        self.numbers: dict[str, int] = {}
        self.ports: dict[str, Any] = {}
        self.cells: dict[str, Any] = {}
        for direction, ports in (("input", inputs), ("output", outputs)):
            for name, nets in ports.items():
                self.ports[name] = {"direction": direction, "bits": self.bits(nets)}

    def bits(self, nets: Nets) -> list[int | str]:
        names = [nets] if isinstance(nets, str) else nets
        return [
            name
            if name in ("0", "1", "x")
            else self.numbers.setdefault(name, len(self.numbers) + 2)
            for name in names
        ]

    def cell(self, name: str, kind: str, **pins: Nets) -> Sketch:
        connections = {pin: self.bits(nets) for pin, nets in pins.items()}
        self.cells[name] = {"type": kind, "connections": connections}
        return self

    def json(self) -> str:
        names = {name: {"hide_name": 0, "bits": [n]} for name, n in self.numbers.items()}
        top = {"attributes": {"top": "1"}, "ports": self.ports, "cells": self.cells}
        return json.dumps({"modules": {"top": top | {"netnames": names}}})

    def netlist(self) -> Netlist:
        return parse_netlist(self.json(), toy_library())


def bus(name: str, width: int) -> list[str]:
    return [f"{name}{i}" for i in range(width)]
