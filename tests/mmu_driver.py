"""Drive KVMMU.forward by hand: random texts, one layer's KV-MMU, plain full attention.

A `Text` is what a layer would hand over: q, k, v of a left-padded batch and which tokens are
real. `drive` feeds it in calls of given sizes; `full_attention` is the uncached answer, in
float64 and without a line of the library.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kvmmu.codecs.plain import Plain
from kvmmu.kernels import dispatch
from kvmmu.policies.base import POLICIES, Policy
from kvmmu.policies.novelty import Novelty
from kvmmu.policies.rce import RCE
from kvmmu.policies.snapkv import SnapKV
from kvmmu.policies.tova import TOVA
from kvmmu.slots.mmu import KVMMU
from kvmmu.slots.spec import LayerSpec

SCALE = 0.5
"""Larger than 1 / sqrt(D): attention peaks, so that priorities differ clearly."""


def variants() -> dict[str, Policy]:
    """Return every registered policy by name, and settings that walk another path."""
    found = {name: POLICIES.make(name) for name in POLICIES.names()}
    found["rce-sum"] = RCE(statistic="mass")
    found["rce-decay"] = RCE(decay=0.9, normalize="age")
    found["rce-max"] = RCE(decay=0.9, normalize="none", statistic="max")
    found["rce-window"] = RCE(window_queries=6, normalize="age")
    found["rce-value-norm"] = RCE(decay=0.9, normalize="age", value_norm=True)
    found["novelty-grace"] = Novelty(weight=2.0, decay=0.9, grace=2, pool=1)
    found["rce-integers"] = RCE(decay=1 - 2**-4, normalize="none", fixed_point=True)
    found["snapkv-tova"] = SnapKV(then=TOVA(), kernel_size=1)
    return found


VARIANTS = variants()
STEP_VARIANTS = {name: policy for name, policy in VARIANTS.items() if policy.kind == "step"}


@dataclass(frozen=True)
class Text:
    """q [B,Hq,S,D], k, v [B,Hkv,S,D]; valid bool [B,S], False for the pads on the left."""

    q: Tensor
    k: Tensor
    v: Tensor
    valid: Tensor

    @property
    def length(self) -> int:
        """Columns, pads included."""
        return self.q.shape[2]

    @property
    def is_padded(self) -> bool:
        """Whether any row has a pad."""
        return not bool(self.valid.all())

    def cut(self, a: int, b: int) -> Text:
        """Return columns [a, b)."""
        return Text(self.q[:, :, a:b], self.k[:, :, a:b], self.v[:, :, a:b], self.valid[:, a:b])

    def row(self, b: int) -> Text:
        """Return the real tokens of one row, as a batch of one without pads."""
        real = self.valid[b]
        return Text(
            self.q[b : b + 1, :, real],
            self.k[b : b + 1, :, real],
            self.v[b : b + 1, :, real],
            torch.ones(1, int(real.sum()), dtype=torch.bool),
        )

    def positions(self) -> Tensor:
        """Logical positions [B,S], -1 for pads."""
        return torch.where(self.valid, self.valid.cumsum(1) - 1, -1)


def make_text(
    seed: int,
    length: int,
    *,
    lengths: Sequence[int] | None = None,
    heads: int = 2,
    group: int = 2,
    dim: int = 8,
    dtype: torch.dtype = torch.float32,
) -> Text:
    """Draw a text of `length` columns; `lengths` gives each row's real tokens, pads come first."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [length] if lengths is None else lengths
    batch = len(lengths)

    def draw(num_heads: int) -> Tensor:
        return torch.randn(batch, num_heads, length, dim, generator=generator).to(dtype)

    column = torch.arange(length)
    valid = column >= length - torch.tensor(list(lengths))[:, None]
    return Text(draw(heads * group), draw(heads), draw(heads), valid)


def make_mmu(
    policy: Policy,
    text: Text,
    *,
    num_slots: int,
    num_sinks: int = 2,
    window: int = 2,
    chunk_size: int = 5,
    granularity: Any = "head",
    horizon: int | None = None,
    kernel: str | None = None,
    layer_idx: int = 0,
    rotary: Any = None,
) -> KVMMU:
    """Return an empty KV-MMU for a text's rows, heads and dtype."""
    batch, heads, _, dim = text.k.shape
    spec = LayerSpec(
        layer_idx=layer_idx,
        num_layers=layer_idx + 1,
        num_slots=num_slots,
        num_kv_heads=heads,
        group_size=text.q.shape[1] // heads,
        head_dim=dim,
        num_sinks=num_sinks,
        window=window,
        chunk_size=chunk_size,
        granularity=granularity,
        horizon=horizon,
    )
    return KVMMU(
        spec,
        policy,
        Plain(),
        dispatch.resolve(kernel),
        batch=batch,
        dtype=text.k.dtype,
        device=text.k.device,
        rotary=rotary,
    )


def call(
    mmu: KVMMU, text: Text, a: int, b: int, *, start: int | None = None, **more: Any
) -> Tensor:
    """Feed columns [a, b) in one call. -> out [B,Hq,b-a,D]."""
    part = text.cut(a, b)
    valid = part.valid if part.is_padded else None
    start = a if start is None else start
    return mmu.forward(
        part.q, part.k, part.v, valid, scale=SCALE, start=start if b - a > 1 else 0, **more
    )


def drive(mmu: KVMMU, text: Text, calls: Iterable[int] | None = None, **more: Any) -> Tensor:
    """Feed a text in calls of the given sizes, then token by token. -> out [B,Hq,S,D]."""
    outs, at = [], 0
    for size in calls or ():
        size = min(size, text.length - at)
        if size:
            outs.append(call(mmu, text, at, at + size, **more))
            at += size
    while at < text.length:
        outs.append(call(mmu, text, at, at + 1, **more))
        at += 1
    return torch.cat(outs, dim=2)


def snapshot(mmu: KVMMU) -> dict[str, Tensor]:
    """Copy every persistent tensor."""
    return {name: tensor.clone() for name, tensor in mmu.tensors().items()}


def pointers(mmu: KVMMU) -> dict[str, int]:
    """Where every persistent tensor lives."""
    return {name: tensor.data_ptr() for name, tensor in mmu.tensors().items()}


def same_state(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    """Whether two snapshots are equal bit for bit."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def differing(one: dict[str, Tensor], two: dict[str, Tensor]) -> list[str]:
    """Name the tensors in which two snapshots differ."""
    return [name for name in one if not torch.equal(one[name], two[name])]


def permuted(mmu: KVMMU, order: Tensor) -> KVMMU:
    """Copy a KV-MMU and move slot order[i] to slot i, in every row and head alike."""
    twin = copy.deepcopy(mmu)
    slots = mmu.spec.num_slots
    for name, tensor in twin.tensors().items():
        is_slotwise = tensor.ndim >= 3 and tensor.shape[2] == slots
        if is_slotwise and not (name.startswith("table.state") and tensor.ndim < 3):
            tensor.copy_(tensor[:, :, order])
    return twin


def held(mmu: KVMMU, row: int, head: int) -> set[int]:
    """Return the positions held."""
    return {p for p in mmu.table.positions[row, head].tolist() if p >= 0}


def full_attention(
    text: Text,
    *,
    scale: float = SCALE,
    horizon: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attend causally over everything, in float64. -> out [B,Hq,S,D]; pads' rows mean nothing."""
    q, k, v = (x.double() for x in (text.q, text.k, text.v))
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    logits = q @ k.transpose(2, 3) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    column = torch.arange(text.length)
    distance = column[:, None] - column  # pads are on the left: columns count as positions do
    hidden = (distance < 0)[None, None] | ~text.valid[:, None, None]
    if horizon is not None:
        hidden = hidden | (distance >= horizon)
    logits = logits.masked_fill(hidden, -1e30)
    if sinks is not None:
        extra = sinks.double().view(1, -1, 1, 1).expand(*logits.shape[:3], 1)
        logits = torch.cat([logits, extra], -1)
    p = logits.softmax(-1)[..., : text.length]
    return p @ v


def real_part(out: Tensor, text: Text) -> Tensor:
    """Put zeros where a pad asked, so that two outputs can be compared. out [B,Hq,S,D]."""
    return torch.where(text.valid[:, None, :, None], out, 0)


def error(out: Tensor, want: Tensor, text: Text) -> float:
    """Largest difference over the real tokens."""
    return float((real_part(out.double(), text) - real_part(want.double(), text)).abs().max())


def with_params(policy: Policy, **changes: Any) -> Policy:
    """Return a policy with other parameters."""
    return replace(policy, **changes)
