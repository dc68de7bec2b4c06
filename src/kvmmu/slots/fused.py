"""Decode by one fused kernel, where the policy's step is a StepRule.

The result is the decode path's, within rounding. A fused step names the next victims before it
ends; they are found anew at each call, because others write a layer's tables too: chunks, a
clear, a beam's reorder, a loaded snapshot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvmmu.codecs.plain import PlainStore
from kvmmu.kernels.step import LaneState, StepSpec
from kvmmu.slots.spec import Call

if TYPE_CHECKING:
    from kvmmu.slots.mmu import KVMMU

__all__ = ["can_fuse", "fused_decode", "lane_state", "step_spec"]


def lane_state(mmu: KVMMU, victims: Tensor) -> LaneState:
    """Show a layer's own tensors to a fused kernel. victims int32 [B,Hkv]."""
    table = mmu.table
    keys, values = mmu.keys.read(), mmu.values.read()
    return LaneState(keys, values, table.positions, table.scores, table.num_seen, victims)


def step_spec(mmu: KVMMU, scale: float) -> StepSpec:
    """Say a layer's rules to a fused kernel."""
    rule, spec = mmu.policy.step_rule, mmu.spec
    assert rule is not None
    per_layer = spec.granularity == "layer"
    return StepSpec(rule, scale, spec.num_sinks, spec.window, per_layer, spec.horizon)


def can_fuse(mmu: KVMMU, call: Call) -> bool:
    """Tell whether a fused kernel does this layer's decode in full.

    Not with soft-capped logits, learned sinks or keys numbered in the cache, nor while somebody
    watches or torch.compile traces; those steps run op by op.
    """
    is_plain = call.attend.softcap is None and call.sinks is None and mmu.rotary is None
    return (
        mmu.kernel.fused is not None
        and is_plain
        and mmu.policy.step_rule is not None
        and isinstance(mmu.keys, PlainStore)
        and mmu.observer is None
        and not torch.compiler.is_compiling()
    )


def fused_decode(mmu: KVMMU, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """Take one token in and attend. q [B,Hq,1,D], k, v [B,Hkv,1,D] -> out [B,Hq,1,D]."""
    fused, table = mmu.kernel.fused, mmu.table
    assert fused is not None
    B, Hq, _, D = q.shape
    lanes = torch.arange(B, dtype=torch.int32, device=q.device)
    if call.valid is not None:
        lanes = torch.where(call.valid[:, 0], lanes, -1)
    victims = torch.empty(B, mmu.spec.num_kv_heads, dtype=torch.int32, device=q.device)
    state, spec = lane_state(mmu, victims), step_spec(mmu, call.attend.scale)
    out = q.new_empty(B, Hq, D)
    fused.refresh(lanes, state, spec)
    at = table.num_seen.clone()  # the kernel counts there
    fused.step(_rows(q), _rows(k), _rows(v), lanes, at, state, spec, out)
    return out[:, :, None]


def _rows(x: Tensor) -> Tensor:
    """Return the one token of x [B,H,1,D] as [B,H,D], each row contiguous."""
    x = x[:, :, 0]
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()
