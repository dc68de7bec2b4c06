"""What kvmmu needs to know of a model, or the one line that says why it is refused."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from kvmmu.errors import UnsupportedModelError
from kvmmu.slots.spec import ModelShape

__all__ = ["ModelShape", "describe"]

_FULL, _SLIDING = "full_attention", "sliding_attention"


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """Return the module that runs the layers and receives the cache."""
    decoder = model.get_decoder()
    return model.base_model if decoder is None else decoder


def describe(model: PreTrainedModel) -> ModelShape:
    """Read a model's shape. Raises UnsupportedModelError with the reason if it cannot be exact."""
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a transformers PreTrainedModel, got {type(model).__name__}")
    config: Any = model.config.get_text_config(decoder=True)
    kind = config.model_type
    _refuse(kind, model, config)
    num_heads = config.num_attention_heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    weight = next(decoder_of(model).parameters())
    return ModelShape(
        model_type=kind,
        num_layers=config.num_hidden_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        horizons=_horizons(kind, config),
        max_positions=getattr(config, "max_position_embeddings", None),
        is_rotary=hasattr(decoder_of(model), "rotary_emb"),
        dtype=model.dtype,
        device=weight.device,
    )


def _refuse(kind: str, model: PreTrainedModel, config: Any) -> None:
    """Raise UnsupportedModelError for what the KV-MMU cannot do exactly."""
    if model.config.is_encoder_decoder:
        raise _unsupported(kind, "is an encoder-decoder; kvmmu caches decoder-only models")
    if getattr(config, "kv_lora_rank", None):
        raise _unsupported(
            kind, "uses multi-head latent attention (MLA): keys and values differ in width"
        )
    if not model._supports_attention_backend:
        raise _unsupported(kind, "does not use transformers' attention interface")
    attends_ahead = any(  # an encoder's layers, or a decoder told to see what follows
        getattr(module, "is_causal", True) is False and hasattr(module, "layer_idx")
        for module in decoder_of(model).modules()
    )
    if attends_ahead or not getattr(config, "is_causal", True):
        raise _unsupported(kind, "attends in both directions")
    devices = {p.device for p in model.parameters()}
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise _unsupported(kind, f"is spread over devices ({names}); load it on one")
    if getattr(config, "num_attention_heads", None) is None:
        raise _unsupported(kind, "names no num_attention_heads in its configuration")
    if getattr(config, "kv_sharing_modes", None) or getattr(config, "num_kv_shared_layers", None):
        raise _unsupported(kind, "shares K and V between layers")


def _horizons(kind: str, config: Any) -> tuple[int | None, ...]:
    """Read each layer's sliding window. Raises UnsupportedModelError for other kinds of layer."""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is None:
        if getattr(config, "attention_chunk_size", None):
            raise _unsupported(kind, "has layers of kind 'chunked_attention'")
        types = [_SLIDING if window else _FULL] * config.num_hidden_layers
    other = sorted(set(types) - {_FULL, _SLIDING})
    if other:
        raise _unsupported(kind, f"has layers of kind {', '.join(map(repr, other))}")
    return tuple(window if layer == _SLIDING else None for layer in types)


def _unsupported(kind: str, why: str) -> UnsupportedModelError:
    """Word a refusal."""
    return UnsupportedModelError(f"model type {kind!r} is not supported: it {why}")
