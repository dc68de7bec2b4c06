"""Tiny models for the engine's tests, and what the library makes of a prompt."""

from __future__ import annotations

import functools

import torch
from transformers import AutoModelForCausalLM

import kvmmu
from kvmmu.engine.config import ModelConfig, RopeSpec
from kvmmu.engine.model import Transformer
from kvmmu.hf.load import model_path

SHIPPED = "kvmmu-ref-1m"
VOCAB = 61
EOS = 60


def tiny_config(**changes) -> ModelConfig:
    """Two layers, 4 query heads on 2 KV heads, the second layer sliding."""
    fields = {
        "model_type": "mistral",
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "max_positions": 200,
        "horizons": (None, 10),
        "scale": 8**-0.5,
        "eos_ids": (EOS,),
        "rope": RopeSpec("default", 10000.0, 8),
        "rotary_layers": (True, True),
        "norm_eps": 1e-5,
    }
    return ModelConfig(**(fields | changes))


@functools.cache
def tiny(seed: int = 0) -> Transformer:
    """A random model, wide enough awake that its tokens differ."""
    return Transformer.random(tiny_config(), seed, backend="torch")


@functools.cache
def shipped() -> Transformer:
    """The engine's form of the smallest shipped model."""
    return Transformer.load(model_path(SHIPPED), backend="torch")


@functools.cache
def shipped_native() -> Transformer:
    """The same on the CPU's own kernels."""
    return Transformer.load(model_path(SHIPPED), backend="native")


@functools.cache
def shipped_in_transformers():
    """The same model in transformers."""
    return AutoModelForCausalLM.from_pretrained(model_path(SHIPPED), dtype=torch.float32).eval()


def by_the_library(prompt, num_slots, max_new_tokens, **parts) -> list[int]:
    """What the library's generate() continues a prompt with; num_slots None is a full cache."""
    model = shipped_in_transformers()
    options = {"max_new_tokens": max_new_tokens, "do_sample": False, "eos_token_id": None}
    options |= {"attention_mask": torch.ones(1, len(prompt), dtype=torch.int64)}
    ids = torch.tensor([list(prompt)])
    if num_slots is None:
        made = model.generate(ids, **options)
    else:
        cache = kvmmu.SlotCache.for_model(model, num_slots, **parts)
        chunk = {"prefill_chunk_size": cache.prefill_chunk_size}
        with kvmmu.enabled(model):
            made = model.generate(ids, past_key_values=cache, **options, **chunk)
    return made[0, len(prompt) :].tolist()
