"""KVMMU: one layer's KV-MMU. It alone writes slots; policy, kernel and codec are its parts.

Contract of `forward`. q [B,Hq,Q,D], k, v [B,Hkv,Q,D] of Q new tokens, valid bool [B,Q] or None
when no row has a pad -> out [B,Hq,Q,D]. The caller guarantees that pads come first in a row,
that dtype, device and batch are those of the storage, and that no gradient is wanted.

    Q = 1   decode: the victim is chosen from scores up to the last step, the new token takes its
            slot, attention runs over exactly C slots, then scores are updated. No branch on data.
    Q >= 2  chunks whose borders are multiples of T counted from column `start` = 0: attention
            over C live + T new, then the best C stay. A chunk of one token is a decode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from kvmmu.codecs.base import Codec, Rows
from kvmmu.kernels.contract import PLANES, AttendSpec, Kernel
from kvmmu.policies.base import Policy, Seen, SlotView
from kvmmu.slots.ranking import ChunkPlan, plan_chunk, protected, rank
from kvmmu.slots.table import SlotTable

__all__ = ["KVMMU", "LayerSpec", "Observer", "Rotary"]

Rotary = Callable[[Tensor, Tensor], Tensor]
"""Rotate x [B,H,N,D] by int index [B,H,N] positions; a negative index turns back."""


class Observer(Protocol):
    """What wants to know of every replacement; it must not touch what it is shown."""

    def decode(
        self, layer_idx: int, slots: Tensor, evicted: Tensor, valid: Tensor | None, seen: Seen
    ) -> None:
        """See a decode: slots and evicted positions [B,Hkv] (-1 = was empty)."""
        ...

    def chunk(
        self, layer_idx: int, at: Rows, evicted: Tensor, positions: Tensor, seen: Seen
    ) -> None:
        """See a chunk: R writes `at`, with the positions that left and that came, [R]."""
        ...


@dataclass(frozen=True)
class LayerSpec:
    """One layer's shape and rules. `horizon` is the sliding window, None for full attention."""

    layer_idx: int
    num_layers: int
    num_slots: int
    num_kv_heads: int
    group_size: int
    head_dim: int
    num_sinks: int
    window: int
    chunk_size: int
    granularity: Literal["head", "layer"] = "head"
    horizon: int | None = None


class KVMMU:
    """Hold exactly C slots per row and KV head of one layer, in place, for ever."""

    def __init__(
        self,
        spec: LayerSpec,
        policy: Policy,
        codec: Codec,
        kernel: Kernel,
        *,
        batch: int,
        dtype: torch.dtype,
        device: torch.device,
        rotary: Rotary | None = None,
    ) -> None:
        shape = (batch, spec.num_kv_heads, spec.num_slots, spec.head_dim)
        self.spec = spec
        self.policy = policy.bind(
            num_slots=spec.num_slots, num_sinks=spec.num_sinks, window=spec.window
        )
        self.kernel = kernel
        self.rotary = rotary
        self.keys = codec.make(shape, dtype=dtype, device=device, kernel=kernel)
        self.values = codec.make(shape, dtype=dtype, device=device, kernel=kernel)
        self.table = SlotTable(shape, self.policy, device, kernel)
        self.observer: Observer | None = None
        self.workspace_nbytes = 0
        self._needs = self.policy.needs
        self._planes = tuple(name for name in PLANES if name in self._needs)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        valid: Tensor | None,
        *,
        scale: float,
        softcap: float | None = None,
        sinks: Tensor | None = None,
        start: int = 0,
        index: Tensor | None = None,
    ) -> Tensor:
        """Take Q new tokens in and attend; see the contract above. index [B,Q]: RoPE places."""
        attend = AttendSpec(scale, self._planes, self.spec.horizon, softcap)
        Q = q.shape[2]
        if Q == 1:
            return self._decode(q, k, v, valid, attend, sinks, index)
        outs = []
        for a, b in self._spans(start, Q):
            step = self._decode if b - a == 1 else self._chunk
            part = None if valid is None else valid[:, a:b]
            place = None if index is None else index[:, a:b]
            cut = (q[:, :, a:b], k[:, :, a:b], v[:, :, a:b])
            outs.append(step(*cut, part, attend, sinks, place))
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)

    def tensors(self) -> dict[str, Tensor]:
        """Name every persistent tensor; each has B as its first dimension."""
        parts = {"keys": self.keys.tensors(), "values": self.values.tensors()}
        named = {f"{part}.{name}": t for part, ts in parts.items() for name, t in ts.items()}
        return named | {f"table.{name}": t for name, t in self.table.tensors().items()}

    def clear(self) -> None:
        """Forget every token and all state, in place."""
        for tensor in (*self.keys.tensors().values(), *self.values.tensors().values()):
            tensor.zero_()
        self.table.clear()

    def _spans(self, start: int, num_new: int) -> Iterator[tuple[int, int]]:
        """Cut [0, num_new) at multiples of T counted from the first column."""
        if self.policy.kind == "selector":  # it chooses once, from the whole prompt
            yield 0, num_new
            return
        T = self.spec.chunk_size
        a = 0
        while a < num_new:
            b = min(num_new, a + T - (start + a) % T)
            yield a, b
            a = b

    def _decode(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        valid: Tensor | None,
        attend: AttendSpec,
        sinks: Tensor | None,
        index: Tensor | None,
    ) -> Tensor:
        """Replace one victim by one token, then attend over C slots. q [B,Hq,1,D]."""
        table, spec = self.table, self.spec
        is_real = None if valid is None else valid[:, 0]
        newest = table.num_seen.view(-1, 1, 1)  # the position that the new token gets
        view = self._view(table.positions, table.scores, newest, table.state, self.keys.read)
        slots = self.kernel.select_victims(self._ranks(self.policy.priority(view), view, newest))
        slots = slots.expand(-1, spec.num_kv_heads)  # [B,Hkv]
        evicted = None
        if self.observer is not None:
            evicted = table.positions.gather(2, slots[:, :, None])[:, :, 0]
        self._store(slots, k, v, is_real, index)
        table.admit(slots, table.num_seen, is_real)
        table.num_seen.add_(1 if is_real is None else is_real)
        at = table.num_seen[:, None] - 1  # [B,1]
        if valid is not None:
            at = torch.where(valid, at, -1)
        q, keys = self._turned(q, self.keys.read(), table.positions, index, num_new=1)
        weights = torch.ones_like(at, dtype=torch.float32) if valid is None else valid.float()
        out, stats = self.kernel.attend(
            q,
            keys,
            self.values.read(),
            table.positions,
            at,
            weights,
            spec=attend,
            last_weights=weights,
            sinks=sinks,
        )
        counts = weights.int()[:, :, None]  # [B,1,1]
        seen = self._seen(stats, counts, counts, 1)
        num_seen = table.num_seen.view(-1, 1, 1)
        view = self._view(table.positions, table.scores, num_seen, table.state, self.keys.read)
        table.put(*self.policy.update(view, seen))
        if self.observer is not None:
            assert evicted is not None
            self.observer.decode(spec.layer_idx, slots, evicted, is_real, seen)
        return out

    def _chunk(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        valid: Tensor | None,
        attend: AttendSpec,
        sinks: Tensor | None,
        index: Tensor | None,
    ) -> Tensor:
        """Attend over C live and T new tokens, then keep the best C. q [B,Hq,T,D]."""
        table, spec = self.table, self.spec
        B, Hkv, T, _ = k.shape
        is_real = k.new_ones(B, T, dtype=torch.bool) if valid is None else valid
        order = is_real.cumsum(1, dtype=torch.int32)  # [B,T], 1 for a row's first new token
        count = order[:, -1:]  # [B,1]
        at = torch.where(is_real, table.num_seen[:, None] + order - 1, -1)
        positions = torch.cat([table.positions, at[:, None].expand(-1, Hkv, -1).int()], dim=2)
        raw = k if self.rotary is None else self.rotary(k, -_per_head(index, Hkv))
        keys = torch.cat([self.keys.read(), raw], dim=2)  # [B,Hkv,C+T,D]
        values = torch.cat([self.values.read(), v], dim=2)
        q, turned = self._turned(q, keys, positions, index, num_new=T)
        weights = self.policy.query_decay ** (count - order).float() * is_real
        is_last = is_real & (order > count - self.policy.num_last)
        out, stats = self.kernel.attend(
            q,
            turned,
            values,
            positions,
            at,
            weights,
            spec=attend,
            last_weights=is_last.float(),
            sinks=sinks,
        )
        self._note_workspace(turned, values, q)
        table.num_seen.add_(count[:, 0])
        num_last = is_last.sum(1, keepdim=True, dtype=torch.int32)
        seen = self._seen(stats, count[:, :, None], num_last[:, :, None], T)
        plan, view = self._choose(positions, seen, keys, values)
        if self.observer is not None:
            left = table.positions[plan.at.lane, plan.at.head, plan.at.slot]
            came = positions[plan.at.lane, plan.at.head, plan.new]
            self.observer.chunk(spec.layer_idx, plan.at, left, came, seen)
        self.keys.write_rows(plan.at, keys[plan.at.lane, plan.at.head, plan.new])
        self.values.write_rows(plan.at, values[plan.at.lane, plan.at.head, plan.new])
        table.put_chunk(positions, view.scores, view.state, plan.at, plan.new)
        return out

    def _choose(
        self, positions: Tensor, seen: Seen, keys: Tensor, values: Tensor
    ) -> tuple[ChunkPlan, SlotView]:
        """Score C + T candidates and plan who stays. positions [B,Hkv,C+T]."""
        table = self.table
        T = positions.shape[2] - self.spec.num_slots
        num_seen = table.num_seen.view(-1, 1, 1)
        state = {
            name: torch.nn.functional.pad(value, (0, T)) if table.per[name] == "slot" else value
            for name, value in table.state.items()
        }
        scores = torch.nn.functional.pad(table.scores, (0, T))  # newcomers start at 0
        view = self._view(positions, scores, num_seen, state, lambda: keys, lambda: values)
        scores, state = self.policy.update(view, seen)
        view = replace(view, scores=scores, state=state)
        if self.policy.kind == "selector":
            priority = _select_sorted(self.policy, view, seen)
        else:
            priority = self.policy.priority(view)
        ranks = self._ranks(priority, view, num_seen - 1)
        ranks = ranks.expand(-1, self.spec.num_kv_heads, -1)
        return plan_chunk(ranks, positions, self.spec.num_slots), view

    def _ranks(self, priority: Tensor, view: SlotView, newest: Tensor) -> Tensor:
        """Put the rules over the policy's priority. -> [B,Hkv,N], or [B,1,N] for one per layer."""
        positions = view.positions
        if self.spec.granularity == "layer":
            priority, positions = priority.sum(1, keepdim=True), positions[:, :1]
        is_protected = protected(
            positions, newest, num_sinks=self.spec.num_sinks, window=self.spec.window
        )
        return rank(priority, positions, is_protected, newest, self.spec.horizon)

    def _store(
        self, slots: Tensor, k: Tensor, v: Tensor, is_real: Tensor | None, index: Tensor | None
    ) -> None:
        """Overwrite one slot per head. k, v [B,Hkv,1,D], slots [B,Hkv]."""
        if self.rotary is not None:
            k = self.rotary(k, -_per_head(index, self.spec.num_kv_heads))
        self.keys.write_slots(slots, k[:, :, 0], is_real)
        self.values.write_slots(slots, v[:, :, 0], is_real)

    def _turned(
        self, q: Tensor, keys: Tensor, positions: Tensor, index: Tensor | None, *, num_new: int
    ) -> tuple[Tensor, Tensor]:
        """Give queries and keys their rank in the cache, if positions are "in_cache"."""
        if self.rotary is None:
            return q, keys
        order = positions.argsort(dim=-1).argsort(dim=-1)  # empty slots come first
        ranks = (order - (positions < 0).sum(-1, keepdim=True)).clamp(min=0)  # [B,Hkv,N]
        B, N = positions.shape[0], ranks.shape[2]
        num_held = N - (positions[:, 0] < 0).sum(-1)  # [B]; pads among the new come first
        own = num_held[:, None] - num_new + torch.arange(num_new, device=q.device)  # [B,Q]
        turn = (own.clamp(min=0) - _given(index)).view(B, 1, num_new).expand(-1, q.shape[1], -1)
        return self.rotary(q, turn), self.rotary(keys, ranks)

    def _view(
        self,
        positions: Tensor,
        scores: Tensor,
        num_seen: Tensor,
        state: Mapping[str, Tensor],
        keys: Callable[[], Tensor],
        values: Callable[[], Tensor] | None = None,
    ) -> SlotView:
        """Show a policy what it needs, and nothing else."""
        spec = self.spec
        is_protected = None
        if "protected" in self._needs:
            is_protected = protected(
                positions, num_seen - 1, num_sinks=spec.num_sinks, window=spec.window
            )
        return SlotView(
            positions,
            scores,
            num_seen,
            spec.layer_idx,
            spec.num_layers,
            spec.granularity,
            k=keys() if "k" in self._needs else None,
            v=(values or self.values.read)() if "v" in self._needs else None,
            protected=is_protected,
            state=state,
        )

    def _seen(self, stats: Tensor, num_queries: Tensor, num_last: Tensor, Q: int) -> Seen:
        """Name the kernel's planes [B,Hkv,P,N]."""
        planes = {name: stats[:, :, i] for i, name in enumerate(self._planes)}
        return Seen(planes, num_queries, num_last, Q, self.spec.group_size)

    def _note_workspace(self, keys: Tensor, values: Tensor, q: Tensor) -> None:
        """Keep the largest transient: candidates' K and V and the output of one call."""
        nbytes = keys.nbytes + values.nbytes + q.nbytes
        self.workspace_nbytes = max(self.workspace_nbytes, nbytes)


def _given(index: Tensor | None) -> Tensor:
    """Return the RoPE places, which the caller must give when positions are "in_cache"."""
    if index is None:
        raise ValueError("index must give the RoPE place of each new token, got None")
    return index


def _per_head(index: Tensor | None, num_heads: int) -> Tensor:
    """Repeat RoPE places for every head. [B,Q] -> [B,H,Q]."""
    return _given(index)[:, None].expand(-1, num_heads, -1)


def _select_sorted(policy: Policy, view: SlotView, seen: Seen) -> Tensor:
    """Ask a selector over candidates sorted by position; give its answer in candidate order."""
    order = view.positions.argsort(dim=-1, stable=True)  # [B,Hkv,N]

    def by_position(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        return x.gather(2, order if x.ndim == 3 else order[..., None].expand_as(x))

    planes = {name: plane.gather(2, order) for name, plane in seen.planes.items()}
    positions, scores = view.positions.gather(2, order), view.scores.gather(2, order)
    sorted_view = replace(
        view,
        positions=positions,
        scores=scores,
        k=by_position(view.k),
        v=by_position(view.v),
        protected=by_position(view.protected),
    )
    priority = policy.select(sorted_view, replace(seen, planes=planes))
    return torch.empty_like(priority).scatter(2, order, priority)
