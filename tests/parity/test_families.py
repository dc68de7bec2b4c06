"""C >= length: the answer is the full cache's, for every supported family, through generate()."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, IN_CACHE, NOT_IN_CACHE, full, make, ours, prompt, shared, worst

import kvmmu

# fp32: sums in another order. The models' logits lie within +-3.
ATOL = 1e-5
LENGTH, NEW = 40, 24
HOW = {
    "prompt whole": (None, None),
    "generate's chunks of 16": (16, None),
    "the cache's chunks of 7": (None, 7),
    "token by token": (1, None),
}


@functools.cache
def _reference(name: str) -> Any:
    ids, mask = prompt(LENGTH)
    return full(shared(name), ids, attention_mask=mask, max_new_tokens=NEW)


def _cache(name: str, **settings: Any) -> kvmmu.SlotCache:
    return kvmmu.SlotCache.for_model(shared(name), LENGTH + NEW, **settings)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_tokens_equal_the_full_cache(name: str, how: str) -> None:
    prefill_chunk_size, chunk_size = HOW[how]
    ids, mask = prompt(LENGTH)
    want = _reference(name)
    cache = _cache(name, chunk_size=chunk_size)
    got = ours(
        shared(name),
        cache,
        ids,
        attention_mask=mask,
        max_new_tokens=NEW,
        prefill_chunk_size=prefill_chunk_size,
    )
    assert torch.equal(got.sequences, want.sequences)
    assert worst(got.logits, want.logits) < ATOL
    cache.check_integrity()


@pytest.mark.parametrize("how", ["prompt whole", "generate's chunks of 16"])
@pytest.mark.parametrize("name", IN_CACHE)
def test_keys_numbered_in_cache_equal_the_full_cache(name: str, how: str) -> None:
    prefill_chunk_size, _ = HOW[how]
    ids, mask = prompt(LENGTH)
    want = _reference(name)
    got = ours(
        shared(name),
        _cache(name, positions="in_cache"),
        ids,
        attention_mask=mask,
        max_new_tokens=NEW,
        prefill_chunk_size=prefill_chunk_size,
    )
    assert torch.equal(got.sequences, want.sequences)
    assert worst(got.logits, want.logits) < ATOL


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gpt2", "'gpt2': it has no rotary embedding"),
        ("opt", "'opt': it has no rotary embedding"),
        ("gemma3", "'gemma3_text': it has other angles in its sliding-window layers"),
    ],
)
def test_families_that_cannot_be_renumbered_are_refused_by_name(name: str, why: str) -> None:
    assert name in NOT_IN_CACHE
    with pytest.raises(kvmmu.UnsupportedModelError, match=why):
        _cache(name, positions="in_cache")


@pytest.mark.parametrize("policy", kvmmu.list_policies())
def test_every_policy_equals_the_full_cache_while_it_fits(policy: str) -> None:
    ids, mask = prompt(LENGTH)
    want = _reference("llama")
    for positions in ("original", "in_cache"):
        for granularity in ("head", "layer"):
            cache = _cache("llama", policy=policy, positions=positions, granularity=granularity)
            got = ours(shared("llama"), cache, ids, attention_mask=mask, max_new_tokens=NEW)
            assert torch.equal(got.sequences, want.sequences)
            assert worst(got.logits, want.logits) < ATOL


@settings(max_examples=30)
@given(
    name=st.sampled_from(["llama_1_to_1", "llama", "llama_8_to_1", "mistral_window", "gpt_oss"]),
    pads=st.lists(st.integers(0, 11), min_size=1, max_size=4),
    length=st.integers(12, 40),
    prefill_chunk_size=st.none() | st.integers(1, 40),
    chunk_size=st.none() | st.integers(1, 40),
    positions=st.sampled_from(["original", "in_cache"]),
)
def test_any_lengths_paddings_and_chunks_equal_the_full_cache(
    name: str,
    pads: list[int],
    length: int,
    prefill_chunk_size: int | None,
    chunk_size: int | None,
    positions: Any,
) -> None:
    ids, mask = prompt(length, pads=pads)
    want = full(shared(name), ids, attention_mask=mask, max_new_tokens=4)
    cache = _cache(name, chunk_size=chunk_size, positions=positions)
    got = ours(
        shared(name),
        cache,
        ids,
        attention_mask=mask,
        max_new_tokens=4,
        prefill_chunk_size=prefill_chunk_size,
    )
    assert torch.equal(got.sequences, want.sequences)
    assert worst(got.logits, want.logits) < ATOL
    cache.check_integrity()


@pytest.mark.parametrize("kernel", ["cpu", "reference"])
@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "mistral_window"])
def test_both_kernels_equal_the_full_cache(name: str, kernel: str) -> None:
    ids, mask = prompt(LENGTH)
    want = _reference(name)
    cache = _cache(name, kernel=kernel)
    got = ours(shared(name), cache, ids, attention_mask=mask, max_new_tokens=NEW)
    assert torch.equal(got.sequences, want.sequences)
    assert worst(got.logits, want.logits) < ATOL


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "gpt2"])
def test_bfloat16_stays_near_the_full_cache(name: str) -> None:
    ids, mask = prompt(LENGTH)
    model = make(name).to(torch.bfloat16)
    with torch.no_grad():
        model.set_attn_implementation("eager")
        want = model(ids, attention_mask=mask).logits
        cache = kvmmu.SlotCache.for_model(model, LENGTH + NEW)
        with kvmmu.enabled(model):
            got = model(ids, attention_mask=mask, past_key_values=cache).logits
    assert got.dtype == torch.bfloat16
    off = (got - want).float().abs() * mask[..., None]
    # bfloat16 has 8 bits; sharp attention amplifies its rounding. Logits lie within +-3.
    assert float(off.max()) < 0.25
    assert float(off.mean()) < 0.02
