"""Payloads as whole numbers, bit 0 first, as simulators of nets and Verilog want them."""

from __future__ import annotations

from amaranth.hdl import Shape
from amaranth.lib.data import Layout

from kvmmu.rtl.config import MASS_BITS, BlockConfig
from kvmmu.rtl.ports import (
    command_layout,
    layer_settings_signature,
    response_layout,
    settings_layout,
    write_layout,
)
from kvmmu.rtl.transactions import BlockSettings, Command, Masses, Response, Write

__all__ = [
    "command_bits",
    "layer_fields",
    "mass_beats",
    "pack",
    "response_of",
    "settings_bits",
    "unpack",
    "write_of",
]


def pack(layout: Layout, **values: int) -> int:
    """Pack every field of a layout; raises ValueError if one does not fit or is missing."""
    bits = 0
    for name, member in layout:
        width = Shape.cast(member.shape).width
        value = int(values.pop(str(name)))
        if not 0 <= value < 1 << width:
            raise ValueError(f"{name} must fit {width} bits, got {value}")
        bits |= value << member.offset
    if values:
        raise ValueError(f"fields must be those of the layout, got {sorted(values)} besides")
    return bits


def unpack(layout: Layout, bits: int) -> dict[str, int]:
    """Return every field of a payload."""
    return {
        str(name): (bits >> member.offset) & ((1 << Shape.cast(member.shape).width) - 1)
        for name, member in layout
    }


def command_bits(config: BlockConfig, command: Command) -> int:
    """Pack a command."""
    return pack(
        command_layout(config),
        op=int(command.op.value),  # type: ignore[attr-defined]  # an Op
        lane=command.lane,
        layer=command.layer,
        head=command.head,
    )


def mass_beats(config: BlockConfig, masses: Masses) -> list[int]:
    """Pack a step's beats in the order of the stream; row_end is the bit above the masses."""
    row_end = 1 << (MASS_BITS * config.ways)
    beats: list[int] = []
    for row in masses:
        packed = [int.from_bytes(beat.astype("<u2").tobytes(), "little") for beat in row]
        packed[-1] |= row_end
        beats += packed
    return beats


def settings_bits(config: BlockConfig, settings: BlockSettings) -> int:
    """Pack the static settings."""
    shift = settings.decay_shift
    return pack(
        settings_layout(config),
        num_sinks=settings.num_sinks,
        window=settings.window,
        decays=int(shift is not None),
        decay_shift=shift or 0,
        head_shift=settings.head_shift,
        lane_stride=settings.lane_stride_bytes,
        slot_stride=settings.slot_stride_bytes,
    )


def layer_fields(config: BlockConfig, settings: BlockSettings) -> list[dict[str, int]]:
    """List what the layers' write port gets, one cycle each."""
    names = [str(name) for name in layer_settings_signature(config).members]
    rows = [
        {"enable": 1, "layer": n, "num_slots": layer.num_slots, "base": layer.base_bytes}
        for n, layer in enumerate(settings.layers)
    ]
    assert all(set(row) == set(names) for row in rows)
    return rows


def write_of(config: BlockConfig, bits: int) -> Write:
    """Read a write command's payload."""
    fields = unpack(write_layout(config), bits)
    return Write(**{**fields, "evicts": bool(fields["evicts"])})  # type: ignore[arg-type]


def response_of(config: BlockConfig, bits: int) -> Response:
    """Read an answer's payload."""
    fields = unpack(response_layout(config), bits)
    return Response(fields["lane"], bool(fields["accepted"]))
