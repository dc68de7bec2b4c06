"""Phi-3 and Phi-4-mini: fused in the file already; a part of a head may turn; LongRoPE.

LongRoPE's angles change once a text passes the original length. The engine computes the short
ones and refuses positions past it (position_limit), rather than change a text's angles midway.
"""

from __future__ import annotations

from dataclasses import replace

from kvmmu.engine.config import ModelConfig
from kvmmu.engine.families.family import GATED_LAYER, GATED_TOP, Family, read_gated
from kvmmu.engine.families.rotary import read_rope
from kvmmu.engine.families.settings import Settings

__all__ = ["FAMILY"]


def _read(settings: Settings) -> ModelConfig:
    window = settings.window("sliding_window")
    original = settings.integer("original_max_position_embeddings", 4096)
    settings.expect("attention_bias", wanted=False)
    config = read_gated(
        settings,
        rope=lambda head_dim: read_rope(
            settings,
            head_dim,
            can_be_partial=True,
            original_length=original,
            aliases={"su": "longrope", "yarn": "longrope"},
        ),
        horizons=(window,) * settings.integer("num_hidden_layers"),
        norm_eps=1e-5,
    )
    is_long = config.rope is not None and config.rope.kind == "longrope"
    return replace(config, position_limit=original) if is_long else config


FAMILY = Family(
    "phi3",
    _read,
    "model.",
    "layers.{}.",
    GATED_TOP,
    GATED_LAYER | {"qkv": ("self_attn.qkv_proj.weight",), "up": ("mlp.gate_up_proj.weight",)},
)
