"""What a family is: how its configuration is read and what its tensors are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvmmu.engine.config import ModelConfig, RopeSpec
from kvmmu.engine.families.settings import Settings

__all__ = ["GATED_LAYER", "GATED_TOP", "Family", "activation", "read_gated", "sliding_layers"]


@dataclass(frozen=True)
class Family:
    """One model_type. `top` and `layer` map the engine's tensors to the checkpoint's.

    A fused tensor names its parts, in the order of its rows. Names are relative to `prefix`, and
    to `layers` with the layer's number in it; a checkpoint of the decoder alone may leave the
    first part of the prefix out. `head` is the full name of the output's weight. transposed
    names the engine's tensors that the file holds as [in, out]; ignored are ends of names of
    buffers that old checkpoints carry.
    """

    model_type: str
    read: Callable[[Settings], ModelConfig]
    prefix: str
    layers: str
    top: Mapping[str, str]
    layer: Mapping[str, tuple[str, ...]]
    head: str = "lm_head.weight"
    transposed: frozenset[str] = field(default_factory=frozenset)
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)


GATED_TOP = {"embed": "embed_tokens.weight", "final_norm": "norm.weight"}
GATED_LAYER = {
    "attn_norm": ("input_layernorm.weight",),
    "qkv": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "qkv_bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
    "q_norm": ("self_attn.q_norm.weight",),
    "k_norm": ("self_attn.k_norm.weight",),
    "out": ("self_attn.o_proj.weight",),
    "out_bias": ("self_attn.o_proj.bias",),
    "mlp_norm": ("post_attention_layernorm.weight",),
    "up": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "up_bias": ("mlp.gate_proj.bias", "mlp.up_proj.bias"),
    "down": ("mlp.down_proj.weight",),
    "down_bias": ("mlp.down_proj.bias",),
}
"""Names that Llama gave and that most families kept."""

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def activation(settings: Settings, key: str, default: str) -> Any:
    """Read the name of the MLP's activation. Raises UnsupportedModelError for an unknown one."""
    name = settings.get(key, default)
    if name not in _ACTIVATIONS:
        raise settings.refusal(f"its {key} is {name!r}, the engine knows {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def sliding_layers(
    settings: Settings,
    num_layers: int,
    default: Callable[[int], bool],
    *,
    default_window: int | None = None,
) -> tuple[int | None, ...]:
    """Read the windows of a family with `use_sliding_window` and `layer_types`.

    default(layer) tells which layers slide if the configuration lists none; default_window is
    what the family takes if the key is absent.
    """
    window = settings.window("sliding_window", default_window)
    slides = settings.flag("use_sliding_window", default=False) and window is not None
    types = settings.get("layer_types")
    if types is None:
        types = [
            "sliding_attention" if slides and default(i) else "full_attention"
            for i in range(num_layers)
        ]
    other = sorted(set(map(str, types)) - {"full_attention", "sliding_attention"})
    if other:
        raise settings.refusal(f"it has layers of kind {', '.join(map(repr, other))}")
    if len(types) != num_layers:
        raise settings.refusal(f"its layer_types are {len(types)} for {num_layers} layers")
    if "sliding_attention" in types and not slides:
        raise settings.refusal("its layer_types slide while use_sliding_window is false")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def read_gated(
    settings: Settings,
    *,
    rope: Callable[[int], RopeSpec],
    horizons: tuple[int | None, ...] | None = None,
    rotary_layers: tuple[bool, ...] | None = None,
    head_dim: int | None = None,
    norm_eps: float = 1e-6,
    is_tied: bool = False,
    **special: Any,
) -> ModelConfig:
    """Read what Llama's descendants share; `special` are further fields of ModelConfig."""
    num_layers = settings.integer("num_hidden_layers")
    num_heads = settings.integer("num_attention_heads")
    hidden_size = settings.integer("hidden_size")
    head_dim = settings.integer("head_dim", head_dim or hidden_size // num_heads)
    num_kv_heads = settings.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise settings.refusal(f"its {num_heads} heads cannot share {num_kv_heads} KV heads evenly")
    return ModelConfig(
        model_type=settings.model_type,
        vocab_size=settings.integer("vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=settings.integer("intermediate_size"),
        max_positions=settings.integer("max_position_embeddings"),
        horizons=horizons or (None,) * num_layers,
        scale=head_dim**-0.5,
        eos_ids=settings.eos_ids(),
        rope=rope(head_dim),
        rotary_layers=rotary_layers or (True,) * num_layers,
        norm_eps=settings.number("rms_norm_eps", norm_eps),
        activation=activation(settings, "hidden_act", "silu"),
        is_tied=settings.flag("tie_word_embeddings", default=is_tied),
        **special,
    )
