"""What is built: the sizes of one KV-MMU and the widths that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "ADDRESS_BITS",
    "CARRY_BITS",
    "EXPONENT_BITS",
    "MASS_BITS",
    "SCORE_BITS",
    "SUM_BITS",
    "BlockConfig",
]

SCORE_BITS = 16
"""A mantissa; fixed_point.MANTISSA_MAX is its largest value."""
CARRY_BITS = 1
"""Kept beside a mantissa on chip until the next time the word is read."""
MASS_BITS = 16
"""One attention probability, UQ0.16."""
SUM_BITS = 24
"""The sum of a row's beats: up to 256 query heads of one token."""
EXPONENT_BITS = 5
"""fixed_point: an exponent never passes 24."""
ADDRESS_BITS = 40
"""Bytes of DRAM that an address reaches: 1 TiB."""
STRIDE_BITS = 20
"""Bytes of one slot's row, at most 1 MiB - 1."""


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


@dataclass(frozen=True)
class BlockConfig:
    """Say what one KV-MMU holds.

    slots is the largest C_l of any layer; ways is the slots of one SRAM row, worked on at once;
    heads is the score tables a layer has: 1 for granularity "layer", Hkv for "head".
    store "sram" keeps every table on chip; "dram" keeps two on chip and swaps them.
    Raises ValueError if a value breaks its rule.
    """

    slots: int = 1024
    ways: int = 16
    lanes: int = 16
    layers: int = 32
    heads: int = 1
    position_bits: int = 24
    store: Literal["sram", "dram"] = "sram"

    def __post_init__(self) -> None:
        for name in ("slots", "ways"):
            if not _is_power_of_two(getattr(self, name)):
                raise ValueError(f"{name} must be a power of two, got {getattr(self, name)!r}")
        if not 2 <= self.ways <= 64:
            raise ValueError(f"ways must be in [2, 64], got {self.ways}")
        if not 2 * self.ways <= self.slots <= 4096:
            raise ValueError(
                f"slots must be in [2 * ways, 4096] = [{2 * self.ways}, 4096], got {self.slots}"
            )
        for name in ("lanes", "layers", "heads"):
            if not 1 <= getattr(self, name) <= 256:
                raise ValueError(f"{name} must be in [1, 256], got {getattr(self, name)!r}")
        if not self.slot_bits < self.position_bits <= 32:
            raise ValueError(
                f"position_bits must be in [{self.slot_bits + 1}, 32] for {self.slots} slots, "
                f"got {self.position_bits}"
            )
        if self.store not in ("sram", "dram"):
            raise ValueError(f"store must be 'sram' or 'dram', got {self.store!r}")

    @property
    def rows(self) -> int:
        """SRAM rows of one table."""
        return self.slots // self.ways

    @property
    def tables_per_lane(self) -> int:
        """Score tables of one lane."""
        return self.layers * self.heads

    @property
    def tables(self) -> int:
        """Score tables of all lanes, on chip or in DRAM."""
        return self.lanes * self.tables_per_lane

    @property
    def slot_bits(self) -> int:
        """Bits of a slot's number."""
        return (self.slots - 1).bit_length()

    @property
    def row_bits(self) -> int:
        """Bits of a row's number."""
        return (self.rows - 1).bit_length()

    @property
    def way_bits(self) -> int:
        """Bits of a way's number."""
        return (self.ways - 1).bit_length()

    @property
    def table_bits(self) -> int:
        """Bits of a table's number (lane * layers + layer) * heads + head."""
        return max(1, (self.tables - 1).bit_length())

    @property
    def place_bits(self) -> int:
        """Bits of where a table lies on chip: its number, or which of two buffers."""
        return self.table_bits if self.store == "sram" else 1

    @property
    def word_bits(self) -> int:
        """Bits of one score on chip."""
        return SCORE_BITS + CARRY_BITS

    @property
    def image_bytes(self) -> int:
        """Bytes of one table in DRAM: an 8-byte header, then 16-bit scores and the positions."""
        position_bytes = -(-self.position_bits // 8)
        return 8 + self.slots * (SCORE_BITS // 8 + position_bytes)

    def table_of(self, lane: int, layer: int, head: int) -> int:
        """Return the number of a table."""
        return (lane * self.layers + layer) * self.heads + head
