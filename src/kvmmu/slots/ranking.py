"""The rules that hold under every policy: protection, order of leaving, places of survivors.

Order of leaving, first to last: empty slots and pads; tokens that a sliding window no longer
reaches; unprotected tokens by the policy's priority; never sinks and window while another can.
Ties leave by the lowest candidate index.

    position   [0, num_sinks)                    sinks, never evicted
               [num_sinks, newest - window + 1)  evictable, ranked by the policy
               [newest - window + 1, newest]     window, never evicted; counts the newest token
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvmmu.codecs.base import Rows

__all__ = ["ChunkPlan", "plan_chunk", "protected", "rank"]


def protected(positions: Tensor, newest: Tensor, *, num_sinks: int, window: int) -> Tensor:
    """Mark sinks and window. positions [B,H,N], newest int32 [B,1,1] -> bool [B,H,N]."""
    is_edge = (positions < num_sinks) | (positions > newest - max(window, 1))
    return is_edge & (positions >= 0)


def rank(
    priority: Tensor, positions: Tensor, is_protected: Tensor, newest: Tensor, horizon: int | None
) -> Tensor:
    """Put the KV-MMU's order over the policy's. All [B,H,N], newest [B,1,1] -> [B,H,N]."""
    ranks = torch.where(is_protected, torch.inf, priority)
    if horizon is not None:
        is_out_of_reach = positions <= newest - horizon
        ranks = torch.where(is_out_of_reach, torch.finfo(torch.float32).min, ranks)
    return torch.where(positions < 0, -torch.inf, ranks)


@dataclass(frozen=True)
class ChunkPlan:
    """Where the survivors of a chunk go: R new tokens with candidate index `new` take `at`."""

    at: Rows
    new: Tensor


def plan_chunk(ranks: Tensor, positions: Tensor, num_slots: int) -> ChunkPlan:
    """Choose the C of C + T that stay. ranks, positions [B,H,C+T]; survivors do not move.

    Freed slots are taken empty ones first, then evicted ones, each in slot order, by the
    surviving new tokens in order of position.
    """
    C = num_slots
    T = ranks.shape[2] - C
    losers = ranks.sort(dim=-1, stable=True).indices[..., :T]  # [B,H,T]
    stays = torch.ones_like(ranks, dtype=torch.bool).scatter(-1, losers, value=False)
    stays &= positions >= 0
    is_empty = positions[..., :C] < 0
    turn = torch.where(is_empty, 0, torch.where(stays[..., :C], 2, 1))
    freed = turn.sort(dim=-1, stable=True).indices  # [B,H,C], free slots first
    lane, head, new = stays[..., C:].nonzero(as_tuple=True)  # each [R]
    order = stays[..., C:].cumsum(-1) - 1  # [B,H,T]
    slot = freed[lane, head, order[lane, head, new]]
    return ChunkPlan(Rows(lane, head, slot), new + C)
