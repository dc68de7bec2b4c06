"""Codec: how the rows of K and V are stored. The contract that every codec file fulfils.

Contract. A codec makes stores; a store holds rows [B,Hkv,C,D] in tensors of constant size that
never move, and one slot is writable alone.
    `read()` returns rows [B,Hkv,C,D] in the model's dtype; it may be the store's own tensor,
        so the caller never writes to it.
    `write_slots` overwrites one slot per head (decode); `write_rows` overwrites listed slots.
    `tensors()` names every persistent tensor; each has B as its first dimension, and copying
        them copies the store (reset, beam reorder, save and load work through it).
    `lane(b)` is needed by pools of lanes alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from kvmmu.kernels.contract import Kernel
from kvmmu.registry import Registry

__all__ = ["CODECS", "Codec", "Rows", "Store"]


@dataclass(frozen=True)
class Rows:
    """Coordinates of R rows of a store: int64 [R] each."""

    lane: Tensor
    head: Tensor
    slot: Tensor


class Store(ABC):
    """Rows of K or of V; see the module's contract."""

    @abstractmethod
    def read(self) -> Tensor:
        """Return all rows [B,Hkv,C,D]."""

    @abstractmethod
    def write_slots(self, slots: Tensor, rows: Tensor, valid: Tensor | None) -> None:
        """Overwrite one slot per head. slots [B,Hkv], rows [B,Hkv,D], valid [B] or None = all."""

    @abstractmethod
    def write_rows(self, at: Rows, rows: Tensor) -> None:
        """Overwrite the slots listed in `at`. rows [R,D]."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Name every persistent tensor."""

    def lane(self, lane: int) -> Store:
        """Return row `lane` as a store of one row that shares these tensors; writes show here.

        Raises TypeError if the store has no such view.
        """
        raise TypeError(
            f"a pool of lanes needs a store with lane(b), got {type(self).__name__}; "
            "use the codec 'plain'"
        )


@dataclass(frozen=True)
class Codec(ABC):
    """Make stores; see the module's contract."""

    name: ClassVar[str]

    @abstractmethod
    def make(
        self,
        shape: tuple[int, int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
        kernel: Kernel,
    ) -> Store:
        """Return an empty store for rows [B,Hkv,C,D]."""

    def params(self) -> dict[str, Any]:
        """Return the parameters as plain JSON values."""
        return asdict(self)


CODECS: Registry[Codec] = Registry(
    "codec",
    Codec,  # type: ignore[type-abstract]
    "kvmmu.codecs",
    group="kvmmu.codecs",
)
