"""Decode by one fused kernel, where the policy's step is a StepRule.

The result is the decode path's, within rounding. A fused step names the next victims before it
ends; they are found anew at each call, because others write a layer's tables too: chunks, a
clear, a beam's reorder, a loaded snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvmmu.codecs.plain import PlainStore
from kvmmu.kernels.step import FusedKernel, LaneState, StepSpec
from kvmmu.slots.spec import Call

if TYPE_CHECKING:
    from kvmmu.slots.mmu import KVMMU

__all__ = ["FusedLayer", "can_fuse", "fused_decode"]


@dataclass(frozen=True)
class FusedLayer:
    """A layer's own tensors and rules, as its fused kernel takes them; victims are not yet found.

    The policy's step must be a StepRule and K and V stored plainly.
    """

    kernel: FusedKernel
    state: LaneState
    spec: StepSpec

    @classmethod
    def of(cls, mmu: KVMMU, scale: float) -> FusedLayer:
        """Show a layer to its kernel, whose fused step must not be None."""
        table, own, fused, rule = mmu.table, mmu.spec, mmu.kernel.fused, mmu.policy.step_rule
        assert fused is not None
        assert rule is not None
        positions = table.positions
        victims = torch.empty(positions.shape[:2], dtype=torch.int32, device=positions.device)
        stores = mmu.keys.read(), mmu.values.read()
        state = LaneState(*stores, positions, table.scores, table.num_seen, victims)
        per_layer = own.granularity == "layer"
        spec = StepSpec(rule, scale, own.num_sinks, own.window, per_layer, own.horizon)
        return cls(fused, state, spec)

    def refresh(self, lanes: Tensor) -> None:
        """Find the next victims of lanes int32 [N], -1 = none."""
        self.kernel.refresh(lanes, self.state, self.spec)

    def step(self, q: Tensor, k: Tensor, v: Tensor, lanes: Tensor, at: Tensor) -> Tensor:
        """Take one token into each of N lanes; see kernels/step.py. -> out [N,Hq,D]."""
        out = q.new_empty(q.shape)  # contiguous, whatever the strides of q
        self.kernel.step(q, k, v, lanes, at, self.state, self.spec, out)
        return out


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
    lanes = torch.arange(q.shape[0], dtype=torch.int32, device=q.device)
    if call.valid is not None:
        lanes = torch.where(call.valid[:, 0], lanes, -1)
    layer = FusedLayer.of(mmu, call.attend.scale)
    layer.refresh(lanes)
    at = mmu.table.num_seen.clone()  # the kernel counts there
    return layer.step(_rows(q), _rows(k), _rows(v), lanes, at)[:, :, None]


def _rows(x: Tensor) -> Tensor:
    """Return the one token of x [B,H,1,D] as [B,H,D], each row contiguous."""
    x = x[:, :, 0]
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()
