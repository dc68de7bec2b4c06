"""The fast kernel: plain PyTorch in blocks of queries; runs on any device, compiles whole.

Decode (Q = 1) is two batched products over the KV heads, no repeat of K or V for the group.
A chunk walks one row of the batch at a time, its queries in blocks whose logits stay near the
cache of one core, so the column sums are exact, no Q x N matrix ever exists, and a row's result
does not depend on the rows beside it. A plane that is linear in p is one more product,
weights @ p, which reads the probabilities once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from kvmmu.kernels.contract import MASKED, AttendSpec

__all__ = ["attend", "select_victims", "write_slots"]

_BLOCK_LOGITS = 1 << 19
"""Logits of one block of queries: 2 MiB in float32, the size of a core's L2."""

_HALVES = frozenset({torch.bfloat16, torch.float16})

_NEVER = torch.iinfo(torch.int32).max
"""A position after every query: where an empty slot is put, so one comparison hides it."""


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
    weights = _weights(query_positions, query_weights, last_weights, spec.planes)
    keys = torch.where(key_positions < 0, _NEVER, key_positions)
    B, _, Q, _ = q.shape
    if B == 1 or Q == 1:
        return _attend(q, k, v, keys, query_positions, weights, spec, sinks)
    rows = [slice(b, b + 1) for b in range(B)]
    parts = [
        _attend(q[b], k[b], v[b], keys[b], query_positions[b], [w[b] for w in weights], spec, sinks)
        for b in rows
    ]
    return torch.cat([out for out, _ in parts]), torch.cat([stats for _, stats in parts])


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    query_positions: Tensor,
    weights: list[Tensor],
    spec: AttendSpec,
    sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Attend as `attend` does, all rows at once; weights P x [B,Q], keys as _probabilities."""
    B, Hq, Q, D = q.shape
    _, Hkv, N, _ = k.shape
    G = Hq // Hkv
    q = q.reshape(B, Hkv, G, Q, D)
    k_t, v = k.reshape(B * Hkv, N, D).mT, v.reshape(B * Hkv, N, -1)
    block = max(1, _BLOCK_LOGITS // (B * Hq * N)) if Q > 1 else 1
    outs: list[Tensor] = []
    stats: Tensor | None = None
    for start in range(0, Q, block):
        rows = slice(start, min(start + block, Q))
        M = N - Q + rows.stop if spec.ends_with_queries else N  # what this block can see
        seen, at = keys[:, :, :M], query_positions[:, rows]
        p = _probabilities(q[:, :, :, rows], k_t[:, :, :M], seen, at, spec, sinks)
        n = p.shape[3]
        out = torch.bmm(p.view(B * Hkv, G * n, M).to(v.dtype), v[:, :M])
        outs.append(out.view(B, Hkv, G, n, -1))
        found = _observe(p, _old(seen, at, spec), [w[:, rows] for w in weights], spec.planes)
        stats = _folded(stats, found, spec.planes, N)
    out = outs[0] if len(outs) == 1 else torch.cat(outs, dim=3)  # [B,Hkv,G,Q,D]
    if stats is None:
        stats = q.new_zeros(B, Hkv, 0, N, dtype=torch.float32)
    return out.reshape(B, Hq, Q, -1), stats


def _probabilities(
    q: Tensor,
    k_t: Tensor,
    keys: Tensor,
    query_positions: Tensor,
    spec: AttendSpec,
    sinks: Tensor | None,
) -> Tensor:
    """Softmax of a block. q [B,Hkv,G,n,D], k_t [B*Hkv,D,N] -> [B,Hkv,G,n,N] float32.

    keys [B,Hkv,N] are positions, those of empty slots later than any query's.
    """
    B, Hkv, G, n, D = q.shape
    q = q.reshape(B * Hkv, G * n, D)
    logits = torch.baddbmm(q.new_empty(1, 1, 1), q, k_t, beta=0, alpha=spec.scale)
    logits = logits.view(B, Hkv, G, n, -1).float()
    if spec.softcap is not None:
        logits = logits.div_(spec.softcap).tanh_().mul_(spec.softcap)
    at = query_positions[:, None, :, None]  # [B,1,n,1]
    keys = keys[:, :, None]  # [B,Hkv,1,N]
    hidden = keys > at  # [B,Hkv,n,N]
    if spec.horizon is not None:
        hidden |= keys <= at - spec.horizon
    logits = logits.masked_fill_(hidden[:, :, None], MASKED)
    if sinks is None:
        return logits.softmax(-1)
    extra = sinks.float().view(1, Hkv, G, 1, 1).expand(B, -1, -1, n, -1)
    return torch.cat([logits, extra], dim=-1).softmax(-1)[..., :-1]


def _weights(
    query_positions: Tensor,
    query_weights: Tensor,
    last_weights: Tensor | None,
    planes: tuple[str, ...],
) -> list[Tensor]:
    """Weigh the queries for each plane. All [B,Q] -> one float32 [B,Q] per plane."""
    found = []
    for name in planes:
        if name in ("mass", "max"):
            found.append(query_weights.float())
        elif name == "newest":
            newest = query_positions.amax(-1, keepdim=True).clamp(min=0)  # [B,1]
            found.append((query_positions == newest).float())
        else:
            assert last_weights is not None
            found.append(last_weights.float())
    return found


def _old(keys: Tensor, query_positions: Tensor, spec: AttendSpec) -> Tensor | None:
    """Mark keys past the grace, None if there is none. keys [B,Hkv,N] -> [B,Hkv,1,n,N]."""
    if spec.grace == 0:
        return None
    return (keys[:, :, None] <= query_positions[:, None, :, None] - spec.grace)[:, :, None]


def _observe(
    p: Tensor,
    is_old: Tensor | None,
    weights: list[Tensor],
    planes: tuple[str, ...],
) -> list[Tensor]:
    """Sum a block for each plane. p [B,Hkv,G,n,N], weights P x [B,n] -> P x [B,Hkv,1,N]."""
    B, Hkv, G, n, N = p.shape
    counted = p if is_old is None else p * is_old
    found = []
    for name, weight in zip(planes, weights):
        if name == "max":
            plane = (counted.sum(2) * weight[:, None, :, None]).amax(2, keepdim=True)
        else:
            x = counted if name == "mass" else p.square() if name == "last_sq" else p
            row = weight[:, None, None].expand(B, Hkv, G, n).reshape(B * Hkv, 1, G * n)
            plane = torch.bmm(row, x.view(B * Hkv, G * n, N)).view(B, Hkv, 1, N)
        found.append(plane if name == "mass" else plane / G)
    return found


def _folded(
    stats: Tensor | None, found: list[Tensor], planes: tuple[str, ...], N: int
) -> Tensor | None:
    """Fold a block's planes, P x [B,Hkv,1,M] over the first keys, into stats [B,Hkv,P,N]."""
    if stats is None and found:
        new = found[0] if len(found) == 1 else torch.cat(found, dim=2)
        return new if new.shape[3] == N else pad(new, (0, N - new.shape[3]))
    for i, (name, new) in enumerate(zip(planes, found)):
        assert stats is not None
        so_far = stats[:, :, i : i + 1, : new.shape[3]]
        if name == "max":
            torch.maximum(so_far, new, out=so_far)
        else:
            so_far += new
    return stats


def write_slots(store: Tensor, slots: Tensor, rows: Tensor, valid: Tensor | None) -> None:
    """Overwrite one slot per head. store [B,Hkv,C,*], slots [B,Hkv], rows [B,Hkv,*]."""
    if store.dtype in _HALVES:  # on a CPU, scatter_ of halves converts all of the store and back
        store, rows = store.view(torch.int16), rows.view(torch.int16)
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
