"""GPT-2: learned positions, tanh-GELU, weights that the file holds as [in, out]."""

from __future__ import annotations

from kvmmu.engine.config import ModelConfig
from kvmmu.engine.families.family import Family, activation
from kvmmu.engine.families.settings import Settings

__all__ = ["FAMILY"]


def _read(settings: Settings) -> ModelConfig:
    hidden_size = settings.integer("n_embd")
    num_heads = settings.integer("n_head")
    num_layers = settings.integer("n_layer")
    if hidden_size % num_heads:
        raise settings.refusal(f"its width {hidden_size} is no multiple of {num_heads} heads")
    settings.expect("scale_attn_by_inverse_layer_idx", wanted=False)
    settings.get("reorder_and_upcast_attn")  # the order of two operations, in eager mode alone
    is_scaled = settings.flag("scale_attn_weights", default=True)
    head_dim = hidden_size // num_heads
    length = settings.integer("n_positions")
    return ModelConfig(
        model_type=settings.model_type,
        vocab_size=settings.integer("vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        intermediate_size=settings.integer("n_inner", 4 * hidden_size),
        max_positions=length,
        horizons=(None,) * num_layers,
        scale=head_dim**-0.5 if is_scaled else 1.0,
        eos_ids=settings.eos_ids(),
        rope=None,
        rotary_layers=(False,) * num_layers,
        norm_eps=settings.number("layer_norm_epsilon", 1e-5),
        norm="layer",
        activation=activation(settings, "activation_function", "gelu_new"),
        is_gated=False,
        has_qkv_bias=True,
        has_out_bias=True,
        has_mlp_bias=True,
        is_tied=settings.flag("tie_word_embeddings", default=True),
        position_limit=length,
    )


FAMILY = Family(
    "gpt2",
    _read,
    "transformer.",
    "h.{}.",
    {
        "embed": "wte.weight",
        "positions": "wpe.weight",
        "final_norm": "ln_f.weight",
        "final_norm_bias": "ln_f.bias",
    },
    {
        "attn_norm": ("ln_1.weight",),
        "attn_norm_bias": ("ln_1.bias",),
        "qkv": ("attn.c_attn.weight",),
        "qkv_bias": ("attn.c_attn.bias",),
        "out": ("attn.c_proj.weight",),
        "out_bias": ("attn.c_proj.bias",),
        "mlp_norm": ("ln_2.weight",),
        "mlp_norm_bias": ("ln_2.bias",),
        "up": ("mlp.c_fc.weight",),
        "up_bias": ("mlp.c_fc.bias",),
        "down": ("mlp.c_proj.weight",),
        "down_bias": ("mlp.c_proj.bias",),
    },
    transposed=frozenset({"qkv", "out", "up", "down"}),
    ignored=(".attn.bias", ".attn.masked_bias"),
)
