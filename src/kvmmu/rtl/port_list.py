"""The ports of the block one by one: direction, width, fields, and what each is for."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Shape
from amaranth.lib import data, wiring

__all__ = ["PORT_MEANINGS", "list_ports"]

_CLOCK = (
    {"name": "clk", "direction": "in", "bits": 1, "meaning": "clock, rising edge"},
    {"name": "rst", "direction": "in", "bits": 1, "meaning": "synchronous reset, active high"},
)

PORT_MEANINGS: dict[str, str] = {
    "cmd": "commands: ADMIT (op 0), RELEASE (1) and STEP (2) of a lane, layer and head",
    "rsp": "one answer an ADMIT: the lane, or accepted = 0 where every lane is taken",
    "mass": "attention masses, UQ0.16: W of a row a beat; row_end on a row's last beat",
    "write": "slot that a STEP's token overwrites, its position and its DRAM byte address",
    "fetch": "table to bring on chip (store dram)",
    "image_in": "a table coming from DRAM: the header, then its rows",
    "image_out": "a table going to DRAM: the header, then its rows",
    "settings": "static settings; stable while the block is busy",
    "error": "why the block stopped, 0 while it runs; sticky until reset",
    "done": "1 for one cycle when a step is over and its table's next victim is known",
    "busy": "1 while a command or a table is under way",
}
"""What each member of the block's signature is for."""

_PARTS = {
    "valid": "1: the beat is there; it stays as it is until ready",
    "ready": "1: the beat is taken in this cycle if valid",
    "enable": "1: take the values in this cycle",
    "layer": "the layer's number",
    "num_slots": "C_l, the layer's slots",
    "base": "DRAM byte address of the layer's first row",
}


def list_ports(component: wiring.Component) -> list[dict[str, Any]]:
    """List every port with its direction, bits, meaning and, where it is packed, its fields."""
    ports: list[dict[str, Any]] = [dict(port) for port in _CLOCK]
    for path, member, _ in component.signature.flatten(component):
        names = [str(part) for part in path]
        port: dict[str, Any] = {
            "name": "__".join(names),
            "direction": "in" if member.flow == wiring.In else "out",
            "bits": Shape.cast(member.shape).width,
            "meaning": _meaning(names),
        }
        if isinstance(member.shape, data.Layout):
            port["fields"] = _fields(member.shape)
        ports.append(port)
    return ports


def _meaning(names: list[str]) -> str:
    """Say what a port is for; empty for one that the tables do not name."""
    if len(names) == 1 or names[-1] == "payload":
        return PORT_MEANINGS.get(names[0], "")
    return _PARTS.get(names[-1], "")


def _fields(layout: data.Layout, *, offset: int = 0, prefix: str = "") -> list[dict[str, Any]]:
    """List the fields of a packed port: bits [offset, offset + bits), arrays as one entry."""
    found: list[dict[str, Any]] = []
    for key, field in layout:
        name, at = f"{prefix}{key}", offset + field.offset
        if isinstance(field.shape, data.StructLayout):
            found += _fields(field.shape, offset=at, prefix=f"{name}.")
            continue
        entry: dict[str, Any] = {"name": name, "offset": at, "bits": field.width}
        if isinstance(field.shape, data.ArrayLayout):
            entry["items"] = field.shape.length
        found.append(entry)
    return found
