"""SmolLM3: every fourth layer does not turn, and may slide."""

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
    num_layers = settings.integer("num_hidden_layers")
    every = settings.integer("no_rope_layer_interval", 4)
    given = settings.get("no_rope_layers", [int((i + 1) % every != 0) for i in range(num_layers)])
    if len(given) < num_layers:
        raise settings.refusal(f"its no_rope_layers are {len(given)} for {num_layers} layers")
    turns = tuple(bool(turn) for turn in given[:num_layers])
    bias = settings.flag("attention_bias", default=False)
    return read_gated(
        settings,
        rope=lambda head_dim: read_rope(settings, head_dim, theta=2_000_000.0),
        horizons=sliding_layers(settings, num_layers, lambda layer: not turns[layer]),
        rotary_layers=turns,
        has_qkv_bias=bias,
        has_out_bias=bias,
        has_mlp_bias=settings.flag("mlp_bias", default=False),
        is_tied=True,
    )


FAMILY = Family("smollm3", _read, "model.", "layers.{}.", GATED_TOP, GATED_LAYER)
