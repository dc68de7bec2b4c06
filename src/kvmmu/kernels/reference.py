"""The reference kernel: one query at a time, in float32, obviously right, slow."""

from __future__ import annotations

import torch
from torch import Tensor

from kvmmu.kernels.contract import MASKED, AttendSpec

__all__ = ["attend", "select_victims", "write_slots"]


def attend(
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
    """Attend query by query; q [B,Hq,Q,D], k, v [B,Hkv,N,D] -> out [B,Hq,Q,D], [B,Hkv,P,N]."""
    B, Hq, Q, _ = q.shape
    _, Hkv, N, _ = k.shape
    sums = {name: torch.zeros(B, Hkv, N, device=q.device) for name in spec.planes}
    outs = []
    for i in range(Q):
        p = _probabilities(q[:, :, i], k, key_positions, query_positions[:, i], spec, sinks)
        outs.append(torch.einsum("bhgn,bhnd->bhgd", p, v.float()).reshape(B, Hq, -1))
        weight = query_weights[:, i, None, None].float()
        last = torch.zeros_like(weight) if last_weights is None else last_weights[:, i, None, None]
        is_old = key_positions <= query_positions[:, i, None, None] - spec.grace  # [B,Hkv,N]
        if "mass" in sums:
            sums["mass"] += weight * is_old * p.sum(2)
        if "max" in sums:
            sums["max"] = torch.maximum(sums["max"], weight * is_old * p.mean(2))
        if "newest" in sums:
            newest = query_positions[:, i] == query_positions.amax(-1).clamp(min=0)
            sums["newest"] += newest[:, None, None] * p.mean(2)
        if "last" in sums:
            sums["last"] += last * p.mean(2)
        if "last_sq" in sums:
            sums["last_sq"] += last * p.square().mean(2)
    out = torch.stack(outs, dim=2).to(q.dtype)  # [B,Hq,Q,D]
    planes = [sums[name] for name in spec.planes]
    stats = torch.stack(planes, dim=2) if planes else q.new_zeros(B, Hkv, 0, N).float()
    return out, stats


def _probabilities(
    q: Tensor,
    k: Tensor,
    key_positions: Tensor,
    query_position: Tensor,
    spec: AttendSpec,
    sinks: Tensor | None,
) -> Tensor:
    """Softmax of one query. q [B,Hq,D], k [B,Hkv,N,D], query_position [B] -> [B,Hkv,G,N]."""
    B, Hkv, _, D = k.shape
    logits = torch.einsum("bhgd,bhnd->bhgn", q.float().view(B, Hkv, -1, D), k.float())
    logits = logits * spec.scale
    if spec.softcap is not None:
        logits = spec.softcap * torch.tanh(logits / spec.softcap)
    at = query_position[:, None, None]
    visible = (key_positions >= 0) & (key_positions <= at)
    if spec.horizon is not None:
        visible &= key_positions > at - spec.horizon
    logits = logits.masked_fill(~visible[:, :, None], MASKED)
    if sinks is None:
        return logits.softmax(-1)
    extra = sinks.float().view(1, Hkv, -1, 1).expand(B, -1, -1, -1)
    return torch.cat([logits, extra], dim=-1).softmax(-1)[..., :-1]


def write_slots(store: Tensor, slots: Tensor, rows: Tensor, valid: Tensor | None) -> None:
    """Overwrite one slot per head. store [B,Hkv,C,*], slots [B,Hkv], rows [B,Hkv,*]."""
    B, Hkv = slots.shape
    for b in range(B):
        for h in range(Hkv):
            if valid is None or valid[b]:
                store[b, h, slots[b, h]] = rows[b, h]


def select_victims(ranks: Tensor) -> Tensor:
    """Return the first slot of the least rank. ranks [B,Hkv,C] -> [B,Hkv]."""
    is_least = ranks == ranks.amin(-1, keepdim=True)
    C = ranks.shape[-1]
    index = torch.arange(C, device=ranks.device).expand_as(ranks)
    return torch.where(is_least, index, C).amin(-1)
