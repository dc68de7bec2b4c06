"""The decode path: one new token replaces one victim, then attention runs over C slots.

No branch on data, no host transfer, static shapes: it compiles whole (fullgraph=True).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvmmu.slots.fused import can_fuse, fused_decode
from kvmmu.slots.places import numbered, unrotated
from kvmmu.slots.spec import Call

if TYPE_CHECKING:
    from kvmmu.slots.mmu import KVMMU

__all__ = ["decode"]


def decode(mmu: KVMMU, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """Take one token in and attend. q [B,Hq,1,D], k, v [B,Hkv,1,D] -> out [B,Hq,1,D]."""
    if can_fuse(mmu, call):
        return fused_decode(mmu, q, k, v, call)
    table = mmu.table
    is_real = None if call.valid is None else call.valid[:, 0]  # [B]
    slots = _victims(mmu)
    observer = mmu.observer
    evicted = None if observer is None else table.positions.gather(2, slots[:, :, None])[:, :, 0]

    mmu.keys.write_slots(slots, unrotated(mmu.rotary, k, call.index)[:, :, 0], is_real)
    mmu.values.write_slots(slots, v[:, :, 0], is_real)
    table.admit(slots, table.num_seen, is_real)
    table.num_seen.add_(1 if is_real is None else is_real)

    at = table.num_seen[:, None] - 1  # [B,1], the token's own position
    weights = torch.ones_like(at, dtype=torch.float32)
    if call.valid is not None:
        at, weights = torch.where(call.valid, at, -1), call.valid.float()
    q, keys = numbered(mmu.rotary, q, mmu.keys.read(), table.positions, call.index)
    out, stats = mmu.kernel.attend(
        q,
        keys,
        mmu.values.read(),
        table.positions,
        at,
        weights,
        spec=call.attend,
        last_weights=weights,
        sinks=call.sinks,
    )
    count = weights.int()[:, :, None]  # [B,1,1]
    seen = mmu.seen(stats, count, count, 1)
    view = mmu.view(table.positions, table.scores, table.num_seen.view(-1, 1, 1), table.state)
    table.put(*mmu.policy.update(view, seen))
    if observer is not None and evicted is not None:
        observer.decode(mmu.spec.layer_idx, slots, evicted, is_real, seen)
    return out


def _victims(mmu: KVMMU) -> Tensor:
    """Choose the slots that the new token takes, from scores up to the last step. -> [B,Hkv]."""
    table = mmu.table
    newest = table.num_seen.view(-1, 1, 1)  # the position that the new token gets
    view = mmu.view(table.positions, table.scores, newest, table.state)
    ranks = mmu.ranks(mmu.policy.priority(view), table.positions, newest)
    return mmu.kernel.select_victims(ranks).expand(-1, mmu.spec.num_kv_heads)
