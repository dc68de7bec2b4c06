"""Mistral: Llama with one sliding window for all layers."""

from __future__ import annotations

from kvmmu.engine.config import ModelConfig
from kvmmu.engine.families.family import GATED_LAYER, GATED_TOP, Family, read_gated
from kvmmu.engine.families.rotary import read_rope
from kvmmu.engine.families.settings import Settings

__all__ = ["FAMILY"]


def _read(settings: Settings) -> ModelConfig:
    window = settings.window("sliding_window", 4096)
    return read_gated(
        settings,
        rope=lambda head_dim: read_rope(settings, head_dim),
        horizons=(window,) * settings.integer("num_hidden_layers"),
    )


FAMILY = Family("mistral", _read, "model.", "layers.{}.", GATED_TOP, GATED_LAYER)
