"""What a cache of slots was asked for, checked once, and what it means for each layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from kvmmu.budgets.base import BUDGETS, Budget
from kvmmu.codecs.base import CODECS, Codec
from kvmmu.errors import CapacityError
from kvmmu.kernels import dispatch
from kvmmu.policies.base import POLICIES, Policy, is_count
from kvmmu.slots.spec import LayerSpec, ModelShape

__all__ = ["CacheOptions", "Granularity", "Positions"]

Granularity = Literal["head", "layer"]
Positions = Literal["original", "in_cache"]

DEFAULT_SINKS = 4
"""Attention sinks protected by default (StreamingLLM, arXiv:2309.17453, section 3)."""

MAX_CHUNK = 256
"""Largest default chunk T of a prefill: larger ones were no faster and cost more memory."""


@dataclass(frozen=True)
class CacheOptions:
    """The settings of a cache; None stands for a default that depends on C = num_slots.

    Raises ValueError with what must hold, what was given and what to do.
    """

    num_slots: int | None
    max_bytes: int | None
    policy: Policy
    budget: Budget
    codec: Codec
    num_sinks: int
    window_or_none: int | None
    granularity: Granularity
    positions: Positions
    chunk_or_none: int | None
    kernel: str | None
    allow_extrapolation: bool

    def __post_init__(self) -> None:
        if (self.num_slots is None) == (self.max_bytes is None):
            raise ValueError(
                "exactly one of num_slots and max_bytes must be given, "
                f"got num_slots={self.num_slots!r}, max_bytes={self.max_bytes!r}"
            )
        _one_of("granularity", self.granularity, ("head", "layer"))
        _one_of("positions", self.positions, ("original", "in_cache"))
        if not isinstance(self.allow_extrapolation, bool):
            raise ValueError(
                f"allow_extrapolation must be True or False, got {self.allow_extrapolation!r}"
            )
        dispatch.resolve(self.kernel)
        for name, value, least in (
            ("num_slots", self.num_slots, 1),
            ("max_bytes", self.max_bytes, 1),
            ("num_sinks", self.num_sinks, 0),
            ("window", self.window_or_none, 0),
            ("chunk_size", self.chunk_or_none, 1),
        ):
            if value is not None and (not is_count(value) or value < least):
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        if self.num_slots is not None and self.num_sinks + self.window >= self.num_slots:
            raise ValueError(
                f"num_slots must exceed num_sinks + window = {self.num_sinks + self.window}, "
                f"got {self.num_slots}; raise num_slots or lower num_sinks or window"
            )

    @classmethod
    def make(
        cls,
        num_slots: int | None,
        max_bytes: int | None,
        policy: str | Policy,
        budget: str | Budget,
        codec: str | Codec,
        merger: None,
        num_sinks: int | None,
        window: int | None,
        granularity: Granularity,
        positions: Positions,
        chunk_size: int | None,
        kernel: str | None,
        *,
        allow_extrapolation: bool,
    ) -> CacheOptions:
        """Look names up and check. Raises ValueError or TypeError."""
        if merger is not None:
            raise ValueError(f"merger must be None (no merger is registered), got {merger!r}")
        return cls(
            num_slots,
            max_bytes,
            POLICIES.make(policy),
            BUDGETS.make(budget),
            CODECS.make(codec),
            DEFAULT_SINKS if num_sinks is None else num_sinks,
            window,
            granularity,
            positions,
            chunk_size,
            kernel,
            allow_extrapolation,
        )

    @property
    def slots(self) -> int:
        """C, the slots per layer and KV head. Raises ValueError while only bytes are known."""
        if self.num_slots is None:
            raise ValueError(
                "num_slots is not known before the cache is bound (max_bytes is given)"
            )
        return self.num_slots

    @property
    def window(self) -> int:
        """Most recent tokens that never leave, the newest included; default max(1, C // 8)."""
        return max(1, self.slots // 8) if self.window_or_none is None else self.window_or_none

    @property
    def chunk_size(self) -> int:
        """Tokens T that a prefill attends to at once; default min(256, C)."""
        return min(MAX_CHUNK, self.slots) if self.chunk_or_none is None else self.chunk_or_none

    def fitted(self, shape: ModelShape, batch: int) -> CacheOptions:
        """Return these options for a model and rows, num_slots known. Raises CapacityError."""
        options = self
        if self.max_bytes is not None and self.num_slots is None:
            bytes_per_slot = (
                2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * shape.dtype.itemsize
            )
            num_slots = self.max_bytes // (bytes_per_slot * batch)
            if num_slots < 1:
                raise CapacityError(
                    f"max_bytes must hold one slot of {bytes_per_slot} bytes in each of {batch} "
                    f"rows, got {self.max_bytes}"
                )
            options = replace(self, num_slots=num_slots, max_bytes=None)
        most = self.policy.max_queries
        if most is not None and options.chunk_size > most:
            raise ValueError(
                f"chunk_size must be at most {most} with policy {self.policy.name!r} in integers, "
                f"got {options.chunk_size}"
            )
        limit = shape.max_positions
        if self.positions == "in_cache" and limit and options.slots + options.chunk_size > limit:
            raise CapacityError(
                f"num_slots + chunk_size must be at most the model's trained {limit} positions, "
                f"got {options.slots} + {options.chunk_size}; lower one of them"
            )
        return options

    def layer_specs(self, shape: ModelShape) -> list[LayerSpec]:
        """Settle every layer's rules; a sliding-window layer holds at most its window."""
        counts = self.budget.allocate(num_layers=shape.num_layers, num_slots=self.slots)
        return [
            LayerSpec(
                layer_idx=i,
                num_layers=shape.num_layers,
                num_slots=count if horizon is None else min(count, horizon),
                num_kv_heads=shape.num_kv_heads,
                group_size=shape.group_size,
                head_dim=shape.head_dim,
                num_sinks=self.num_sinks,
                window=self.window,
                chunk_size=self.chunk_size,
                granularity=self.granularity,
                horizon=horizon,
            )
            for i, (count, horizon) in enumerate(zip(counts, shape.horizons, strict=True))
        ]


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless value is one of allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
