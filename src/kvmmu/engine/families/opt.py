"""OPT: learned positions from row 2 on, biases everywhere, no gate."""

from __future__ import annotations

from kvmmu.engine.config import ModelConfig
from kvmmu.engine.families.family import Family, activation
from kvmmu.engine.families.settings import Settings

__all__ = ["FAMILY"]


def _read(settings: Settings) -> ModelConfig:
    hidden_size = settings.integer("hidden_size")
    num_heads = settings.integer("num_attention_heads")
    num_layers = settings.integer("num_hidden_layers")
    if hidden_size % num_heads:
        raise settings.refusal(f"its width {hidden_size} is no multiple of {num_heads} heads")
    settings.expect("word_embed_proj_dim", hidden_size)  # opt-350m projects its embeddings
    settings.expect("do_layer_norm_before", wanted=True)  # and norms after each block
    settings.expect("_remove_final_layer_norm", wanted=False)
    settings.expect("layer_norm_elementwise_affine", wanted=True)
    bias = settings.flag("enable_bias", default=True)
    ffn_dim = settings.integer("ffn_dim")
    settings.get("intermediate_size")  # written by some versions beside ffn_dim, never read
    head_dim = hidden_size // num_heads
    length = settings.integer("max_position_embeddings")
    return ModelConfig(
        model_type=settings.model_type,
        vocab_size=settings.integer("vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        intermediate_size=ffn_dim,
        max_positions=length,
        horizons=(None,) * num_layers,
        scale=head_dim**-0.5,
        eos_ids=settings.eos_ids(),
        rope=None,
        rotary_layers=(False,) * num_layers,
        norm_eps=1e-5,
        norm="layer",
        activation=activation(settings, "activation_function", "relu"),
        is_gated=False,
        has_qkv_bias=bias,
        has_out_bias=bias,
        has_mlp_bias=bias,
        is_tied=settings.flag("tie_word_embeddings", default=True),
        position_offset=2,
        position_limit=length,
    )


FAMILY = Family(
    "opt",
    _read,
    "model.decoder.",
    "layers.{}.",
    {
        "embed": "embed_tokens.weight",
        "positions": "embed_positions.weight",
        "final_norm": "final_layer_norm.weight",
        "final_norm_bias": "final_layer_norm.bias",
    },
    {
        "attn_norm": ("self_attn_layer_norm.weight",),
        "attn_norm_bias": ("self_attn_layer_norm.bias",),
        "qkv": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
        "qkv_bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
        "out": ("self_attn.out_proj.weight",),
        "out_bias": ("self_attn.out_proj.bias",),
        "mlp_norm": ("final_layer_norm.weight",),
        "mlp_norm_bias": ("final_layer_norm.bias",),
        "up": ("fc1.weight",),
        "up_bias": ("fc1.bias",),
        "down": ("fc2.weight",),
        "down_bias": ("fc2.bias",),
    },
)
