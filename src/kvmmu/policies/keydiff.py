"""KeyDiff (Park et al., NeurIPS 2025, arXiv:2504.15364).

Rule: the token whose key is most like the mean key direction of the cache leaves.
Parameters: none. The anchor is the mean of k / |k| over the tokens held; no attention is needed.
Differs from the paper: one token leaves at each step instead of a block of them, the window is
the KV-MMU's, and with positions="in_cache" the keys are compared before rotation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kvmmu.policies.base import POLICIES, Policy, SlotView

__all__ = ["KeyDiff"]


@POLICIES.register("keydiff")
@dataclass(frozen=True)
class KeyDiff(Policy):
    """Evict the key most similar to the others."""

    @property
    def ops_per_slot(self) -> int:
        """Count |k|, the sum into the anchor and the product with it, over 64 dimensions each."""
        return 3 * 64

    @property
    def needs(self) -> frozenset[str]:
        """Ask for the keys held."""
        return frozenset({"k"})

    def priority(self, view: SlotView) -> Tensor:
        """Rank by minus the cosine to the anchor. -> [B,Hkv,N]."""
        assert view.k is not None
        unit = normalize(view.k.float(), dim=-1)  # [B,Hkv,N,D]
        is_held = (view.positions >= 0)[..., None]
        anchor = torch.where(is_held, unit, 0).sum(2, keepdim=True)  # [B,Hkv,1,D]
        return -(unit * normalize(anchor, dim=-1)).sum(-1)
