"""C < length: a SlotCache keeps its size and place, and holds what the rules say."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from tiny_models import drive, make, ours, prompt, shared
from torch import Tensor
from transformers import PreTrainedModel

import kvmmu
from kvmmu import SlotCache

POLICIES = kvmmu.list_policies()
SMALL: dict[str, Any] = {
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 4096,
}


def _places(cache: SlotCache) -> dict[str, tuple[int, int]]:
    return {name: (t.data_ptr(), t.nbytes) for name, t in cache.named_tensors().items()}


def _distinct(length: int, rows: int = 2) -> Tensor:
    """Make rows without a repeated token: equal keys would tie, and rounding would choose."""
    draws = [torch.Generator().manual_seed(row) for row in range(rows)]
    return torch.stack([torch.randperm(93, generator=g)[:length] + 3 for g in draws])


def _assert_same(a: SlotCache, b: SlotCache, *, atol: float = 0.0) -> None:
    """Compare every tensor of two caches."""
    mine, other = a.named_tensors(), b.named_tensors()
    assert mine.keys() == other.keys()
    for name, tensor in mine.items():
        if atol and tensor.is_floating_point():
            assert torch.allclose(tensor, other[name], atol=atol), name
        else:
            assert torch.equal(tensor, other[name]), name


# Constant size ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_storage_stays_where_it_is_over_2000_tokens(policy: str) -> None:
    model = make("llama", **SMALL)
    cache = SlotCache.for_model(model, 16, policy=policy)
    places, nbytes = _places(cache), cache.nbytes
    ids, _ = prompt(50, pads=(0,))
    ours(model, cache, ids, max_new_tokens=2000, output_logits=False)
    assert cache.get_seq_length() == 50 + 2000 - 1
    assert _places(cache) == places
    assert cache.nbytes == nbytes
    assert cache.num_evicted.tolist() == [[2049 - 16]]
    cache.check_integrity()


@pytest.mark.parametrize("length", [5, 100, 400])
def test_storage_stays_for_a_prompt_of_any_length(length: int) -> None:
    model = make("llama", **SMALL)
    cache = SlotCache.for_model(model, 16)
    places = _places(cache)
    ids, _ = prompt(length, pads=(0,))
    ours(model, cache, ids, max_new_tokens=3, prefill_chunk_size=None)
    assert _places(cache) == places


def test_beam_search_needs_no_bytes_that_were_not_there_before() -> None:
    model = shared("llama")
    cache = SlotCache.for_model(model, 16, batch_size=3)
    before = cache.nbytes
    ids, _ = prompt(20, pads=(0,))
    ours(model, cache, ids, num_beams=3, max_new_tokens=5)
    grown, places = cache.nbytes, _places(cache)
    assert grown == before
    cache.reset()
    ours(model, cache, ids, num_beams=3, max_new_tokens=30)
    assert cache.nbytes == grown
    assert _places(cache) == places


# Bytes --------------------------------------------------------------------------------------------


def test_bytes_are_those_of_the_tensors_and_of_the_geometry() -> None:
    cache = SlotCache.for_model(shared("llama"), 24, batch_size=3)
    state = [t for name, t in cache.named_tensors().items() if name != "columns"]
    kinds = {(tuple(t.shape), t.dtype): t for t in state}  # beams are reordered through a buffer
    buffers = sum(t.nbytes for t in kinds.values())
    assert cache.nbytes == sum(t.nbytes for t in state) + buffers
    alone = SlotCache.for_model(shared("llama"), 24, batch_size=1)
    assert alone.nbytes == sum(t.nbytes for t in alone.named_tensors().values()) - 8
    assert cache.kv_nbytes == cache.geometry.kv_bytes
    assert cache.kv_nbytes == 2 * 2 * 3 * 2 * 24 * 16 * 4  # K and V, layers, B, Hkv, C, D, fp32


def test_bytes_of_sliding_window_layers_are_those_of_their_window() -> None:
    cache = SlotCache.for_model(shared("gemma2"), 64)
    assert cache.geometry.slots == (24, 64)
    assert cache.kv_nbytes == cache.geometry.kv_bytes


@pytest.mark.parametrize("extra", [0, 255])
def test_max_bytes_gives_as_many_slots_as_fit(extra: int) -> None:
    model = shared("llama")
    bytes_per_slot = 2 * 2 * 2 * 16 * 4
    cache = SlotCache.for_model(model, max_bytes=3 * 20 * bytes_per_slot + extra, batch_size=3)
    assert cache.num_slots == 20
    assert cache.kv_nbytes <= 3 * 20 * bytes_per_slot + extra


def test_max_bytes_binds_unbound_caches_to_the_batch_that_comes() -> None:
    ids, mask = prompt()
    cache = SlotCache(max_bytes=3 * 20 * 512)
    ours(shared("llama"), cache, ids, attention_mask=mask, max_new_tokens=2)
    assert (cache.num_slots, cache.batch) == (20, 3)


# What is held -------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["original", "in_cache"])
@pytest.mark.parametrize("policy", POLICIES)
def test_cold_start_equals_prefill_in_chunks_of_one(policy: str, positions: Any) -> None:
    model = shared("llama")
    ids = _distinct(40)
    cold, split = (
        SlotCache.for_model(
            model, 12, batch_size=2, num_sinks=2, policy=policy, positions=positions, chunk_size=c
        )
        for c in (None, 1)
    )
    stepped = drive(model, cold, ids, sizes=[1] * 40)
    if split.policy.kind == "selector":  # it takes a prompt in one go, so feed it in ones
        whole = drive(model, split, ids, sizes=[1] * 40)
    else:
        whole = drive(model, split, ids, sizes=[40])
    # A product of one row rounds otherwise than one of forty, outside the cache.
    assert torch.allclose(stepped, whole, atol=1e-4)
    _assert_same(cold, split, atol=1e-3)
    assert torch.equal(cold.positions(1), split.positions(1))
    cold.check_integrity()


def test_generate_in_chunks_of_one_equals_a_cold_start_bit_for_bit() -> None:
    model = shared("llama")
    ids, _ = prompt(30, pads=(0, 0))
    cold, split = (SlotCache.for_model(model, 12, batch_size=2) for _ in range(2))
    drive(model, cold, ids, sizes=[1] * 30)
    ours(model, split, ids, prefill_chunk_size=1, max_new_tokens=1)
    _assert_same(cold, split)


@pytest.mark.parametrize("policy", POLICIES)
def test_chunk_borders_are_counted_from_the_first_token(policy: str) -> None:
    """At T = 8, one call of 40 tokens and calls of 16, 8 and 16 are the same chunks."""
    model = shared("llama")
    ids = _distinct(40, rows=1)
    caches = [SlotCache.for_model(model, 12, policy=policy, chunk_size=8) for _ in range(2)]
    if caches[0].policy.kind == "selector":
        pytest.skip("a selector chooses once per call")
    a = drive(model, caches[0], ids, sizes=[40])
    b = drive(model, caches[1], ids, sizes=[16, 8, 16])
    assert torch.allclose(a, b, atol=1e-4)
    _assert_same(*caches, atol=1e-3)
    late, split = (SlotCache.for_model(model, 12, policy=policy, chunk_size=8) for _ in range(2))
    a = drive(model, late, ids, sizes=[3, 37])  # the second call is cut at 8, 16, 24, 32
    b = drive(model, split, ids, sizes=[3, 5, 8, 8, 8, 8])
    assert torch.allclose(a, b, atol=1e-4)
    _assert_same(late, split, atol=1e-3)


@pytest.mark.parametrize("positions", ["original", "in_cache"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_padded_row_holds_what_it_holds_alone(policy: str, positions: Any) -> None:
    """Token by token, where no chunk border is shared, padding changes nothing."""
    model = shared("llama")
    ids, mask = prompt(30)
    how = {"max_new_tokens": 8, "prefill_chunk_size": 1}
    parts = {"policy": policy, "positions": positions, "num_sinks": 3, "window": 2}
    together = SlotCache(12, **parts)
    out = ours(model, together, ids, attention_mask=mask, **how)
    together.check_integrity()
    for row, pad in enumerate((0, 7, 15)):
        alone = SlotCache(12, **parts)
        one = ours(model, alone, ids[row : row + 1, pad:], **how)
        for a, b in zip(one.logits, out.logits):
            assert torch.allclose(a[0], b[row], atol=1e-4)
        if policy == "random":  # its draws are per row of the batch
            continue
        for layer in range(2):
            held, own = together.positions(layer)[row], alone.positions(layer)[0]
            assert torch.equal(held.sort(-1).values, own.sort(-1).values)


@pytest.mark.parametrize("prefill_chunk_size", [None, 5, 1])
@pytest.mark.parametrize("policy", POLICIES)
def test_sinks_and_window_are_real_tokens_of_each_row(
    policy: str, prefill_chunk_size: int | None
) -> None:
    model = shared("llama")
    ids, mask = prompt(30)
    cache = SlotCache(12, policy=policy, num_sinks=3, window=2, chunk_size=7)
    ours(
        model,
        cache,
        ids,
        attention_mask=mask,
        prefill_chunk_size=prefill_chunk_size,
        max_new_tokens=9,
    )
    cache.check_integrity()
    for row, pad in enumerate((0, 7, 15)):
        seen = 30 - pad + 8
        must = {0, 1, 2, seen - 2, seen - 1}
        for layer in range(2):
            for head in cache.positions(layer)[row].tolist():
                assert must <= set(head)
                assert len(set(head)) == 12
                assert all(0 <= position < seen for position in head)
        assert cache.num_evicted[:, row].tolist() == [seen - 12] * 2


def _embedded_keys(model: PreTrainedModel, ids: Tensor, places: Tensor) -> Tensor:
    """Compute layer 0's keys of single tokens at given places. ids, places [N] -> [Hkv,N,D]."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    layer = model.model.layers[0]
    with torch.no_grad():
        hidden = layer.input_layernorm(model.get_input_embeddings()(ids[None]))
        keys = layer.self_attn.k_proj(hidden).view(1, len(ids), -1, 16).transpose(1, 2)
        cos, sin = model.model.rotary_emb(hidden, places[None])
        return apply_rotary_pos_emb(keys, keys, cos, sin)[1][0]


@pytest.mark.parametrize("prefill_chunk_size", [None, 1])
def test_layer_0_keys_are_those_of_their_logical_positions(prefill_chunk_size: int | None) -> None:
    model = shared("llama")
    ids, mask = prompt(40)
    cache = SlotCache(12, num_sinks=2)
    out = ours(model, cache, ids, attention_mask=mask, prefill_chunk_size=prefill_chunk_size)
    for row, pad in enumerate((0, 7, 15)):
        text = out.sequences[row, pad:]
        for head in range(2):
            places = cache.positions(0)[row, head].long()
            want = _embedded_keys(model, text[places], places)[head]
            got = cache.mmus[0].keys.read()[row, head]
            assert torch.allclose(got, want, atol=1e-5)


def test_layer_0_keys_in_cache_are_stored_unrotated() -> None:
    model = shared("llama")
    ids, _ = prompt(40, pads=(0,))
    cache = SlotCache(12, num_sinks=2, positions="in_cache")
    out = ours(model, cache, ids, max_new_tokens=60)
    places = cache.positions(0)[0, 0].long()
    want = _embedded_keys(model, out.sequences[0, places], torch.zeros_like(places))[0]
    assert torch.allclose(cache.mmus[0].keys.read()[0, 0], want, atol=1e-4)


def test_a_text_may_pass_the_trained_length_in_cache() -> None:
    model = make("llama", max_position_embeddings=32)
    ids, mask = prompt(20)
    cache = SlotCache(12, positions="in_cache")
    out = ours(model, cache, ids, attention_mask=mask, max_new_tokens=60)
    assert out.sequences.shape[1] == 80
    cache.check_integrity()


# Copies -------------------------------------------------------------------------------------------


def _used(**parts: Any) -> tuple[SlotCache, Tensor, Tensor]:
    """Return an evicting cache after a generation, and the ids and mask it has seen."""
    ids, mask = prompt(20)
    cache = SlotCache(12, num_sinks=2, **parts)
    out = ours(shared("llama"), cache, ids, attention_mask=mask, max_new_tokens=10).sequences
    seen = torch.cat([mask, torch.ones(3, 10, dtype=mask.dtype)], dim=1)
    return cache, out, seen


def _go_on(cache: SlotCache, ids: Tensor, mask: Tensor) -> Any:
    return ours(shared("llama"), cache, ids, attention_mask=mask, max_new_tokens=8)


@pytest.mark.parametrize("policy", POLICIES)
def test_reset_makes_a_cache_as_good_as_new(policy: str) -> None:
    ids, mask = prompt(20, seed=9)
    cache, _, _ = _used(policy=policy)
    places = _places(cache)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert bool((cache.positions(0) == -1).all())
    fresh = SlotCache.for_model(shared("llama"), 12, num_sinks=2, policy=policy, batch_size=3)
    _assert_same(cache, fresh)
    a, b = (_go_on(one, ids, mask) for one in (cache, fresh))
    assert torch.equal(a.sequences, b.sequences)
    _assert_same(cache, fresh)
    assert _places(cache) == places


@pytest.mark.parametrize("positions", ["original", "in_cache"])
def test_a_deep_copy_goes_its_own_way(positions: Any) -> None:
    cache, ids, mask = _used(positions=positions)
    twin = copy.deepcopy(cache)
    _assert_same(cache, twin)
    assert not {p for p, _ in _places(cache).values()} & {p for p, _ in _places(twin).values()}
    a = _go_on(cache, ids, mask)
    b = _go_on(twin, ids, mask)
    assert torch.equal(a.sequences, b.sequences)
    _assert_same(cache, twin)


@pytest.mark.parametrize("positions", ["original", "in_cache"])
@pytest.mark.parametrize("policy", POLICIES)
def test_repeated_rows_go_on_as_the_row_they_came_from(policy: str, positions: Any) -> None:
    cache, ids, mask = _used(policy=policy, positions=positions)
    wide = copy.deepcopy(cache)
    wide.batch_repeat_interleave(2)
    assert wide.batch == 6
    assert torch.equal(wide.num_evicted, cache.num_evicted.repeat_interleave(2, dim=1))
    twice = [x.repeat_interleave(2, dim=0) for x in (ids, mask)]
    a, b = _go_on(cache, ids, mask), _go_on(wide, *twice)
    if policy != "random":
        assert torch.equal(b.sequences, a.sequences.repeat_interleave(2, dim=0))
    wide.check_integrity()


@pytest.mark.parametrize("positions", ["original", "in_cache"])
def test_selected_rows_go_on_as_before(positions: Any) -> None:
    cache, ids, mask = _used(positions=positions)
    few, rows = copy.deepcopy(cache), torch.tensor([2, 0])
    few.batch_select_indices(rows)
    assert few.batch == 2
    a, b = _go_on(cache, ids, mask), _go_on(few, ids[rows], mask[rows])
    assert torch.equal(b.sequences, a.sequences[rows])
    assert torch.equal(few.positions(1), cache.positions(1)[rows])


def test_reordered_rows_carry_everything() -> None:
    cache, _, _ = _used()
    before = {name: t.clone() for name, t in cache.named_tensors().items()}
    places, order = _places(cache), torch.tensor([2, 2, 0])
    cache.reorder_cache(order)
    for name, tensor in cache.named_tensors().items():
        assert torch.equal(tensor, before[name] if name == "columns" else before[name][order])
    assert _places(cache) == places


def test_inference_mode_leaves_ordinary_tensors() -> None:
    """A cache bound by generate() under inference_mode works outside of it."""
    model = shared("llama")
    ids, _ = prompt(20, pads=(0,))
    cache = SlotCache(12)
    with torch.inference_mode():
        out = ours(model, cache, ids, max_new_tokens=4)
    generate_on = torch.cat([out.sequences, ids], dim=1)
    ours(model, cache, generate_on.clone(), max_new_tokens=4)
    cache.check_integrity()


def test_a_cache_reads_by_its_own_numbers() -> None:
    cache, _, _ = _used()
    assert cache.positions(0).shape == (3, 2, 12)
    assert cache.positions(0).dtype == torch.int32
    assert cache.num_evicted.shape == (2, 3)
    assert cache.num_evicted.dtype == torch.int64
    assert cache.workspace_nbytes > 0
    assert cache.batch_size == 3
    assert cache.get_max_length() == -1


def test_a_dropped_cache_is_freed_at_once() -> None:
    gc.disable()  # reference counts alone must do
    try:
        cache = SlotCache.for_model(shared("llama"), 24)
        gone = weakref.ref(cache.mmus[0].keys.read())
        del cache
        assert gone() is None
    finally:
        gc.enable()
