"""Novelty, ours: KeyDiff (Park et al., arXiv:2504.15364) plus the attention a token received.

Rule: the token whose key is most like all keys so far, and which nobody read, leaves: priority =
D + weight * M, where D = -cos(key, sum of ALL keys seen, evicted ones included) and M is the
decayed maximum of the attention on a token or on its neighbours in the text.
Parameters:
    weight = 0.35           what a maximum of attention counts against a cosine
    decay = 0.99609375      what is left of a maximum after each further token, in (0, 1]; 1 - 2**-8
    grace = 1               age in tokens from which on attention counts; 1 leaves out a token's own
    pool = 2                neighbours to each side, by position, whose maximum a token shares
Differs from the paper: the anchor is a sum that never forgets the evicted; the pooled attention
of SnapKV (Li et al., arXiv:2404.14469) is added as a running maximum, pooled where slots rank.
docs/score-study.md tells what each part brings.
Cost: software sorts the slots by position to pool them, O(C log C) a step; hardware would keep in
each slot links to the slots of its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kvmmu.policies.base import POLICIES, Policy, Seen, SlotView, StateSpec, is_count

__all__ = ["Novelty"]


@POLICIES.register("novelty")
@dataclass(frozen=True)
class Novelty(Policy):
    """Keep keys unlike all others, and what was read. Raises ValueError out of range."""

    weight: float = 0.35
    decay: float = 1 - 2**-8
    grace: int = 1
    pool: int = 2

    def __post_init__(self) -> None:
        if not (_is_number(self.weight) and 0.0 <= self.weight < float("inf")):
            raise ValueError(f"weight must be finite and at least 0, got {self.weight!r}")
        if not (_is_number(self.decay) and 0.0 < self.decay <= 1.0):
            raise ValueError(f"decay must lie in (0, 1], got {self.decay!r}")
        for name in ("grace", "pool"):
            if not (is_count(value := getattr(self, name)) and value >= 0):
                raise ValueError(f"{name} must be an integer of at least 0, got {value!r}")

    @property
    def ops_per_slot(self) -> int:
        """Count two products over a key of 64 dimensions, as an order of magnitude, and the rest.

        The products are the dot product and |k|, which is a token's own and could be stored with
        it; the rest: divide by |k|, decay, maximum, compare with 2 * pool neighbours, weigh, add,
        compare.
        """
        return 2 * 64 + 6 + 2 * self.pool

    @property
    def needs(self) -> frozenset[str]:
        """Ask for the largest attention and the keys."""
        return frozenset({"max", "k"})

    @property
    def state(self) -> Mapping[str, StateSpec]:
        """Keep the sum of all keys of a head."""
        return {"keys": StateSpec("vector")}

    @property
    def query_decay(self) -> float:
        """Weigh a chunk's queries as if they had come one by one."""
        return self.decay

    def priority(self, view: SlotView) -> Tensor:
        """Rank by diversity and pooled attention. -> [B,Hkv,N]."""
        assert view.k is not None
        anchor = normalize(view.state["keys"], dim=-1)[..., None]  # [B,Hkv,D,1]
        diversity = -(normalize(view.k.float(), dim=-1) @ anchor)[..., 0]  # [B,Hkv,N]
        return diversity + self.weight * _pooled(view.scores, view.positions, self.pool)

    def update(self, view: SlotView, seen: Seen) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Fade the maxima, take this call's in, and add the new keys up. -> [B,Hkv,N]."""
        assert view.k is not None
        kept = view.scores
        if self.decay < 1.0:
            kept = kept * self.decay ** seen.num_queries.float()
        first = (view.num_seen - seen.num_queries).clamp(min=0)  # position of the first new token
        is_new = (view.positions >= first).float()[:, :, None]  # [B,Hkv,1,N]
        keys = view.state["keys"] + (is_new @ view.k.float())[:, :, 0]
        return torch.maximum(kept, seen.planes["max"]), {"keys": keys}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _pooled(x: Tensor, positions: Tensor, width: int) -> Tensor:
    """Take the maximum over held tokens at most `width` positions away. x [B,Hkv,N], x >= 0."""
    if width == 0:
        return x
    order = positions.argsort(dim=-1)  # [B,Hkv,N], empty slots first
    at, x = positions.gather(2, order), x.gather(2, order)
    pooled = x
    for i in range(1, min(width, at.shape[2] - 1) + 1):  # i ranks apart is i positions or more
        is_near = (at[..., i:] - at[..., :-i] <= width) & (at[..., :-i] >= 0)
        before = torch.where(is_near, x[..., :-i], 0)
        after = torch.where(is_near, x[..., i:], 0)
        pooled = torch.maximum(pooled, torch.nn.functional.pad(before, (i, 0)))
        pooled = torch.maximum(pooled, torch.nn.functional.pad(after, (0, i)))
    return torch.empty_like(pooled).scatter(2, order, pooled)
