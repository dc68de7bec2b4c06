"""Uniform budget (Moradifirouzabadi and Kang, doi 10.1109/JETCAS.2025.3568716).

Rule: every layer holds the same number of slots; that makes addresses arithmetic.
Parameters: none.
Differs from the paper: it does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmmu.budgets.base import BUDGETS, Budget

__all__ = ["Uniform"]


@BUDGETS.register("uniform")
@dataclass(frozen=True)
class Uniform(Budget):
    """Give every layer the same."""

    def allocate(self, *, num_layers: int, num_slots: int) -> tuple[int, ...]:
        """Return num_slots for each layer."""
        return (num_slots,) * num_layers
