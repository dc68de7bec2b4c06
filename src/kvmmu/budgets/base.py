"""Budget: how many slots each layer gets. The contract that every budget file fulfils.

Contract. `allocate` is pure and deterministic; it returns one positive count per layer whose
mean is `num_slots` and whose sum is at most num_layers * num_slots, so that the bytes of a
cache are known before the first token. A sliding-window layer never gets more than its window:
the KV-MMU cuts the count and leaves the rest unused.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from kvmmu.registry import Registry

__all__ = ["BUDGETS", "Budget"]


@dataclass(frozen=True)
class Budget(ABC):
    """Divide the slots among layers; see the module's contract."""

    name: ClassVar[str]

    @abstractmethod
    def allocate(self, *, num_layers: int, num_slots: int) -> tuple[int, ...]:
        """Return the slots per KV head of each layer; num_slots is their mean."""

    def params(self) -> dict[str, Any]:
        """Return the parameters as plain JSON values."""
        return asdict(self)


BUDGETS: Registry[Budget] = Registry(
    "budget",
    Budget,  # type: ignore[type-abstract]
    "kvmmu.budgets",
    group="kvmmu.budgets",
)
