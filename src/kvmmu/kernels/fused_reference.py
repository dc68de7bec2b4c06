"""The reference of the fused step: one row and one KV head at a time, float32, slow.

Contract: see step.py. Where the contract leaves room, this file settles it: a slot without a
visible token counts for nothing whatever its K and V hold, NaN included, and a slot whose score
is NaN is not chosen while another can be.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvmmu.kernels.step import LaneState, StepSpec

__all__ = ["refresh", "step"]

_OUT_OF_REACH = torch.finfo(torch.float32).min
"""Rank of a token that the sliding window left behind: after empty slots, before all others."""


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lanes: Tensor,
    at: Tensor,
    state: LaneState,
    spec: StepSpec,
    out: Tensor,
) -> None:
    """Take N new tokens in and attend. q, out [N,Hq,D], k, v [N,Hkv,D], lanes, at int32 [N]."""
    N, Hkv, _ = k.shape
    for n in range(N):
        if lanes[n] < 0:
            out[n] = 0
            continue
        b = int(lanes[n])
        state.num_seen[b] = at[n] + 1
        for h in range(Hkv):
            _replace(k[n, h], v[n, h], at[n], state, (b, h))
            group = slice(h * (q.shape[1] // Hkv), (h + 1) * (q.shape[1] // Hkv))
            p = _probabilities(q[n, group], at[n], state, (b, h), spec)
            values = state.values[b, h].float()
            seen = (p > 0).any(0)  # what nobody sees may hold NaN
            out[n, group] = (p[:, seen] @ values[seen]).to(out.dtype)
            _score(p, at[n], state, (b, h), spec)
        _choose(b, state, spec)


def refresh(lanes: Tensor, state: LaneState, spec: StepSpec) -> None:
    """Find the next victims of the lanes named, int32 [N], -1 = none."""
    for n in range(lanes.shape[0]):
        if lanes[n] >= 0:
            _choose(int(lanes[n]), state, spec)


def _replace(k: Tensor, v: Tensor, at: Tensor, state: LaneState, head: tuple[int, int]) -> None:
    """Give the victim's slot of one KV head to the new token. k, v [D]."""
    b, h = head
    slot = state.victims[b, h].long()
    state.keys[b, h, slot] = k.to(state.keys.dtype)
    state.values[b, h, slot] = v.to(state.values.dtype)
    state.positions[b, h, slot] = at
    state.scores[b, h, slot] = 0


def _probabilities(
    q: Tensor, at: Tensor, state: LaneState, head: tuple[int, int], spec: StepSpec
) -> Tensor:
    """Softmax of one KV head's queries over its slots. q [G,D] -> float32 [G,C]."""
    positions = state.positions[head]  # [C]
    visible = (positions >= 0) & (positions <= at)
    if spec.horizon is not None:
        visible &= positions > at - spec.horizon
    logits = q.float() @ state.keys[head].float().T * spec.scale
    return logits.masked_fill(~visible, -torch.inf).softmax(-1)


def _score(p: Tensor, at: Tensor, state: LaneState, head: tuple[int, int], spec: StepSpec) -> None:
    """Fold one query's probabilities into the scores of one KV head. p [G,C]."""
    rule = spec.rule
    score = state.scores[head]  # [C], a view
    is_old = state.positions[head] <= at - rule.grace
    if rule.statistic == "mass":
        score.copy_(rule.decay * score + is_old * p.sum(0))
    elif rule.statistic == "max":
        score.copy_(torch.maximum(rule.decay * score, is_old * p.mean(0)))
    elif rule.statistic == "newest":
        score.copy_(p.mean(0))


def _choose(b: int, state: LaneState, spec: StepSpec) -> None:
    """Name the slots that the next token of lane b takes, one for each KV head."""
    newest = state.num_seen[b]  # the position of the token to come
    positions, scores = state.positions[b], state.scores[b]  # [Hkv,C]
    if spec.per_layer:
        positions, scores = positions[:1], scores.sum(0, keepdim=True)
    ranks = (scores if spec.rule.rank == "score" else positions).double()
    ranks = torch.where(ranks.isnan(), torch.inf, ranks)
    is_protected = (positions < spec.num_sinks) | (positions > newest - max(spec.window, 1))
    ranks = torch.where(is_protected, torch.inf, ranks)
    if spec.horizon is not None:
        ranks = torch.where(positions <= newest - spec.horizon, _OUT_OF_REACH, ranks)
    ranks = torch.where(positions < 0, -torch.inf, ranks)
    state.victims[b] = ranks.argmin(-1).int()  # the first of equals; one for all heads broadcasts
