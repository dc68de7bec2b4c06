"""H2O, Heavy-Hitter Oracle (Zhang et al., NeurIPS 2023, arXiv:2306.14048).

Rule: the token with the least attention accumulated over all queries so far leaves.
Parameters: none; the recent tokens that the paper keeps are the KV-MMU's `window`
    (the paper's half of the cache is window = num_slots // 2).
Differs from the paper: the victim leaves before the newest query attends, and the default
window is num_slots // 8; keys stay rotated at their place in the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from kvmmu.kernels.step import StepRule
from kvmmu.policies.base import POLICIES, Policy, Seen, SlotView

__all__ = ["H2O"]


@POLICIES.register("h2o")
@dataclass(frozen=True)
class H2O(Policy):
    """Evict the least accumulated attention, never normalised."""

    @property
    def ops_per_slot(self) -> int:
        """Add and compare."""
        return 2

    @property
    def needs(self) -> frozenset[str]:
        """Ask for the attention mass."""
        return frozenset({"mass"})

    @property
    def step_rule(self) -> StepRule:
        """Add attention up, rank by the sum."""
        return StepRule("mass")

    def priority(self, view: SlotView) -> Tensor:
        """Rank by the accumulated attention. -> [B,Hkv,N]."""
        return view.scores

    def update(self, view: SlotView, seen: Seen) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Add this call's attention. -> [B,Hkv,N]."""
        return view.scores + seen.planes["mass"], view.state
