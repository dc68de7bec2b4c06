"""Tiny models with random weights, built from a configuration; prompts; the full cache's answer.

`make(name)` builds a model of FAMILIES whose attention is sharp: the query projection is scaled
so that probabilities are far from uniform. A cache that forgets a rule of the model (a window,
a softcap, a learned sink) then differs visibly, and tests say so.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

import kvmmu

__all__ = [
    "FAMILIES",
    "IN_CACHE",
    "NOT_IN_CACHE",
    "drive",
    "full",
    "generate",
    "make",
    "ours",
    "prompt",
    "sharpen",
    "shared",
    "worst",
]

VOCAB = 96
SHARP = 16.0
_BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_MHA = {"num_key_value_heads": None, "head_dim": None}  # None: the family has no such setting
_MIXED = {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_1_to_1": ("llama", {"num_key_value_heads": 4}),
    "llama_4_to_1": ("llama", {"num_key_value_heads": 1}),
    "llama_8_to_1": ("llama", {"num_attention_heads": 8, "num_key_value_heads": 1}),
    "llama_rope_linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "llama_rope_llama3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_theta": 1e4,
            }
        },
    ),
    "llama_rope_yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 8.0,
                "original_max_position_embeddings": 64,
                "rope_theta": 1e4,
            }
        },
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral_window": ("mistral", {"sliding_window": 24}),
    "qwen2": ("qwen2", {}),
    "qwen2_window": ("qwen2", {"use_sliding_window": True} | _MIXED),
    "qwen3": ("qwen3", {}),
    "phi3": ("phi3", {"sliding_window": None}),
    "phi3_window": ("phi3", {"sliding_window": 24}),
    "phi3_partial": ("phi3", {"partial_rotary_factor": 0.5}),
    "olmo2": ("olmo2", {}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0]}),
    "gpt2": ("gpt2", {}),
    "opt": ("opt", {"ffn_dim": 96, "word_embed_proj_dim": 64} | _MHA),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.5} | _MHA),
    "mixtral": ("mixtral", {"sliding_window": 24, "num_local_experts": 4}),
    "gemma2": ("gemma2", _MIXED | {"query_pre_attn_scalar": 16}),
    "gemma3": ("gemma3_text", _MIXED | {"query_pre_attn_scalar": 16}),
    "gpt_oss": ("gpt_oss", {"num_local_experts": 4} | _MIXED),
}
NOT_IN_CACHE = ("gpt2", "opt", "gemma3")
IN_CACHE = tuple(name for name in FAMILIES if name not in NOT_IN_CACHE)


def make(name: str, *, sharp: float = SHARP, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Build a family's tiny model in eval mode; `changes` go to its configuration."""
    kind, own = FAMILIES.get(name, (name, {}))
    settings = _BASE | own | changes
    for key in _MHA:
        if settings[key] is None:
            del settings[key]
    if kind == "gpt2":
        settings = {
            "vocab_size": VOCAB,
            "n_embd": 64,
            "n_layer": settings["num_hidden_layers"],
            "n_head": 4,
            "n_positions": settings["max_position_embeddings"],
            "pad_token_id": 0,
            "eos_token_id": None,
            "bos_token_id": None,
        }
    if kind == "gpt_oss":
        settings.setdefault(
            "rope_parameters",
            {
                "rope_type": "yarn",
                "factor": 8.0,
                "original_max_position_embeddings": 64,
                "rope_theta": 1e4,
            },
        )
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(3.0)
    sharpen(model, sharp)
    model.generation_config.pad_token_id = 0
    return model


@functools.cache
def shared(name: str) -> PreTrainedModel:
    """Return one model for all tests that leave it as it was."""
    return make(name)


def sharpen(model: PreTrainedModel, factor: float) -> None:
    """Scale what makes the attention logits, so that probabilities are far from uniform."""
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        tail = ".".join(name.split(".")[-2:])
        if tail == "q_norm.weight":
            is_shifted = not bool(parameter.any())  # gemma3 multiplies by 1 + weight
            least = factor / 4  # normed queries are longer than random ones to begin with
            parameter.data.copy_(parameter * least + (least - 1 if is_shifted else 0))
        elif tail == "q_proj.weight" and name.replace("q_proj", "q_norm") not in parameters:
            parameter.data.mul_(factor)
        elif tail in ("qkv_proj.weight", "query_key_value.weight", "c_attn.weight"):
            parameter.data.mul_(factor**0.5)  # queries, keys and values in one


def prompt(
    length: int = 40, pads: Sequence[int] = (0, 7, 15), *, seed: int = 3
) -> tuple[Tensor, Tensor]:
    """Make one left-padded row per entry of `pads`. -> ids, mask int64 [B,length]."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (len(pads), length), generator=generator)
    mask = torch.ones_like(ids)
    for row, pad in enumerate(pads):
        ids[row, :pad] = 0
        mask[row, :pad] = 0
    return ids, mask


def generate(model: PreTrainedModel, ids: Tensor | None, **settings: Any) -> Any:
    """Run generate(), greedy and with logits unless `settings` say otherwise."""
    settings = {
        "max_new_tokens": 24,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    } | settings
    if ids is not None:
        settings["input_ids"] = ids
    return model.generate(**settings)


def full(model: PreTrainedModel, ids: Tensor | None, **settings: Any) -> Any:
    """Generate with the model's own eager attention and a DynamicCache."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        cache = DynamicCache(config=model.config)
        return generate(model, ids, **{"past_key_values": cache} | settings)
    finally:
        model.set_attn_implementation(before)


def ours(
    model: PreTrainedModel, cache: kvmmu.SlotCache, ids: Tensor | None, **settings: Any
) -> Any:
    """Generate with a SlotCache."""
    with kvmmu.enabled(model):
        return generate(model, ids, past_key_values=cache, **settings)


def drive(
    model: PreTrainedModel, cache: kvmmu.SlotCache, ids: Tensor, *, sizes: Sequence[int]
) -> Tensor:
    """Feed a batch without padding in calls of the given sizes. -> logits [B,S,V]."""
    assert sum(sizes) == ids.shape[1]
    logits = []
    with kvmmu.enabled(model), torch.no_grad():
        for piece in ids.split(list(sizes), dim=1):
            logits.append(model(piece, past_key_values=cache).logits)
    return torch.cat(logits, dim=1)


def worst(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Return the largest absolute difference between two lists of tensors."""
    assert len(a) == len(b)
    return max(float((x - y).abs().max()) for x, y in zip(a, b))
