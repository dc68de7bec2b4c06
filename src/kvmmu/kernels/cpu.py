"""The fast kernel: plain PyTorch in blocks of queries; runs on any device, compiles whole.

Decode (Q = 1) is two batched products over the KV heads, no repeat of K or V for the group.
A chunk walks its queries in blocks whose logits stay near the cache of one core, so the
column sums are exact and no Q x N matrix ever exists.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvmmu.kernels.contract import MASKED, AttendSpec

__all__ = ["attend", "select_victims", "write_slots"]

_BLOCK_LOGITS = 1 << 19
"""Logits of one (row, KV head) block of queries: 2 MiB in float32, the size of a core's L2."""


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
    """Attend in blocks of queries; q [B,Hq,Q,D] -> out [B,Hq,Q,D], stats [B,Hkv,P,N]."""
    B, Hq, Q, D = q.shape
    _, Hkv, N, _ = k.shape
    G = Hq // Hkv
    q = q.reshape(B, Hkv, G, Q, D)
    block = max(1, _BLOCK_LOGITS // (B * Hkv * G * N)) if Q > 1 else 1
    newest = query_positions.amax(-1, keepdim=True).clamp(min=0)  # [B,1]
    outs: list[Tensor] = []
    stats: Tensor | None = None
    for start in range(0, Q, block):
        rows = slice(start, min(start + block, Q))
        p = _probabilities(
            q[:, :, :, rows], k, key_positions, query_positions[:, rows], spec, sinks
        )
        n = p.shape[3]
        outs.append((p.to(v.dtype).view(B, Hkv, G * n, N) @ v).view(B, Hkv, G, n, -1))
        last = None if last_weights is None else last_weights[:, rows]
        is_newest = query_positions[:, rows] == newest
        stats = _observe(p, query_weights[:, rows], last, is_newest, spec.planes, stats)
    out = outs[0] if len(outs) == 1 else torch.cat(outs, dim=3)  # [B,Hkv,G,Q,D]
    assert stats is not None
    return out.reshape(B, Hq, Q, -1), stats


def _probabilities(
    q: Tensor,
    k: Tensor,
    key_positions: Tensor,
    query_positions: Tensor,
    spec: AttendSpec,
    sinks: Tensor | None,
) -> Tensor:
    """Softmax of a block. q [B,Hkv,G,n,D], k [B,Hkv,N,D] -> [B,Hkv,G,n,N] float32."""
    B, Hkv, G, n, D = q.shape
    logits = (q.reshape(B, Hkv, G * n, D) @ k.transpose(2, 3)).view(B, Hkv, G, n, -1).float()
    logits = logits * spec.scale
    if spec.softcap is not None:
        logits = spec.softcap * torch.tanh(logits / spec.softcap)
    at = query_positions[:, None, :, None]  # [B,1,n,1]
    keys = key_positions[:, :, None]  # [B,Hkv,1,N]
    hidden = (keys < 0) | (keys > at)
    if spec.horizon is not None:
        hidden = hidden | (keys <= at - spec.horizon)
    logits = logits.masked_fill(hidden[:, :, None], MASKED)
    if sinks is None:
        return logits.softmax(-1)
    extra = sinks.float().view(1, Hkv, G, 1, 1).expand(B, -1, -1, n, -1)
    return torch.cat([logits, extra], dim=-1).softmax(-1)[..., :-1]


def _observe(
    p: Tensor,
    query_weights: Tensor,
    last_weights: Tensor | None,
    is_newest: Tensor,
    planes: tuple[str, ...],
    so_far: Tensor | None,
) -> Tensor:
    """Fold a block into the planes. p [B,Hkv,G,n,N], weights [B,n] -> [B,Hkv,P,N]."""
    if not planes:
        return p.new_zeros(*p.shape[:2], 0, p.shape[4])
    weights = query_weights.float()[:, None, :, None]  # [B,1,n,1]
    total = p.sum(2)  # [B,Hkv,n,N]
    found = []
    for name in planes:
        if name == "mass":
            found.append((total * weights).sum(2))
        elif name == "max":
            found.append((total * (weights > 0)).amax(2) / p.shape[2])
        elif name == "newest":
            found.append((total * is_newest[:, None, :, None]).sum(2) / p.shape[2])
        else:
            assert last_weights is not None
            seen = p.square().sum(2) if name == "last_sq" else total
            found.append((seen * last_weights[:, None, :, None]).sum(2) / p.shape[2])
    new = torch.stack(found, dim=2)
    if so_far is None:
        return new
    merged = so_far + new
    if "max" in planes:
        at = planes.index("max")
        merged[:, :, at] = torch.maximum(so_far[:, :, at], new[:, :, at])
    return merged


def write_slots(store: Tensor, slots: Tensor, rows: Tensor, valid: Tensor | None) -> None:
    """Overwrite one slot per head. store [B,Hkv,C,*], slots [B,Hkv], rows [B,Hkv,*]."""
    index = slots[:, :, None]  # [B,Hkv,1]
    rows = rows[:, :, None]
    if store.ndim == 4:
        index = index[..., None].expand(-1, -1, 1, store.shape[3])  # [B,Hkv,1,D]
    if valid is not None:  # a pad's slot is rewritten with what it holds: no branch on data
        held = store.gather(2, index)
        rows = torch.where(valid.view(-1, *[1] * (store.ndim - 1)), rows, held)
    store.scatter_(2, index, rows)


def select_victims(ranks: Tensor) -> Tensor:
    """Return the first slot of the least rank. ranks [B,Hkv,C] -> [B,Hkv]."""
    return ranks.argmin(-1)  # the first of equals, as torch documents
