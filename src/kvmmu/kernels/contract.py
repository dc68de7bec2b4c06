"""What every kernel file offers, and the words that its functions share.

Contract of `attend`. q [B,Hq,Q,D], k, v [B,Hkv,N,D] -> out [B,Hq,Q,D], stats [B,Hkv,P,N].

    Query head h reads KV head h // G, with G = Hq / Hkv.
    Key n is visible to query i of its row iff 0 <= key_positions[n] <= query_positions[i] and,
    in a sliding-window layer, key_positions[n] > query_positions[i] - horizon. A query at
    position -1 is a pad: it sees nothing, its output is finite and means nothing.
    Logits are scale * q.k, soft-capped as cap * tanh(logit / cap); `sinks` [Hq] are logits of a
    key without a value that only takes mass (gpt_oss). The softmax runs in float32.
    stats holds one plane per name in `planes`, in that order, float32, over the queries i:
        mass      sum of query_weights[b,i] * sum over the group of p        (H2O, RCE)
        max       maximum over i of query_weights[b,i] * the group mean of p     (RCE)
        newest    the group mean of p of the query at the greatest position  (TOVA)
        last      sum over the last queries of the group mean of p           (SnapKV)
        last_sq   sum over the last queries of the group mean of p**2        (CAKE)
    where "last" are the queries with last_weights[b,i] = 1. Pad queries weigh 0 in all planes.
    mass and max count what query i gives to key n only if the key is at least `grace` tokens older,
    key_positions[n] <= query_positions[i] - grace. The softmax itself knows no grace.
    The callee never holds a Q x N matrix for more than a block of queries and changes no input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kvmmu.kernels.step import FusedKernel

__all__ = ["PLANES", "AttendSpec", "Kernel"]

PLANES = ("mass", "max", "newest", "last", "last_sq")


@dataclass(frozen=True)
class AttendSpec:
    """What a layer's attention always does: resolved once, when the cache is bound.

    ends_with_queries promises that the last Q keys are those of the queries, in the same order,
    pads first and positions rising: no query then sees a key behind its own.
    """

    scale: float
    planes: tuple[str, ...] = ("mass",)
    horizon: int | None = None
    softcap: float | None = None
    grace: int = 0
    ends_with_queries: bool = False


class Attend(Protocol):
    """Attend over N candidates; see the module's contract."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_positions: Tensor,
        query_positions: Tensor,
        query_weights: Tensor,
        *,
        spec: AttendSpec,
        last_weights: Tensor | None = None,
        sinks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Take key_positions [B,Hkv,N] and query tensors [B,Q]; q, k, v as in the contract."""
        ...


@dataclass(frozen=True)
class Kernel:
    """The functions of one kernel file.

    write_slots(store, slots, rows, valid) overwrites one slot per head in place: store
        [B,Hkv,C,*], slots [B,Hkv], rows [B,Hkv,*]; rows whose valid [B] is False write nothing.
    select_victims(ranks) names the slot of the least rank, ties to the lowest index:
        [B,Hkv,C] -> [B,Hkv].
    fused does a whole decode step in one call where it can (kernels/step.py), None for never.
    """

    name: str
    attend: Attend
    write_slots: Callable[[Tensor, Tensor, Tensor, Tensor | None], None]
    select_victims: Callable[[Tensor], Tensor]
    fused: FusedKernel | None = None


MASKED = torch.finfo(torch.float32).min
"""Logit of an invisible key: finite, so that a pad query (no visible key) yields no NaN."""
