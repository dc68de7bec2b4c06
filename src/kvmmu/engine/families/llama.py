"""Llama 2 and 3: what the other families are measured against."""

from __future__ import annotations

from kvmmu.engine.config import ModelConfig
from kvmmu.engine.families.family import GATED_LAYER, GATED_TOP, Family, read_gated
from kvmmu.engine.families.rotary import read_rope
from kvmmu.engine.families.settings import Settings

__all__ = ["FAMILY"]


def _read(settings: Settings) -> ModelConfig:
    bias = settings.flag("attention_bias", default=False)
    return read_gated(
        settings,
        rope=lambda head_dim: read_rope(settings, head_dim),
        has_qkv_bias=bias,
        has_out_bias=bias,
        has_mlp_bias=settings.flag("mlp_bias", default=False),
    )


FAMILY = Family("llama", _read, "model.", "layers.{}.", GATED_TOP, GATED_LAYER)
