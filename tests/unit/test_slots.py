"""The slot table, the observer's reports, workspace, and positions="in_cache"."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmu_driver import (
    VARIANTS,
    Text,
    call,
    drive,
    error,
    full_attention,
    held,
    make_mmu,
    make_text,
    same_state,
    snapshot,
)

from kvmmu.codecs.base import Rows
from kvmmu.kernels import dispatch
from kvmmu.policies.base import Policy, StateSpec
from kvmmu.policies.h2o import H2O
from kvmmu.policies.rce import RCE
from kvmmu.policies.streaming_llm import StreamingLLM
from kvmmu.slots.table import SlotTable

# Table ------------------------------------------------------------------------------------------


class Keeper(Policy):
    """A policy with state of every kind, which follows its token."""

    name = "keeper"

    @property
    def state(self) -> dict[str, StateSpec]:
        return {
            "count": StateSpec("slot", "int32"),
            "calls": StateSpec("head", "int64"),
            "mean": StateSpec("vector"),
        }

    def priority(self, view: Any) -> torch.Tensor:
        return -view.state["count"].float() - view.positions * 1e-3  # the longest held leaves

    def update(self, view: Any, seen: Any) -> Any:
        count = view.state["count"] + seen.num_queries * (view.positions >= 0)
        calls = view.state["calls"] + (seen.num_queries[:, :, 0] > 0)
        mean = view.state["mean"] + seen.num_queries
        return view.scores, {"count": count, "calls": calls, "mean": mean}


def make_table(policy: Policy) -> SlotTable:
    return SlotTable((2, 3, 5, 4), policy, torch.device("cpu"), dispatch.resolve())


def test_table_declares_dtypes_and_shapes():
    table = make_table(Keeper())
    found = {name: (tuple(x.shape), x.dtype) for name, x in table.tensors().items()}
    assert found == {
        "positions": ((2, 3, 5), torch.int32),
        "scores": ((2, 3, 5), torch.float32),
        "num_seen": ((2,), torch.int32),
        "state.count": ((2, 3, 5), torch.int32),
        "state.calls": ((2, 3), torch.int64),
        "state.mean": ((2, 3, 4), torch.float32),
    }
    assert bool((table.positions == -1).all())


def test_admit_gives_the_slot_a_fresh_start():
    table = make_table(Keeper())
    table.scores.fill_(5.0)
    table.state["count"].fill_(7)
    table.state["calls"].fill_(3)
    slots = torch.tensor([[0, 1, 2], [3, 4, 0]])
    table.admit(slots, torch.tensor([8, 9], dtype=torch.int32), torch.tensor([True, False]))
    for h in range(3):
        assert int(table.positions[0, h, slots[0, h]]) == 8
        assert float(table.scores[0, h, slots[0, h]]) == 0
        assert int(table.state["count"][0, h, slots[0, h]]) == 0
    assert int((table.positions >= 0).sum()) == 3
    assert float(table.scores[1].sum()) == 5.0 * 15
    assert int(table.state["count"][0].sum()) == 7 * 12
    assert bool((table.state["calls"] == 3).all())  # of a head, not of a slot


def test_put_chunk_moves_only_what_is_named():
    table = make_table(Keeper())
    positions = torch.arange(7, dtype=torch.int32).expand(2, 3, 7)
    scores = torch.arange(7.0).expand(2, 3, 7) + 10
    state = {
        "count": torch.arange(7, dtype=torch.int32).expand(2, 3, 7) + 100,
        "calls": torch.full((2, 3), 4),
        "mean": torch.ones(2, 3, 4),
    }
    at = Rows(torch.tensor([1]), torch.tensor([2]), torch.tensor([0]))
    table.put_chunk(positions, scores, state, at, torch.tensor([6]))
    assert table.positions[1, 2].tolist() == [6, -1, -1, -1, -1]
    assert table.scores[1, 2].tolist() == [16, 11, 12, 13, 14]
    assert table.state["count"][1, 2].tolist() == [106, 101, 102, 103, 104]
    assert table.scores[0, 0].tolist() == [10, 11, 12, 13, 14]
    assert bool((table.state["calls"] == 4).all())


@pytest.mark.parametrize("calls", [[], [7, 1, 5]])
def test_slot_state_follows_its_token(calls, seed):
    text = make_text(seed, 26, lengths=[26, 17])
    mmu = make_mmu(Keeper(), text, num_slots=8)
    drive(mmu, text, calls)
    seen = mmu.table.num_seen.view(-1, 1, 1)
    want = torch.where(mmu.table.positions >= 0, seen - mmu.table.positions, 0)
    if calls:  # in its own chunk a newcomer counts the whole chunk
        assert bool((mmu.table.state["count"] >= want).all())
    else:
        assert torch.equal(mmu.table.state["count"], want)
    tokens = mmu.table.num_seen[:, None, None].expand(2, 2, 8)
    assert torch.equal(mmu.table.state["mean"], tokens.float())


# Observer ---------------------------------------------------------------------------------------


class Replay:
    """Rebuild the positions from what the observer is told, and nothing else."""

    def __init__(self, mmu: Any) -> None:
        self.positions = torch.full_like(mmu.table.positions, -1)
        self.num_seen = torch.zeros_like(mmu.table.num_seen)

    def decode(self, layer_idx: int, slots: Any, evicted: Any, valid: Any, seen: Any) -> None:
        for b in range(slots.shape[0]):
            if valid is not None and not valid[b]:
                continue
            for h in range(slots.shape[1]):
                assert int(self.positions[b, h, slots[b, h]]) == int(evicted[b, h])
                self.positions[b, h, slots[b, h]] = self.num_seen[b]
            self.num_seen[b] += 1

    def chunk(
        self, layer_idx: int, at: Any, evicted: Any, came: Any, valid: Any, seen: Any
    ) -> None:
        for b, h, s, old, new in zip(at.lane, at.head, at.slot, evicted, came):
            assert int(self.positions[b, h, s]) == int(old)
            self.positions[b, h, s] = new
        self.num_seen += valid.sum(1)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("granularity", ["head", "layer"])
def test_observer_is_told_every_replacement(name, granularity, seed):
    text = make_text(seed, 40, lengths=[40, 26, 4])
    text.valid[1, 34:] = False
    mmu = make_mmu(VARIANTS[name], text, num_slots=9, granularity=granularity)
    replay = mmu.observer = Replay(mmu)
    a = 0
    for size in (13, 4, 1, 9, *[1] * 13):
        call(mmu, text, a, a + size)
        a += size
        assert torch.equal(replay.positions, mmu.table.positions)
        assert torch.equal(replay.num_seen, mmu.table.num_seen)


@pytest.mark.parametrize("name", VARIANTS)
def test_watching_changes_nothing(name, seed):
    text = make_text(seed, 30, lengths=[30, 22])
    mmu, twin = (make_mmu(VARIANTS[name], text, num_slots=9) for _ in range(2))
    mmu.observer = Replay(mmu)
    assert torch.equal(drive(mmu, text, [11, 6]), drive(twin, text, [11, 6]))
    assert same_state(snapshot(mmu), snapshot(twin))


# Bytes ------------------------------------------------------------------------------------------


def test_transient_of_a_chunk_is_c_plus_t_rows(seed):
    text = make_text(seed, 200)
    mmu = make_mmu(RCE(), text, num_slots=32, chunk_size=16)
    call(mmu, text, 0, 200)
    rows = 2 * 2 * (32 + 16) * 8 * 4  # K and V, heads, C + T, D, float32
    extra = 2 * (32 + 16) * 4 + 4 * 16 * 8 * 4  # positions, and the chunk's output
    assert rows <= mmu.workspace_nbytes <= rows + extra


def test_decode_notes_no_transient(seed):
    text = make_text(seed, 40)
    mmu = make_mmu(RCE(), text, num_slots=8)
    drive(mmu, text)
    assert mmu.workspace_nbytes == 0


def test_tensors_are_all_that_is_kept(seed):
    text = make_text(seed, 40, lengths=[40, 31])
    mmu, twin = (make_mmu(RCE(decay=0.9), text, num_slots=8) for _ in range(2))
    drive(mmu, text.cut(0, 20), [9])
    for name, tensor in twin.tensors().items():
        tensor.copy_(mmu.tensors()[name])
    assert torch.equal(call(mmu, text, 20, 40), call(twin, text, 20, 40))
    assert same_state(snapshot(mmu), snapshot(twin))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_tensor_has_the_batch_first(name, seed):
    text = make_text(seed, 4, lengths=[4] * 5)
    mmu = make_mmu(VARIANTS[name], text, num_slots=9)
    assert all(tensor.shape[0] == 5 for tensor in mmu.tensors().values())


# positions="in_cache" ---------------------------------------------------------------------------


def rope(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rotate x [B,H,N,D] by index [B,H,N], halves as Llama's; a negative index turns back."""
    half = x.shape[-1] // 2
    frequency = 100.0 ** (-torch.arange(half) / half)
    angle = index[..., None] * frequency
    a, b = x[..., :half], x[..., half:]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def places(text: Text, a: int, b: int) -> torch.Tensor:
    """Where a model would rotate columns [a, b): at their logical positions. -> [B,Q]."""
    return text.positions()[:, a:b].clamp(min=0)


def rotated(text: Text) -> Text:
    index = text.positions().clamp(min=0)[:, None]
    turn = [rope(x, index.expand(-1, x.shape[1], -1)) for x in (text.q, text.k)]
    return Text(turn[0], turn[1], text.v, text.valid)


def feed_in_cache(mmu: Any, text: Text, calls: list[int]) -> torch.Tensor:
    outs, a = [], 0
    for size in [*calls, *[1] * (text.length - sum(calls))]:
        outs.append(call(mmu, text, a, a + size, index=places(text, a, a + size)))
        a += size
    return torch.cat(outs, 2)


@pytest.mark.parametrize("calls", [[], [20], [7, 1, 5]])
def test_in_cache_equals_full_rope_attention_while_nobody_leaves(calls, seed):
    text = rotated(make_text(seed, 20, lengths=[20, 13, 2]))
    mmu = make_mmu(RCE(), text, num_slots=24, rotary=rope)
    out = feed_in_cache(mmu, text, calls)
    assert error(out, full_attention(text), text) < 3e-5  # turned back and again in float32


@pytest.mark.parametrize("calls", [[], [12, 1, 5]])
def test_in_cache_equals_rope_over_ranks(calls, seed):
    """After eviction: what is held attends as if it were a text of its own."""
    text = make_text(seed, 40, lengths=[40, 29])
    turned = rotated(text)
    mmu = make_mmu(StreamingLLM(), turned, num_slots=9, rotary=rope)
    out = feed_in_cache(mmu, turned, calls)[:, :, -1]
    for b, last in enumerate((39, 28)):
        for h in range(2):
            kept = sorted(held(mmu, b, h))
            assert kept == [0, 1, *range(last - 6, last + 1)]
            column = torch.tensor(kept) + (39 - last)
            k = rope(text.k[b : b + 1, h : h + 1, column], torch.arange(9)[None, None])[0, 0]
            q = rope(text.q[b : b + 1, 2 * h : 2 * h + 2, -1:], torch.full((1, 2, 1), 8))[0, :, 0]
            p = (0.5 * q @ k.T).softmax(-1)
            want = p @ text.v[b, h, column]
            assert float((out[b, 2 * h : 2 * h + 2] - want).abs().max()) < 3e-5


def test_in_cache_keys_are_stored_unrotated(seed):
    text = make_text(seed, 12)
    mmu = make_mmu(RCE(), rotated(text), num_slots=12, rotary=rope)
    feed_in_cache(mmu, rotated(text), [7])
    assert torch.allclose(mmu.keys.read(), text.k, atol=1e-5)


def test_in_cache_needs_the_places(seed):
    text = make_text(seed, 12)
    mmu = make_mmu(RCE(), text, num_slots=12, rotary=rope)
    with pytest.raises(ValueError, match="index must give the RoPE place of each new token"):
        call(mmu, text, 0, 5)


# Anything ---------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(data=st.data())
def test_invariants_hold_for_any_text_and_any_calls(data):
    draw = data.draw
    policy = VARIANTS[draw(st.sampled_from(sorted(VARIANTS)))]
    sinks, window = draw(st.integers(0, 4)), draw(st.integers(0, 6))
    slots = sinks + max(window, 1) + draw(st.integers(0, 12))
    length = draw(st.integers(1, 60))
    lengths = draw(st.lists(st.integers(0, length), min_size=1, max_size=4))
    text = make_text(
        draw(st.integers(0, 2**31)),
        length,
        lengths=lengths,
        heads=draw(st.integers(1, 4)),
        group=draw(st.integers(1, 8)),
        dim=4,
    )
    horizon = draw(st.sampled_from([None, None, slots, slots + 5]))
    mmu = make_mmu(
        policy,
        text,
        num_slots=slots,
        num_sinks=sinks,
        window=window,
        chunk_size=draw(st.integers(1, 20)),
        granularity=draw(st.sampled_from(["head", "layer"])),
        horizon=horizon,
        kernel=draw(st.sampled_from(dispatch.available())),
    )
    calls = draw(st.lists(st.integers(1, 30), max_size=10))
    a, is_exact = 0, True
    for size in [*calls, *[1] * length]:
        b = min(a + size, length)
        if a == b:
            break
        out = call(mmu, text, a, b)
        assert bool(out.isfinite().all())
        seen = text.valid[:, :b].sum(1).tolist()
        assert mmu.table.num_seen.tolist() == seen
        for row, count in enumerate(seen):
            for h in range(text.k.shape[1]):
                found = [p for p in mmu.table.positions[row, h].tolist() if p >= 0]
                assert len(found) == len(set(found)) == min(count, slots)
                assert all(p < count for p in found)
                safe = {*range(min(sinks, count)), *range(max(0, count - max(window, 1)), count)}
                reach = {p for p in safe if horizon is None or p > count - 1 - horizon}
                assert reach <= set(found)
        is_exact = is_exact and (max(seen) <= slots or slots == horizon)
        if is_exact:
            part = text.cut(0, b)
            want = full_attention(part, horizon=horizon)[:, :, a:b]
            assert error(out, want, text.cut(a, b)) < 1e-5
        a = b


def test_long_text_keeps_its_bytes(seed):
    text = make_text(seed, 1500, dim=4, heads=1)
    mmu = make_mmu(H2O(), text, num_slots=16, chunk_size=16)
    nbytes = sum(x.nbytes for x in mmu.tensors().values())
    drive(mmu, text, [1000, *[1] * 100, 300])
    assert sum(x.nbytes for x in mmu.tensors().values()) == nbytes
    assert int(mmu.table.num_seen) == 1500
