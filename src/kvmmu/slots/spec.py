"""What a model and a layer's KV-MMU are: said once at binding and at each call; who watches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from kvmmu.codecs.base import Rows
from kvmmu.kernels.contract import AttendSpec
from kvmmu.policies.base import Seen

__all__ = ["Call", "LayerSpec", "ModelShape", "Observer", "Rotary"]

Rotary = Callable[[Tensor, Tensor], Tensor]
"""Rotate x [B,H,N,D] by int index [B,H,N] positions; a negative index turns back."""


@dataclass(frozen=True)
class ModelShape:
    """Shape of a decoder: horizons[l] is layer l's sliding window, None for full attention.

    max_positions is the trained length in tokens, None if the configuration names none.
    """

    model_type: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    horizons: tuple[int | None, ...]
    max_positions: int | None
    is_rotary: bool
    dtype: torch.dtype
    device: torch.device

    @property
    def group_size(self) -> int:
        """Query heads of a KV head."""
        return self.num_heads // self.num_kv_heads


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


@dataclass(frozen=True)
class Call:
    """One call's circumstances. valid bool [B,Q] or None = all; index int [B,Q] RoPE places.

    sinks [Hq] are the model's learned sink logits, not the KV-MMU's sink tokens. start counts the
    columns before the first new one, pads included: no row has seen more tokens than that.
    """

    attend: AttendSpec
    valid: Tensor | None = None
    sinks: Tensor | None = None
    index: Tensor | None = None
    start: int = 0

    def cut(self, a: int, b: int) -> Call:
        """Return the circumstances of new tokens [a, b)."""
        valid = None if self.valid is None else self.valid[:, a:b]
        index = None if self.index is None else self.index[:, a:b]
        return replace(self, valid=valid, index=index, start=self.start + a)


class Observer(Protocol):
    """What wants to know of every replacement; it must not change what it is shown."""

    def decode(
        self, layer_idx: int, slots: Tensor, evicted: Tensor, valid: Tensor | None, seen: Seen
    ) -> None:
        """See a decode: slots, evicted positions [B,Hkv] (-1 = was empty), valid [B] or None."""
        ...

    def chunk(
        self, layer_idx: int, at: Rows, evicted: Tensor, came: Tensor, valid: Tensor, seen: Seen
    ) -> None:
        """See a chunk: R writes `at`, positions that left and came [R], valid bool [B,T]."""
        ...
