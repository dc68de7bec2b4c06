"""OLMo 2: norms after attention and MLP; queries and keys normed over their whole width."""

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
        norm_eps=1e-5,
        norm_place="post",
        qk_norm="width",
        has_qkv_bias=bias,
        has_out_bias=bias,
    )


FAMILY = Family(
    "olmo2",
    _read,
    "model.",
    "layers.{}.",
    GATED_TOP,
    GATED_LAYER
    | {
        "attn_norm": ("post_attention_layernorm.weight",),
        "mlp_norm": ("post_feedforward_layernorm.weight",),
    },
)
