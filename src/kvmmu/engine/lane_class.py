"""LaneClass: how many lanes of which size and policy; declared when an engine starts."""

from __future__ import annotations

from dataclasses import dataclass

from kvmmu.budgets.base import Budget
from kvmmu.codecs.base import Codec
from kvmmu.engine.model import Transformer
from kvmmu.policies.base import Policy, is_count
from kvmmu.slots.pool import LanePool
from kvmmu.slots.settings import CacheOptions, Granularity, Positions
from kvmmu.slots.spec import ModelShape

__all__ = ["LaneClass", "shape_of"]


@dataclass(frozen=True)
class LaneClass:
    """`num_lanes` lanes of `num_slots` slots a layer and KV head, all of one policy.

    `name` is what a request asks for; `fused` names the kernel of a decode step, None for the
    fastest, "off" for the KV-MMU's separate kernels. The rest is as for a SlotCache, None stands
    for its defaults. Raises ValueError with what must hold, what was given and what to do.
    """

    name: str = "default"
    num_slots: int = 512
    num_lanes: int = 8
    policy: str | Policy = "rce"
    num_sinks: int | None = None
    window: int | None = None
    granularity: Granularity = "head"
    positions: Positions = "original"
    chunk_size: int | None = None
    budget: str | Budget = "uniform"
    codec: str | Codec = "plain"
    kernel: str | None = None
    fused: str | None = None
    allow_extrapolation: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name of a lane class must be a text, got {self.name!r}")
        if not is_count(self.num_lanes) or self.num_lanes < 1:
            raise ValueError(f"num_lanes must be an integer of at least 1, got {self.num_lanes!r}")
        self.settings()

    def settings(self) -> CacheOptions:
        """Look the parts up and check what can be checked without a model."""
        return CacheOptions.make(
            self.num_slots,
            None,
            self.policy,
            self.budget,
            self.codec,
            None,
            self.num_sinks,
            self.window,
            self.granularity,
            self.positions,
            self.chunk_size,
            self.kernel,
            allow_extrapolation=self.allow_extrapolation,
        )

    def make_pool(self, model: Transformer) -> LanePool:
        """Allocate the lanes for a model. Raises ValueError or CapacityError."""
        if self.positions == "original" and model.positions == "in_cache":
            raise ValueError(
                f"positions of lane class {self.name!r} must be 'in_cache' with a model loaded "
                "with positions='in_cache', got 'original'"
            )
        return LanePool(
            self.settings(),
            shape_of(model),
            num_lanes=self.num_lanes,
            scale=model.config.scale,
            rotary=[model.rotary(layer) for layer in range(model.config.num_layers)],
            fused=self.fused,
        )


def shape_of(model: Transformer) -> ModelShape:
    """Say what a pool of lanes must know of a model."""
    config = model.config
    return ModelShape(
        model_type=config.model_type,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        horizons=config.horizons,
        max_positions=config.num_positions,
        is_rotary=config.is_rotary,
        dtype=model.dtype,
        device=model.device,
    )
