"""Codecs: what every registered one promises of its stores."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvmmu.codecs.base import CODECS, Rows
from kvmmu.kernels import dispatch

SHAPE = (2, 3, 5, 4)


@pytest.fixture(params=CODECS.names())
def codec(request: pytest.FixtureRequest) -> Any:
    """Every registered codec."""
    return CODECS.make(request.param)


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def store(codec: Any, request: pytest.FixtureRequest) -> Any:
    """An empty store."""
    return codec.make(
        SHAPE, dtype=request.param, device=torch.device("cpu"), kernel=dispatch.resolve()
    )


def test_store_reads_rows_in_the_models_dtype(store):
    assert tuple(store.read().shape) == SHAPE
    assert store.read().dtype in (torch.float32, torch.bfloat16)
    assert all(tensor.shape[0] == 2 for tensor in store.tensors().values())


def test_listed_rows_are_written_and_no_others(store, generator):
    before = store.read().clone()
    at = Rows(torch.tensor([0, 1, 1]), torch.tensor([2, 0, 0]), torch.tensor([4, 1, 3]))
    rows = torch.randn(3, 4, generator=generator).to(before.dtype)
    store.write_rows(at, rows)
    after = store.read()
    changed = (after != before).any(-1).nonzero().tolist()
    assert changed == [[0, 2, 4], [1, 0, 1], [1, 0, 3]]
    for i, (b, h, c) in enumerate(changed):
        assert torch.allclose(after[b, h, c], rows[i], atol=0.1)


def test_no_rows_are_no_work(store):
    before = store.read().clone()
    none = torch.zeros(0, dtype=torch.long)
    store.write_rows(Rows(none, none, none), before.new_zeros(0, 4))
    assert torch.equal(store.read(), before)


def test_one_slot_a_head_is_written_in_valid_rows(store, generator):
    before = store.read().clone()
    slots = torch.tensor([[0, 1, 2], [4, 3, 2]])
    rows = torch.randn(2, 3, 4, generator=generator).to(before.dtype)
    store.write_slots(slots, rows, torch.tensor([True, False]))
    changed = (store.read() != before).any(-1).nonzero().tolist()
    assert changed == [[0, 0, 0], [0, 1, 1], [0, 2, 2]]
    store.write_slots(slots, rows, None)
    for b in range(2):
        for h in range(3):
            assert torch.allclose(store.read()[b, h, slots[b, h]], rows[b, h], atol=0.1)


def test_store_never_moves(store, generator):
    at = {name: tensor.data_ptr() for name, tensor in store.tensors().items()}
    for i in range(20):
        slots = torch.randint(0, 5, (2, 3), generator=generator)
        store.write_slots(slots, torch.ones(2, 3, 4).to(store.read().dtype) * i, None)
    assert {name: tensor.data_ptr() for name, tensor in store.tensors().items()} == at


def test_copying_the_tensors_copies_the_store(codec, store, generator):
    rows = torch.randn(2, 3, 4, generator=generator).to(store.read().dtype)
    store.write_slots(torch.tensor([[0, 1, 2], [4, 3, 2]]), rows, None)
    twin = codec.make(
        SHAPE, dtype=store.read().dtype, device=torch.device("cpu"), kernel=dispatch.resolve()
    )
    for name, tensor in twin.tensors().items():
        tensor.copy_(store.tensors()[name])
    assert torch.equal(twin.read(), store.read())


def test_plain_stores_rows_as_they_came(generator):
    store = CODECS.make("plain").make(
        SHAPE, dtype=torch.bfloat16, device=torch.device("cpu"), kernel=dispatch.resolve()
    )
    rows = torch.randn(2, 3, 4, generator=generator).bfloat16()
    store.write_slots(torch.zeros(2, 3, dtype=torch.long), rows, None)
    assert torch.equal(store.read()[:, :, 0], rows)
    assert sum(x.nbytes for x in store.tensors().values()) == 2 * 3 * 5 * 4 * 2
