"""What must hold of the lanes of a pool between two steps, checked on demand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvmmu.errors import IntegrityError
from kvmmu.slots.mmu import KVMMU
from kvmmu.slots.spec import LayerSpec
from kvmmu.slots.table import SlotTable

__all__ = ["check_lanes"]


def check_lanes(mmus: Sequence[KVMMU], free: list[int], claimed: list[int]) -> None:
    """Raise IntegrityError if free and claimed lanes are not all, or a layer breaks a rule."""
    seen = mmus[0].table.num_seen
    lanes = list(range(len(seen)))
    if sorted(free + claimed) != lanes:
        raise IntegrityError(
            f"claimed and free lanes must make up all {len(lanes)}, got {claimed} claimed and "
            f"{free} free"
        )
    for mmu in mmus:
        _check_layer(mmu.spec, mmu.table, seen, free)


def _check_layer(spec: LayerSpec, table: SlotTable, num_seen: Tensor, free: list[int]) -> None:
    """Raise IntegrityError for a token held twice, not seen or missing; for a free lane's rest.

    num_seen int32 [B] is what the first layer has seen; `free` are lanes that hold nothing.
    """
    seen = num_seen[:, None, None]
    held = table.positions.sort(dim=-1).values  # [B,Hkv,C]
    newest = held[..., -1:]
    is_twice = (held[..., 1:] == held[..., :-1]) & (held[..., 1:] >= 0)
    count = (held >= 0).sum(-1, keepdim=True)
    last_sink = min(spec.num_sinks, spec.num_slots - 1)
    sinks = (held[..., None] == torch.arange(last_sink, device=held.device)).any(2)  # [B,Hkv,S]
    is_due = torch.arange(last_sink, device=held.device) < seen
    rules = {
        "as many tokens in every layer": num_seen != table.num_seen,
        "each token once": is_twice,
        "only tokens seen": held >= seen,
        "the newest token": (newest != seen - 1) & (seen > 0),
        "as many tokens as were seen, up to its slots": count != seen.clamp(max=spec.num_slots),
        "only finite scores": ~table.scores.isfinite(),
    }
    if spec.horizon is None and spec.num_sinks + spec.window < spec.num_slots:
        rules["its sinks"] = is_due & ~sinks
    for rule, is_broken in rules.items():
        if bool(is_broken.any()):
            raise IntegrityError(
                f"layer {spec.layer_idx} must hold {rule}, got a lane that does not"
            )
    for name, tensor in table.tensors().items():
        empty = -1 if name == "positions" else 0
        if bool((tensor[free] != empty).any()):
            raise IntegrityError(
                f"layer {spec.layer_idx} must hold nothing in a free lane, got {name} left there"
            )
