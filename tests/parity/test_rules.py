"""A model's own attention rules hold, shown where they matter: without the rule, all differs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import full, make, ours, prompt, worst
from transformers import DynamicCache, PreTrainedModel

import kvmmu

ATOL = 1e-5  # fp32, sums in another order
VISIBLE = 0.05  # logits lie within +-3


def _check(model: PreTrainedModel, without: PreTrainedModel) -> None:
    """Compare with the model, and the model with one that lacks the rule."""
    ids, mask = prompt()
    # A DynamicCache without a configuration keeps everything and leaves windows to the mask:
    # transformers 5.23's DynamicSlidingWindowLayer is wrong for a window of 1 (it cuts at -0).
    want = full(model, ids, attention_mask=mask, past_key_values=DynamicCache())
    lacks = full(without, ids, attention_mask=mask)
    assert float((want.logits[0] - lacks.logits[0]).abs().max()) > VISIBLE, "the rule must matter"
    for settings in ({}, {"chunk_size": 7}, {"positions": "in_cache"}):
        if model.config.model_type == "gemma3_text" and "positions" in settings:
            continue
        cache = kvmmu.SlotCache.for_model(model, 64, **settings)
        got = ours(model, cache, ids, attention_mask=mask)
        assert torch.equal(got.sequences, want.sequences)
        assert worst(got.logits, want.logits) < ATOL


@pytest.mark.parametrize("cap", [1.0, 5.0])
def test_softcap_holds_where_logits_are_large(cap: float) -> None:
    _check(make("gemma2", attn_logit_softcapping=cap), make("gemma2", attn_logit_softcapping=None))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mistral_window", {"sliding_window": None}),
        ("phi3_window", {"sliding_window": None}),
        ("mixtral", {"sliding_window": None}),
        ("qwen2_window", {"layer_types": ["full_attention", "full_attention"]}),
        ("gemma2", {"layer_types": ["full_attention", "full_attention"]}),
        ("gemma3", {"sliding_window": 512}),
        ("gpt_oss", {"layer_types": ["full_attention", "full_attention"]}),
    ],
)
def test_sliding_window_shorter_than_the_text_holds(name: str, changes: dict[str, Any]) -> None:
    _check(make(name), make(name, **changes))


@pytest.mark.parametrize("window", [1, 2, 5])
def test_narrow_sliding_windows_hold(window: int) -> None:
    model = make("mistral", sliding_window=window)
    _check(model, make("mistral", sliding_window=None))


@pytest.mark.parametrize("logit", [3.0, 30.0])
def test_learned_sinks_hold_where_they_are_large(logit: float) -> None:
    model, without = make("gpt_oss"), make("gpt_oss")
    for layer in model.model.layers:
        layer.self_attn.sinks.data.copy_(torch.linspace(logit - 2, logit, 4))
    for layer in without.model.layers:
        layer.self_attn.sinks.data.fill_(-100.0)
    _check(model, without)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
            "rope_theta": 1e4,
        },
        {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 64,
            "rope_theta": 1e4,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_rope_scalings_hold(rope: dict[str, Any]) -> None:
    _check(make("llama", rope_parameters=rope), make("llama"))


def test_layers_without_position_embedding_hold() -> None:
    _check(make("smollm3", no_rope_layers=[1, 0]), make("smollm3", no_rope_layers=[1, 1]))


def test_an_evicting_sliding_window_layer_never_sees_beyond_its_window() -> None:
    """C < window < text: what layer 0 holds lies within the window, whatever is evicted."""
    model = make("mistral", sliding_window=12, num_hidden_layers=1)
    cache = kvmmu.SlotCache.for_model(model, 16, num_sinks=2, window=4)
    ids, mask = prompt(60)
    ours(model, cache, ids, attention_mask=mask, max_new_tokens=10)
    held = cache.positions(0)
    newest = cache.mmus[0].table.num_seen[:, None, None] - 1
    assert held.shape[-1] == 12
    assert bool((held > newest - 12).all())
