"""Bytes and addresses of a cache, by counting."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from kvmmu.geometry import CacheGeometry


def make(**changes: Any) -> CacheGeometry:
    fields = {
        "num_layers": 3,
        "batch": 2,
        "num_kv_heads": 4,
        "head_dim": 8,
        "slots": (5, 7, 5),
        "dtype": "bfloat16",
        "itemsize": 2,
    }
    return CacheGeometry(**fields | changes)


def test_bytes_are_those_of_the_tensors():
    geometry = make()
    tensors = [torch.zeros(2, 4, c, 8, dtype=torch.bfloat16) for c in geometry.slots]
    assert geometry.kv_bytes == 2 * sum(x.nbytes for x in tensors)
    assert geometry.bytes_per_slot == 2 * 4 * 8 * 2


def test_full_cache_keeps_every_token_of_every_layer():
    assert make().full_kv_bytes(100) == 2 * 3 * 100 * make().bytes_per_slot
    assert make(slots=(9, 9, 9)).full_kv_bytes(9) == make(slots=(9, 9, 9)).kv_bytes


def test_one_slot_of_llama_3_8b_is_four_kilobytes():
    geometry = make(num_layers=32, num_kv_heads=8, head_dim=128, slots=(256,) * 32)
    assert geometry.bytes_per_slot == 4096  # (K and V) x 8 heads x 128 x 2 bytes
    assert geometry.full_kv_bytes(8192) == 2 * 2**30


def test_dram_rows_tile_the_cache():
    geometry = make()
    found = [
        geometry.dram_address(lane, layer, slot)
        for lane in range(2)
        for layer in range(3)
        for slot in range(geometry.slots[layer])
    ]
    assert found == list(range(0, geometry.kv_bytes, geometry.bytes_per_slot))


def test_tensor_addresses_are_torchs_strides():
    geometry = make()
    x = torch.zeros(2, 4, 7, 8, dtype=torch.bfloat16)
    for lane, head, slot in ((0, 0, 0), (0, 0, 6), (1, 2, 3), (1, 3, 6)):
        want = x[lane, head, slot].storage_offset() * x.itemsize
        assert geometry.tensor_address(lane, head, slot, layer=1) == want


@pytest.mark.parametrize(
    "where", [(2, 0, 0), (0, 3, 0), (0, 0, 5), (-1, 0, 0), (0, -1, 0), (0, 0, -1)]
)
def test_address_outside_is_refused(where):
    with pytest.raises(IndexError, match=r"\(lane, layer, slot\) must lie in the cache, got "):
        make().dram_address(*where)


@pytest.mark.parametrize(
    "where", [(2, 0, 0, 0), (0, 4, 0, 0), (0, 0, 5, 0), (0, 0, 0, 3), (-1, 0, 0, 0), (0, 0, 0, -1)]
)
def test_tensor_address_outside_is_refused(where):
    lane, head, slot, layer = where
    with pytest.raises(IndexError, match=r"must lie in the cache, got "):
        make().tensor_address(lane, head, slot, layer=layer)


@pytest.mark.parametrize("name", ["num_layers", "batch", "num_kv_heads", "head_dim", "itemsize"])
def test_counts_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        make(**{name: 0})


@pytest.mark.parametrize("slots", [(), (5, 5), (5, 5, 5, 5), (5, 0, 5)])
def test_slots_must_list_every_layer(slots):
    with pytest.raises(ValueError, match="slots must list a positive count for each of the 3"):
        make(slots=slots)


def test_json_gives_the_geometry_back():
    geometry = make()
    fields = json.loads(json.dumps(geometry.to_json()))
    assert CacheGeometry(**fields | {"slots": tuple(fields["slots"])}) == geometry
