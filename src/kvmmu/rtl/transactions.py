"""What crosses the block's streams in plain numbers: settings, commands, masses and answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmmu.rtl.config import ADDRESS_BITS, STRIDE_BITS
from kvmmu.rtl.ports import BlockError

__all__ = [
    "BlockSettings",
    "Command",
    "LayerSettings",
    "Masses",
    "Outcome",
    "Response",
    "TableState",
    "Write",
]

Masses = tuple[NDArray[np.integer[Any]], ...]
"""A step's beats: for each row, from row 0 up, an array [beats, W] of UQ0.16 masses."""


@dataclass(frozen=True)
class LayerSettings:
    """Say how many slots a layer has, and where its rows begin in DRAM."""

    num_slots: int
    base_bytes: int = 0


@dataclass(frozen=True)
class BlockSettings:
    """Give the values of the block's static inputs; decay_shift None is `decays` = 0.

    Raises ValueError if a value does not fit its input.
    """

    layers: tuple[LayerSettings, ...]
    num_sinks: int = 0
    window: int = 1
    decay_shift: int | None = None
    head_shift: int = 0
    lane_stride_bytes: int = 0
    slot_stride_bytes: int = 0

    def __post_init__(self) -> None:
        limits = {
            "head_shift": 16,
            "lane_stride_bytes": 1 << ADDRESS_BITS,
            "slot_stride_bytes": 1 << STRIDE_BITS,
        }
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) < limit:
                raise ValueError(f"{name} must be in [0, {limit}), got {getattr(self, name)!r}")
        if self.num_sinks < 0 or self.window < 0:
            raise ValueError(
                f"num_sinks and window must not be negative, got {self.num_sinks}, {self.window}"
            )
        if self.decay_shift is not None and not 0 <= self.decay_shift <= 16:
            raise ValueError(f"decay_shift must be None or in [0, 16], got {self.decay_shift!r}")
        for layer in self.layers:
            if not 0 <= layer.base_bytes < 1 << ADDRESS_BITS:
                raise ValueError(
                    f"base_bytes must fit {ADDRESS_BITS} bits, got {layer.base_bytes!r}"
                )

    @property
    def num_protected(self) -> int:
        """Slots that a table needs before it can evict, less one."""
        return self.num_sinks + max(self.window, 1)


@dataclass(frozen=True)
class Command:
    """Name one command; a lane, layer or head that the op does not read is 0."""

    op: int  # an Op
    lane: int = 0
    layer: int = 0
    head: int = 0


@dataclass(frozen=True)
class Response:
    """Answer an ADMIT; lane counts only where accepted."""

    lane: int
    accepted: bool


@dataclass(frozen=True)
class Write:
    """Name the slot's row that a STEP overwrites; evicts is False where the slot was empty."""

    lane: int
    layer: int
    head: int
    slot: int
    position: int
    evicts: bool
    address: int


@dataclass(frozen=True, eq=False)
class TableState:
    """Hold one table: positions [C_l] (-1 = empty), mantissas [C_l], exponent, tokens so far."""

    positions: NDArray[np.int32]
    mantissas: NDArray[np.uint16]
    exponent: int
    num_seen: int


@dataclass
class Outcome:
    """Collect what the block answers, stream by stream, and why it stopped: a BlockError."""

    responses: list[Response] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    error: int = BlockError.NONE  # to type checkers a member of an Amaranth enum is an int
