"""Random eviction: the floor that every policy must beat.

Rule: a token drawn uniformly, among those that may leave, leaves.
Parameters: seed = 0. The draw is a hash of (seed, layer, KV head, position, step), so it does
not depend on the order of slots, on the device, or on any generator's state.
Differs from the paper: there is none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvmmu.policies.base import POLICIES, Policy, SlotView, is_count

__all__ = ["Random"]

_MASK = 0xFFFFFFFF


@POLICIES.register("random")
@dataclass(frozen=True)
class Random(Policy):
    """Evict a token at random. Raises ValueError if the seed is not in [0, 2**31)."""

    seed: int = 0

    def __post_init__(self) -> None:
        if not (is_count(self.seed) and 0 <= self.seed < 2**31):
            raise ValueError(f"seed must lie in [0, 2**31) and be an integer, got {self.seed!r}")

    def priority(self, view: SlotView) -> Tensor:
        """Draw a number in [0, 1) for each candidate. -> [B,Hkv,N]."""
        num_heads = view.positions.shape[1]
        head = torch.arange(num_heads, device=view.positions.device).view(1, -1, 1)
        if view.granularity == "layer":
            head = torch.zeros_like(head)
        stream = view.layer_idx * 0x9E3779B1 + self.seed * 0x85EBCA77
        word = _mix((head * 0xC2B2AE3D + stream) & _MASK)
        word = _mix(word ^ view.num_seen.long())
        word = _mix(word ^ view.positions.long().clamp(min=0))
        return (word >> 8).float() / 2**24


def _mix(word: Tensor) -> Tensor:
    """Scramble 32-bit words held in int64 (the finaliser of MurmurHash3)."""
    word = ((word ^ (word >> 16)) * 0x85EBCA6B) & _MASK
    word = ((word ^ (word >> 13)) * 0xC2B2AE35) & _MASK
    return word ^ (word >> 16)
