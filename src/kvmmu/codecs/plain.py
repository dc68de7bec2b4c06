"""Plain codec: K and V in the model's dtype, one tensor each.

Rule: a row is stored as it came.
Parameters: none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvmmu.codecs.base import CODECS, Codec, Rows, Store
from kvmmu.kernels.contract import Kernel

__all__ = ["Plain"]


class PlainStore(Store):
    """Hold rows in one tensor [B,Hkv,C,D]."""

    def __init__(self, rows: Tensor, kernel: Kernel) -> None:
        self._rows = rows
        self._kernel = kernel

    def read(self) -> Tensor:
        """Return the tensor itself [B,Hkv,C,D]."""
        return self._rows

    def write_slots(self, slots: Tensor, rows: Tensor, valid: Tensor | None) -> None:
        """Overwrite one slot per head. slots [B,Hkv], rows [B,Hkv,D]."""
        self._kernel.write_slots(self._rows, slots, rows, valid)

    def write_rows(self, at: Rows, rows: Tensor) -> None:
        """Overwrite the listed slots. rows [R,D]."""
        self._rows[at.lane, at.head, at.slot] = rows

    def lane(self, lane: int) -> PlainStore:
        """Return row `lane` [1,Hkv,C,D] of the one tensor."""
        return PlainStore(self._rows[lane : lane + 1], self._kernel)

    def tensors(self) -> dict[str, Tensor]:
        """Name the one tensor."""
        return {"rows": self._rows}


@CODECS.register("plain")
@dataclass(frozen=True)
class Plain(Codec):
    """Store rows as they came."""

    def make(
        self,
        shape: tuple[int, int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
        kernel: Kernel,
    ) -> Store:
        """Return an empty store for rows [B,Hkv,C,D]."""
        return PlainStore(torch.zeros(shape, dtype=dtype, device=device), kernel)
