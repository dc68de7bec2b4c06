"""Qwen2 and Qwen2.5: biases on queries, keys and values; layers from max_window_layers slide."""

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
    return read_gated(
        settings,
        rope=lambda head_dim: read_rope(settings, head_dim),
        horizons=sliding_layers(
            settings,
            settings.integer("num_hidden_layers"),
            lambda layer: layer >= first,
            default_window=4096,
        ),
        has_qkv_bias=True,
    )


FAMILY = Family("qwen2", _read, "model.", "layers.{}.", GATED_TOP, GATED_LAYER)
