"""Qwen3, the dense ones: each query and key head is normed before it turns."""

from __future__ import annotations

from kvmmu.engine.config import ModelConfig
from kvmmu.engine.families.family import (
    GATED_LAYER,
    GATED_TOP,
    Family,
    read_gated,
    sliding_layers,
)
from kvmmu.engine.families.rotary import read_rope
from kvmmu.engine.families.settings import Settings

__all__ = ["FAMILY"]


def _read(settings: Settings) -> ModelConfig:
    first = settings.get("max_window_layers", 28)
    bias = settings.flag("attention_bias", default=False)
    return read_gated(
        settings,
        rope=lambda head_dim: read_rope(settings, head_dim),
        horizons=sliding_layers(
            settings,
            settings.integer("num_hidden_layers"),
            lambda layer: layer >= first,
            default_window=4096,
        ),
        head_dim=128,
        qk_norm="head",
        has_qkv_bias=bias,
        has_out_bias=bias,
    )


FAMILY = Family("qwen3", _read, "model.", "layers.{}.", GATED_TOP, GATED_LAYER)
