"""StreamingLLM (Xiao et al., ICLR 2024, arXiv:2309.17453).

Rule: the oldest token that is not a sink leaves.
Parameters: none; the paper's attention sinks are the KV-MMU's `num_sinks`.
Differs from the paper: by default keys keep their place in the text; the paper's re-numbering
inside the cache is the KV-MMU's positions="in_cache".
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvmmu.kernels.step import StepRule
from kvmmu.policies.base import POLICIES, Policy, SlotView

__all__ = ["StreamingLLM"]


@POLICIES.register("streaming_llm")
@dataclass(frozen=True)
class StreamingLLM(Policy):
    """Evict the oldest token."""

    @property
    def step_rule(self) -> StepRule:
        """Rank by position, keep no score."""
        return StepRule(None, rank="age")

    def priority(self, view: SlotView) -> Tensor:
        """Rank by age, as a negative distance from the newest token. -> [B,Hkv,N]."""
        return (view.positions - view.num_seen).float()
