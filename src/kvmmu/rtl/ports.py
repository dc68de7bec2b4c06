"""The streams of the block, field by field. Every stream is ready/valid: a beat moves in a cycle
in which both are 1; payload and valid stay as they are until then; ready may come and go.

cmd      in   op, lane, layer, head     ADMIT ignores the numbers, RELEASE reads the lane
rsp      out  lane, accepted            one answer an ADMIT; accepted = 0: every lane is taken
mass     in   masses[W], row_end        see the room's contract for the order of rows
write    out  slot's row to overwrite   one a STEP, in the order of the STEPs
fetch    out  a table to bring on chip  store "dram" only: header and rows come on `image_in`
image_in, image_out                     a header beat, then the rows of the table's held slots

done is 1 for one cycle when a step is over and its table's next victim is known; busy covers every
command and step under way. Settings are plain inputs, stable while the block is busy: a system on
chip keeps them in its own registers. `layer_settings` is written once a layer before the first
ADMIT.
`error` is sticky: after it the block takes no beat until reset (fail-stop), because a dropped
STEP would leave the mass stream out of step.
"""

from __future__ import annotations

from amaranth.lib import data, enum
from amaranth.lib.wiring import Out, Signature

from kvmmu.rtl.config import (
    ADDRESS_BITS,
    EXPONENT_BITS,
    MASS_BITS,
    SCORE_BITS,
    STRIDE_BITS,
    BlockConfig,
)

__all__ = [
    "BlockError",
    "Op",
    "command_layout",
    "fetch_layout",
    "header_layout",
    "image_layout",
    "layer_settings_signature",
    "mass_layout",
    "response_layout",
    "settings_layout",
    "write_layout",
]


class Op(enum.Enum, shape=2):  # type: ignore[call-arg]
    """Commands of the block."""

    ADMIT = 0
    RELEASE = 1
    STEP = 2


class BlockError(enum.Enum, shape=3):  # type: ignore[call-arg]
    """Why the block stopped."""

    NONE = 0
    INACTIVE_LANE = 1
    """STEP or RELEASE of a lane that was not admitted."""
    OUT_OF_RANGE = 2
    """lane, layer, head or op past what was built; C_l of a layer outside [1, slots]."""
    OUT_OF_ORDER = 3
    """The first step of a table before that of the table in front of it."""
    POSITION_OVERFLOW = 4
    """A token's position does not fit position_bits."""
    NO_VICTIM = 5
    """All slots are protected: num_sinks + max(window, 1) exceeds C_l."""


def _bits(count: int) -> int:
    """Bits that hold [0, count), at least one."""
    return max(1, (count - 1).bit_length())


def command_layout(config: BlockConfig) -> data.StructLayout:
    """Lay out one command."""
    return data.StructLayout(
        {
            "op": Op,
            "lane": _bits(config.lanes),
            "layer": _bits(config.layers),
            "head": _bits(config.heads),
        }
    )


def response_layout(config: BlockConfig) -> data.StructLayout:
    """Lay out the answer to an ADMIT."""
    return data.StructLayout({"lane": _bits(config.lanes), "accepted": 1})


def mass_layout(config: BlockConfig) -> data.StructLayout:
    """Lay out one beat: a probability for each of the W slots of a row."""
    return data.StructLayout({"masses": data.ArrayLayout(MASS_BITS, config.ways), "row_end": 1})


def write_layout(config: BlockConfig) -> data.StructLayout:
    """Lay out the DRAM write of one token; evicts = 0 where the slot was empty."""
    return data.StructLayout(
        {
            "lane": _bits(config.lanes),
            "layer": _bits(config.layers),
            "head": _bits(config.heads),
            "slot": config.slot_bits,
            "position": config.position_bits,
            "evicts": 1,
            "address": ADDRESS_BITS,
        }
    )


def settings_layout(config: BlockConfig) -> data.StructLayout:
    """Lay out the static settings.

    protects max(window, 1) newest tokens and num_sinks first ones; decay 1 - 2**-decay_shift
    where decays is 1; a row's sum is shifted right by head_shift, log2 of its beats rounded up.
    Address of a slot's row: layer's base + lane * lane_stride + (head * C_l + slot) * slot_stride.
    """
    return data.StructLayout(
        {
            "num_sinks": config.slot_bits + 1,
            "window": config.slot_bits + 1,
            "decays": 1,
            "decay_shift": 5,
            "head_shift": 4,
            "lane_stride": ADDRESS_BITS,
            "slot_stride": STRIDE_BITS,
        }
    )


def layer_settings_signature(config: BlockConfig) -> Signature:
    """Lay out the write port of a layer's C_l and base address; taken in a cycle with enable."""
    return Signature(
        {
            "enable": Out(1),
            "layer": Out(_bits(config.layers)),
            "num_slots": Out(config.slot_bits + 1),
            "base": Out(ADDRESS_BITS),
        }
    )


def fetch_layout(config: BlockConfig) -> data.StructLayout:
    """Lay out the request for a table's image."""
    return data.StructLayout({"table": config.table_bits})


def header_layout(config: BlockConfig) -> data.StructLayout:
    """Lay out what a table holds besides its rows."""
    return data.StructLayout(
        {
            "exponent": EXPONENT_BITS,
            "position": config.position_bits,
            "victim": config.slot_bits,
        }
    )


def image_layout(config: BlockConfig) -> data.StructLayout:
    """Lay out one beat of a table's image: the header (is_header = 1), or a row."""
    return data.StructLayout(
        {
            "table": config.table_bits,
            "is_header": 1,
            "last": 1,
            "header": header_layout(config),
            "scores": data.ArrayLayout(SCORE_BITS, config.ways),
            "positions": data.ArrayLayout(config.position_bits, config.ways),
        }
    )
