"""TOVA, Token Omission Via Attention (Oren et al., EMNLP 2024, arXiv:2401.06104).

Rule: the token to which the newest query attends least leaves.
Parameters: none; the paper's choice, one for all heads of a layer, is granularity="layer".
Differs from the paper: the victim is chosen by the query before the newest one, so that it is
known a step ahead; with granularity "head" each KV head chooses by its own query heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kvmmu.kernels.step import StepRule
from kvmmu.policies.base import POLICIES, Policy, Seen, SlotView

__all__ = ["TOVA"]


@POLICIES.register("tova")
@dataclass(frozen=True)
class TOVA(Policy):
    """Evict what the last query did not look at."""

    @property
    def needs(self) -> frozenset[str]:
        """Ask for the attention of the last query."""
        return frozenset({"newest"})

    @property
    def step_rule(self) -> StepRule:
        """Rank by the last query's attention."""
        return StepRule("newest")

    def priority(self, view: SlotView) -> Tensor:
        """Rank by the last query's attention. -> [B,Hkv,N]."""
        return view.scores

    def update(self, view: SlotView, seen: Seen) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Replace the scores by the last query's attention, if the row had one. -> [B,Hkv,N]."""
        return torch.where(seen.num_queries > 0, seen.planes["newest"], view.scores), view.state
