"""What the pipeline has to know of a step while the step's rows pass through it."""

from __future__ import annotations

from amaranth.lib import data

from kvmmu.rtl.config import EXPONENT_BITS, BlockConfig

__all__ = ["context_layout", "stage_layout"]


def context_layout(config: BlockConfig) -> data.StructLayout:
    """Lay out one admitted step.

    table its number, place where the store has it; newest the token's position, slot the slot it
    takes; first_kept the oldest position that the window protects, keeps_all = 1 where the window
    will still cover every token at the next step; last_row and last_way end the held slots;
    is_full = 1 where the next token evicts.
    """
    return data.StructLayout(
        {
            "table": config.table_bits,
            "place": config.place_bits,
            "exponent": EXPONENT_BITS,
            "newest": config.position_bits,
            "slot": config.slot_bits,
            "first_kept": config.position_bits,
            "keeps_all": 1,
            "last_row": config.row_bits,
            "last_way": config.way_bits,
            "is_full": 1,
        }
    )


def stage_layout(config: BlockConfig) -> data.StructLayout:
    """Lay out what travels with a row: whose it is, which, whether the last, whether rescaling."""
    return data.StructLayout(
        {"valid": 1, "which": 1, "row": config.row_bits, "is_last": 1, "rescales": 1}
    )
