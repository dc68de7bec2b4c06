"""KVMMU: one layer's KV-MMU. It alone writes slots; policy, kernel and codec are its parts.

Contract of `forward`. q [B,Hq,Q,D], k, v [B,Hkv,Q,D] of Q new tokens, valid bool [B,Q] or None
when no row has a pad -> out [B,Hq,Q,D]. The caller guarantees that pads come first in a row,
that dtype, device and batch are those of the storage, and that no gradient is wanted.

    Q = 1   decode (decode.py): the victim is chosen from scores up to the last step, the new
            token takes its slot, attention runs over exactly C slots, then scores are updated.
    Q >= 2  chunks (chunk.py) whose borders are multiples of T counted from column 0, `start`
            being the first new one, which must be right: slots past it are taken to be empty.
            Attention over C live + T new, then the best C stay.
            A chunk of one token is a decode.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from kvmmu.codecs.base import Codec
from kvmmu.kernels.contract import PLANES, AttendSpec, Kernel
from kvmmu.policies.base import Policy, Seen, SlotView
from kvmmu.slots.chunk import chunk
from kvmmu.slots.decode import decode
from kvmmu.slots.ranking import protected, rank
from kvmmu.slots.spec import Call, LayerSpec, Observer, Rotary
from kvmmu.slots.table import SlotTable

__all__ = ["KVMMU"]


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
        if kernel.name == "native" and device.type != "cpu":
            raise ValueError(f"device must be cpu with kernel 'native', got {device.type!r}")
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
        self.needs = self.policy.needs
        self.planes = tuple(name for name in PLANES if name in self.needs)

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
        attend = AttendSpec(scale, self.planes, self.spec.horizon, softcap, self.policy.grace)
        call = Call(attend, valid, sinks, index, start)
        Q = q.shape[2]
        if Q == 1:
            return decode(self, q, k, v, call)
        outs = []
        for a, b in self._spans(start, Q):
            step = decode if b - a == 1 else chunk
            outs.append(step(self, q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], call.cut(a, b)))
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)

    def tensors(self) -> dict[str, Tensor]:
        """Name every persistent tensor; each has B as its first dimension."""
        parts = {"keys": self.keys.tensors(), "values": self.values.tensors()}
        named = {f"{part}.{name}": t for part, ts in parts.items() for name, t in ts.items()}
        return named | {f"table.{name}": t for name, t in self.table.tensors().items()}

    def lane(self, lane: int) -> KVMMU:
        """Return row `lane` as a KV-MMU of one row that shares these tensors."""
        view = copy.copy(self)
        view.keys, view.values = self.keys.lane(lane), self.values.lane(lane)
        view.table = self.table.lane(lane)
        return view

    def clear(self) -> None:
        """Forget every token and all state, in place."""
        for tensor in (*self.keys.tensors().values(), *self.values.tensors().values()):
            tensor.zero_()
        self.table.clear()

    # What the two paths share -----------------------------------------------------------------

    def view(
        self,
        positions: Tensor,
        scores: Tensor,
        num_seen: Tensor,
        state: Mapping[str, Tensor],
        kv: tuple[Tensor, Tensor] | None = None,
    ) -> SlotView:
        """Show a policy what it needs of N candidates, and nothing else. kv: [B,Hkv,N,D] each."""
        needs, spec = self.needs, self.spec
        k = v = is_protected = None
        if "k" in needs:
            k = self.keys.read() if kv is None else kv[0]
        if "v" in needs:
            v = self.values.read() if kv is None else kv[1]
        if "protected" in needs:
            is_protected = self._protected(positions, num_seen - 1)
        return SlotView(
            positions,
            scores,
            num_seen,
            spec.layer_idx,
            spec.num_layers,
            spec.granularity,
            k=k,
            v=v,
            protected=is_protected,
            state=state,
        )

    def seen(self, stats: Tensor, num_queries: Tensor, num_last: Tensor, max_queries: int) -> Seen:
        """Name the kernel's planes. stats [B,Hkv,P,N], counts int32 [B,1,1]."""
        planes = {name: stats[:, :, i] for i, name in enumerate(self.planes)}
        return Seen(planes, num_queries, num_last, max_queries, self.spec.group_size)

    def ranks(self, priority: Tensor, positions: Tensor, newest: Tensor) -> Tensor:
        """Put the rules over the policy's priority. -> [B,Hkv,N], or [B,1,N] for one per layer."""
        if self.spec.granularity == "layer":
            priority, positions = priority.sum(1, keepdim=True), positions[:, :1]
        is_protected = self._protected(positions, newest)
        return rank(priority, positions, is_protected, newest, self.spec.horizon)

    def _protected(self, positions: Tensor, newest: Tensor) -> Tensor:
        """Mark sinks and window. positions [B,H,N], newest [B,1,1] -> bool [B,H,N]."""
        spec = self.spec
        return protected(positions, newest, num_sinks=spec.num_sinks, window=spec.window)

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
