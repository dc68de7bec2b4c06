"""The chunk path: attention over C live and T new tokens, then the best C of them stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from kvmmu.policies.base import Policy, Seen, SlotView
from kvmmu.slots.places import numbered, unrotated
from kvmmu.slots.ranking import ChunkPlan, plan_chunk
from kvmmu.slots.spec import Call

if TYPE_CHECKING:
    from kvmmu.slots.mmu import KVMMU

__all__ = ["chunk"]


@dataclass(frozen=True)
class _Candidates:
    """C slots, then T new tokens. positions int32 [B,Hkv,C+T]; k unrotated, v [B,Hkv,F+T,D].

    Slots are filled in order: at most the first F, `num_filled`, hold anything, and K and V are of
    those alone. is_real bool [B,T]; order int32 [B,T] counts a row's real new tokens from 1;
    count [B,1].
    """

    num_filled: int
    num_empty: int
    positions: Tensor
    k: Tensor
    v: Tensor
    is_real: Tensor
    order: Tensor
    count: Tensor


def chunk(mmu: KVMMU, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """Take T tokens in and attend. q [B,Hq,T,D], k, v [B,Hkv,T,D] -> out [B,Hq,T,D]."""
    table = mmu.table
    both = _gather(mmu, unrotated(mmu.rotary, k, call.index), v, call)
    out, seen = _attend(mmu, q, both, call)
    table.num_seen.add_(both.count[:, 0])
    plan, scores, state = _choose(mmu, both, seen)
    at, source = plan.at, (plan.at.lane, plan.at.head, plan.new - both.num_empty)
    if mmu.observer is not None:
        left = table.positions[at.lane, at.head, at.slot]
        came = both.positions[at.lane, at.head, plan.new]
        mmu.observer.chunk(mmu.spec.layer_idx, at, left, came, both.is_real, seen)
    mmu.keys.write_rows(at, both.k[source])
    mmu.values.write_rows(at, both.v[source])
    table.put_chunk(both.positions, scores, state, at, plan.new)
    return out


def _gather(mmu: KVMMU, k: Tensor, v: Tensor, call: Call) -> _Candidates:
    """Line up what is held and what is new. k, v [B,Hkv,T,D]."""
    B, Hkv, T, _ = k.shape
    C = mmu.spec.num_slots
    F = min(call.start, C)
    is_real = k.new_ones(B, T, dtype=torch.bool) if call.valid is None else call.valid
    order = is_real.cumsum(1, dtype=torch.int32)
    new = torch.where(is_real, mmu.table.num_seen[:, None] + order - 1, -1)
    held = mmu.table.positions
    return _Candidates(
        num_filled=F,
        num_empty=C - F,
        positions=torch.cat([held, new[:, None].expand(-1, Hkv, -1)], dim=2),
        k=torch.cat([mmu.keys.read()[:, :, :F], k], dim=2),
        v=torch.cat([mmu.values.read()[:, :, :F], v], dim=2),
        is_real=is_real,
        order=order,
        count=order[:, -1:],
    )


def _attend(mmu: KVMMU, q: Tensor, both: _Candidates, call: Call) -> tuple[Tensor, Seen]:
    """Attend causally over all candidates; a pad's query weighs nothing. q [B,Hq,T,D]."""
    T = q.shape[2]
    F, C = both.num_filled, mmu.spec.num_slots
    weights, is_last = _weigh(mmu, both)
    positions = both.positions
    if F < C:
        positions = torch.cat([positions[..., :F], positions[..., C:]], dim=-1)
    q, keys = numbered(mmu.rotary, q, both.k, positions, call.index)
    out, stats = mmu.kernel.attend(
        q,
        keys,
        both.v,
        positions,
        positions[:, 0, -T:],
        weights,
        spec=replace(call.attend, ends_with_queries=True),
        last_weights=is_last.float(),
        sinks=call.sinks,
    )
    turned = 0 if keys is both.k else keys.nbytes
    nbytes = both.k.nbytes + both.v.nbytes + positions.nbytes + out.nbytes + turned
    mmu.workspace_nbytes = max(mmu.workspace_nbytes, nbytes)
    stats = _spread(stats, F, C - F, dim=-1)
    num_last = is_last.sum(1, keepdim=True, dtype=torch.int32)
    return out, mmu.seen(stats, both.count[:, :, None], num_last[:, :, None], T)


def _spread(x: Tensor, num_filled: int, num_empty: int, dim: int) -> Tensor:
    """Put zeros for the empty slots into x, whose dimension `dim` has F + T candidates."""
    if num_empty == 0:
        return x
    held, new = x.split([num_filled, x.shape[dim] - num_filled], dim)
    shape = list(x.shape)
    shape[dim] = num_empty
    return torch.cat([held, x.new_zeros(shape), new], dim)


def _weigh(mmu: KVMMU, both: _Candidates) -> tuple[Tensor, Tensor]:
    """Weigh the queries as the policy asks. -> float32, bool [B,T]; pads weigh nothing."""
    later = both.count - both.order  # real tokens after each, so that decay counts tokens
    weights = mmu.policy.query_decay ** later.float() * both.is_real
    block = mmu.policy.query_block
    if block is None:
        return weights, both.is_real & (later < mmu.policy.num_last)
    newest = mmu.table.num_seen[:, None] + both.count - 1  # [B,1]
    num_back = newest // block - (newest - later) // block  # blocks from the newest one
    return weights * (num_back <= 1), both.is_real & (num_back == 0)


def _choose(
    mmu: KVMMU, both: _Candidates, seen: Seen
) -> tuple[ChunkPlan, Tensor, Mapping[str, Tensor]]:
    """Score the candidates and plan who stays. -> plan, scores [B,Hkv,C+T], state."""
    table = mmu.table
    T = both.order.shape[1]
    num_seen = table.num_seen.view(-1, 1, 1)
    state = {  # newcomers start at 0, in the score and in the policy's own state
        name: pad(value, (0, T)) if table.per[name] == "slot" else value
        for name, value in table.state.items()
    }
    kv = None
    if "k" in mmu.needs or "v" in mmu.needs:
        F, E = both.num_filled, both.num_empty
        kv = _spread(both.k, F, E, dim=2), _spread(both.v, F, E, dim=2)
    view = mmu.view(both.positions, pad(table.scores, (0, T)), num_seen, state, kv)
    scores, new_state = mmu.policy.update(view, seen)
    view = replace(view, scores=scores, state=new_state)
    if mmu.policy.kind == "selector":
        priority = _selected(mmu.policy, view, seen)
    else:
        priority = mmu.policy.priority(view)
    ranks = mmu.ranks(priority, both.positions, num_seen - 1)
    ranks = ranks.expand(-1, mmu.spec.num_kv_heads, -1)
    return plan_chunk(ranks, both.positions, mmu.spec.num_slots), scores, new_state


def _selected(policy: Policy, view: SlotView, seen: Seen) -> Tensor:
    """Ask a selector over candidates sorted by position; answer in candidate order. [B,Hkv,N]."""
    order = view.positions.argsort(dim=-1, stable=True)  # [B,Hkv,N]

    def rows(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.gather(2, order[..., None].expand_as(x))

    planes = {name: plane.gather(2, order) for name, plane in seen.planes.items()}
    by_position = replace(
        view,
        positions=view.positions.gather(2, order),
        scores=view.scores.gather(2, order),
        k=rows(view.k),
        v=rows(view.v),
        protected=None if view.protected is None else view.protected.gather(2, order),
    )
    priority = policy.select(by_position, replace(seen, planes=planes))
    return torch.empty_like(priority).scatter(2, order, priority)
