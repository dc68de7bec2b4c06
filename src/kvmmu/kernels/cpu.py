"""The fast kernel: plain PyTorch in blocks of queries; runs on any device, compiles whole.

Decode (Q = 1) is two batched products over the KV heads, no repeat of K or V for the group.
A chunk walks one row of the batch at a time, its queries in blocks whose logits stay near the
cache of one core, so the column sums are exact, no Q x N matrix ever exists, and a row's result
does not depend on the rows beside it. A plane that is linear in p is one more product,
weights @ p, which reads the probabilities once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from kvmmu.kernels.contract import MASKED, AttendSpec

__all__ = ["PLAIN", "Blocks", "attend", "attend_in_blocks", "select_victims", "write_slots"]

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
    return attend_in_blocks(
        q,
        k,
        v,
        key_positions,
        query_positions,
        query_weights,
        spec=spec,
        last_weights=last_weights,
        sinks=sinks,
        blocks=PLAIN,
    )


Weigh = Callable[
    [Tensor, Tensor, Tensor, Tensor, list[Tensor], AttendSpec, Tensor | None],
    tuple[Tensor, list[Tensor]],
]
"""weigh(q [B,Hkv,G,n,D], k_t [B*Hkv,D,M], keys int [B,Hkv,M], query positions [B,n], weights P x
[B,n], spec, sinks) -> probabilities float32 [B,Hkv,G,n,M] and each plane's sums [B,Hkv,1,M]. keys
are positions, those of empty slots later than any query's."""


@dataclass(frozen=True)
class Blocks:
    """How a block of queries is weighed, and how many logits it has at most."""

    weigh: Weigh
    most_logits: int


def attend_in_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_positions: Tensor,
    query_positions: Tensor,
    query_weights: Tensor,
    *,
    spec: AttendSpec,
    last_weights: Tensor | None,
    sinks: Tensor | None,
    blocks: Blocks,
) -> tuple[Tensor, Tensor]:
    """Attend as `attend` does, each block as `blocks` says."""
    weights = _weights(query_positions, query_weights, last_weights, spec.planes)
    keys = torch.where(key_positions < 0, _NEVER, key_positions)
    B, _, Q, _ = q.shape
    if B == 1 or Q == 1:
        return _attend(q, k, v, keys, query_positions, weights, spec, sinks, blocks)
    parts = []
    for b in range(B):
        row = slice(b, b + 1)
        own = [w[row] for w in weights]
        part = (q[row], k[row], v[row], keys[row], query_positions[row])
        parts.append(_attend(*part, own, spec, sinks, blocks))
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
    blocks: Blocks,
) -> tuple[Tensor, Tensor]:
    """Attend as `attend` does, all rows at once; weights P x [B,Q], keys as for Weigh."""
    B, Hq, Q, D = q.shape
    _, Hkv, N, _ = k.shape
    G = Hq // Hkv
    q = q.reshape(B, Hkv, G, Q, D)
    k_t, v = k.reshape(B * Hkv, N, D).mT, v.reshape(B * Hkv, N, -1)
    block = max(1, blocks.most_logits // (B * Hq * N)) if Q > 1 else 1
    block = max(block - block % 16, min(block, 16))  # blocks then end at whole vectors of keys
    outs: list[Tensor] = []
    stats: Tensor | None = None
    for start in range(0, Q, block):
        rows = slice(start, min(start + block, Q))
        M = N - Q + rows.stop if spec.ends_with_queries else N  # what this block can see
        seen, at = keys[:, :, :M], query_positions[:, rows]
        part = [w[:, rows] for w in weights]
        p, found = blocks.weigh(q[:, :, :, rows], k_t[:, :, :M], seen, at, part, spec, sinks)
        n = p.shape[3]
        out = torch.bmm(p.view(B * Hkv, G * n, M).to(v.dtype), v[:, :M])
        outs.append(out.view(B, Hkv, G, n, -1))
        stats = _folded(stats, found, spec.planes, N)
    out = outs[0] if len(outs) == 1 else torch.cat(outs, dim=3)  # [B,Hkv,G,Q,D]
    if stats is None:
        stats = q.new_zeros(B, Hkv, 0, N, dtype=torch.float32)
    return out.reshape(B, Hq, Q, -1), stats


def weigh(
    q: Tensor,
    k_t: Tensor,
    keys: Tensor,
    query_positions: Tensor,
    weights: list[Tensor],
    spec: AttendSpec,
    sinks: Tensor | None,
) -> tuple[Tensor, list[Tensor]]:
    """Weigh a block as Weigh says, by PyTorch's operators."""
    p = _probabilities(q, k_t, keys, query_positions, spec, sinks)
    return p, _observe(p, _old(keys, query_positions, spec), weights, spec.planes)


PLAIN = Blocks(weigh, _BLOCK_LOGITS)


def _probabilities(
    q: Tensor,
    k_t: Tensor,
    keys: Tensor,
    query_positions: Tensor,
    spec: AttendSpec,
    sinks: Tensor | None,
) -> Tensor:
    """Softmax of a block, as for Weigh. -> [B,Hkv,G,n,M] float32."""
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
    found = []
    for name, weight in zip(planes, weights):
        if name == "max":
            shares = p.sum(2).mul_(weight[:, None, :, None])
            plane = (shares if is_old is None else shares.mul_(is_old[:, :, 0])).amax(
                2, keepdim=True
            )
        else:
            x = p.square() if name == "last_sq" else p
            if name == "mass" and is_old is not None:
                x = p * is_old
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
