"""Read a Hugging Face config.json as a ModelSpec: one reader for each model_type, all listed below.

Keys that a file leaves out take the value that transformers 5 gives them; where that would hide
a shape (KV heads of Mistral, head_dim of Qwen3) the key must be there. What the model of cost
cannot hold exactly is refused by name: sliding windows shorter than the positions, experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvmmu.accel.spec.model import ModelSpec
from kvmmu.accel.spec.sourced import parse_spec
from kvmmu.errors import SpecError
from kvmmu.registry import unknown_name

__all__ = ["list_model_types", "model_of_config"]

_EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_WINDOW_IS_OPT_IN = frozenset({"qwen2", "qwen3", "smollm3"})  # use_sliding_window: default false
_NEEDS_KV_HEADS = frozenset({"mistral", "qwen2", "qwen3", "smollm3"})


class _Config:
    """A config.json whose missing keys are named."""

    def __init__(self, values: Mapping[str, Any], file: str) -> None:
        self.values, self.file = values, file

    def need(self, key: str) -> Any:
        if self.values.get(key) is None:
            raise SpecError(f"{self.file}: {key} must be given for {self.get('model_type', None)}")
        return self.values[key]

    def get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value


def _llama_like(config: _Config) -> dict[str, Any]:
    """Rotary decoders with RMSNorm and a gated MLP."""
    kind = config.need("model_type")
    heads, hidden = config.need("num_attention_heads"), config.need("hidden_size")
    if kind in _NEEDS_KV_HEADS:
        kv_heads = config.need("num_key_value_heads")
    else:
        kv_heads = config.get("num_key_value_heads", heads)
    if kind == "qwen3":
        head_dim = config.need("head_dim")
    else:
        head_dim = config.get("head_dim", hidden // heads)
    bias = bool(config.get("attention_bias", False))
    qk_norm = {"qwen3": 2 * head_dim, "olmo2": (heads + kv_heads) * head_dim}
    return {
        "num_layers": config.need("num_hidden_layers"),
        "hidden_size": hidden,
        "intermediate_size": config.need("intermediate_size"),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "embedding_size": hidden,
        "is_gated_mlp": True,
        "num_norms_per_layer": 2,
        "num_norm_vectors": 1,
        "has_final_norm": True,
        "qk_norm_weights": qk_norm.get(kind, 0),
        "has_qkv_bias": kind == "qwen2" or bias,
        "has_o_bias": kind != "qwen2" and bias,
        "has_mlp_bias": bool(config.get("mlp_bias", False)),
        "has_tied_embeddings": config.get("tie_word_embeddings", kind == "smollm3"),
        "max_positions": config.need("max_position_embeddings"),
        "num_position_rows": 0,
    }


def _layer_norm_decoder(*, has_biases: bool = True) -> dict[str, Any]:
    """What GPT-2, OPT and GPT-NeoX share: LayerNorm with bias, plain MLP, biases."""
    return {
        "is_gated_mlp": False,
        "num_norms_per_layer": 2,
        "num_norm_vectors": 2,
        "has_final_norm": True,
        "qk_norm_weights": 0,
        "has_qkv_bias": has_biases,
        "has_o_bias": has_biases,
        "has_mlp_bias": has_biases,
        "num_position_rows": 0,
    }


def _gpt2(config: _Config) -> dict[str, Any]:
    hidden, heads = config.need("n_embd"), config.need("n_head")
    return _layer_norm_decoder() | {
        "num_layers": config.need("n_layer"),
        "hidden_size": hidden,
        "intermediate_size": config.get("n_inner", 4 * hidden),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": hidden // heads,
        "embedding_size": hidden,
        "has_tied_embeddings": config.get("tie_word_embeddings", True),
        "max_positions": config.need("n_positions"),
        "num_position_rows": config.need("n_positions"),
    }


def _opt(config: _Config) -> dict[str, Any]:
    hidden, heads = config.need("hidden_size"), config.need("num_attention_heads")
    is_before = config.get("do_layer_norm_before", True)
    has_affine = config.get("layer_norm_elementwise_affine", True)
    positions = config.need("max_position_embeddings")
    return _layer_norm_decoder(has_biases=config.get("enable_bias", True)) | {
        "num_layers": config.need("num_hidden_layers"),
        "hidden_size": hidden,
        "intermediate_size": config.need("ffn_dim"),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": hidden // heads,
        "embedding_size": config.get("word_embed_proj_dim", hidden),
        "num_norm_vectors": 2 if has_affine else 0,
        "has_final_norm": is_before and not config.get("_remove_final_layer_norm", False),
        "has_tied_embeddings": config.get("tie_word_embeddings", True),
        "max_positions": positions,
        "num_position_rows": positions + 2,  # OPT's table starts at row 2
    }


def _gpt_neox(config: _Config) -> dict[str, Any]:
    hidden, heads = config.need("hidden_size"), config.need("num_attention_heads")
    has_bias = config.get("attention_bias", True)
    return _layer_norm_decoder() | {
        "num_layers": config.need("num_hidden_layers"),
        "hidden_size": hidden,
        "intermediate_size": config.need("intermediate_size"),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": hidden // heads,
        "embedding_size": hidden,
        "has_qkv_bias": has_bias,
        "has_o_bias": has_bias,
        "has_tied_embeddings": config.get("tie_word_embeddings", False),
        "max_positions": config.need("max_position_embeddings"),
    }


_READERS: dict[str, Callable[[_Config], dict[str, Any]]] = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "llama": _llama_like,
    "mistral": _llama_like,
    "olmo2": _llama_like,
    "opt": _opt,
    "phi3": _llama_like,
    "qwen2": _llama_like,
    "qwen3": _llama_like,
    "smollm3": _llama_like,
}


def list_model_types() -> list[str]:
    """List the model_type values that can be read."""
    return sorted(_READERS)


def model_of_config(
    values: Mapping[str, Any], *, name: str, title: str, source: str, file: str
) -> ModelSpec:
    """Return the model a config.json describes. Raises SpecError by file, key and rule."""
    config = _Config(values, file)
    kind = config.need("model_type")
    if kind not in _READERS:
        raise SpecError(f"{file}: {unknown_name('model_type', kind, list_model_types())}")
    try:
        fields = _READERS[kind](config)
        _refuse_what_is_not_full_and_dense(config, kind, fields["max_positions"])
    except (TypeError, ZeroDivisionError) as error:
        raise SpecError(f"{file}: sizes must be positive whole numbers ({error})") from None
    named = {"name": name, "title": title, "source": source, "model_type": kind}
    return parse_spec(ModelSpec, fields | named | {"vocab_size": config.need("vocab_size")}, file)


def _refuse_what_is_not_full_and_dense(config: _Config, kind: str, max_positions: int) -> None:
    for key in _EXPERT_KEYS:
        if config.get(key, 0) > 1:
            raise SpecError(
                f"{config.file}: {key} must be absent (dense MLPs only), got {config.values[key]!r}"
            )
    window = config.get("sliding_window", None)
    is_used = config.get("use_sliding_window", kind not in _WINDOW_IS_OPT_IN)
    if window is not None and is_used and window < max_positions:
        raise SpecError(
            f"{config.file}: sliding_window must be null or at least max_positions = "
            f"{max_positions} (full attention only), got {window!r}"
        )
    others = sorted(set(config.get("layer_types", [])) - {"full_attention"})
    if others:
        raise SpecError(
            f"{config.file}: layer_types must be 'full_attention' throughout, got {others[0]!r}"
        )
