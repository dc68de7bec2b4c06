"""StreamingLLM, KeyDiff and Random on small cases by hand: who leaves without any attention."""

from __future__ import annotations

import math

import pytest
import torch
from mmu_driver import call, drive, held, make_mmu, make_text

from kvmmu.policies.base import SlotView
from kvmmu.policies.keydiff import KeyDiff
from kvmmu.policies.random import Random
from kvmmu.policies.streaming_llm import StreamingLLM

# StreamingLLM -----------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["head", "layer"])
@pytest.mark.parametrize("calls", [[], [17, 1, 9], [30]])
@pytest.mark.parametrize(("sinks", "window"), [(0, 0), (3, 1), (4, 4), (0, 8)])
def test_streaming_llm_keeps_sinks_and_the_most_recent(granularity, calls, sinks, window, seed):
    text = make_text(seed, 30, lengths=[30, 21, 5])
    mmu = make_mmu(
        StreamingLLM(),
        text,
        num_slots=9,
        num_sinks=sinks,
        window=window,
        granularity=granularity,
    )
    drive(mmu, text, calls)
    for row, length in enumerate((30, 21, 5)):
        recent = range(max(0, length - (9 - sinks)), length)
        for h in range(2):
            assert held(mmu, row, h) == {*range(min(sinks, length)), *recent}


def test_streaming_llm_tells_far_tokens_apart():
    far = 2**24  # float32 counts no further by ones
    positions = torch.tensor([[[far, far + 1, far + 2]]], dtype=torch.int32)
    num_seen = torch.full((1, 1, 1), far + 3, dtype=torch.int32)
    priority = StreamingLLM().priority(
        SlotView(positions, torch.zeros(1, 1, 3), num_seen, 0, 1, "head")
    )
    assert priority.flatten().tolist() == [-3, -2, -1]


# KeyDiff ----------------------------------------------------------------------------------------


def by_hand(keys: list[list[float]]) -> list[float]:
    """Minus the cosine of each key to the mean direction, in plain Python."""
    unit = [[x / math.hypot(*key) for x in key] for key in keys]
    anchor = [sum(column) / len(unit) for column in zip(*unit)]
    size = math.hypot(*anchor)
    return [-sum(a * b for a, b in zip(u, anchor)) / size for u in unit]


def keydiff_view(keys: torch.Tensor, positions: list[int]) -> SlotView:
    at = torch.tensor(positions, dtype=torch.int32)[None, None]
    num_seen = torch.full((1, 1, 1), 99, dtype=torch.int32)
    return SlotView(at, torch.zeros(at.shape), num_seen, 0, 1, "head", k=keys[None, None])


def test_keydiff_ranks_by_distance_from_the_mean_direction(generator):
    keys = torch.randn(6, 4, generator=generator)
    priority = KeyDiff().priority(keydiff_view(keys, [0, 1, 2, 3, 4, 5]))
    assert priority.flatten().tolist() == pytest.approx(by_hand(keys.tolist()), abs=1e-6)


def test_keydiff_leaves_empty_slots_and_pads_out_of_the_mean(generator):
    keys = torch.randn(6, 4, generator=generator)
    priority = KeyDiff().priority(keydiff_view(keys, [3, -1, 0, 7, -1, 2]))
    live = [0, 2, 3, 5]
    found = priority[0, 0, live].tolist()
    assert found == pytest.approx(by_hand(keys[live].tolist()), abs=1e-6)


def test_keydiff_looks_at_directions_not_lengths(generator):
    keys = torch.randn(6, 4, generator=generator)
    one = KeyDiff().priority(keydiff_view(keys, [0, 1, 2, 3, 4, 5]))
    keys[2] *= 1000
    two = KeyDiff().priority(keydiff_view(keys, [0, 1, 2, 3, 4, 5]))
    assert torch.allclose(one, two, atol=1e-6)


def test_keydiff_evicts_the_most_typical_key():
    text = make_text(0, 7)
    angles = (0.0, 0.1, 2.0, -0.1, 0.02, -2.0, 1.0)  # 4 is nearest to their mean
    text.k.zero_()
    for i, angle in enumerate(angles):
        text.k[:, :, i, 0], text.k[:, :, i, 1] = math.cos(angle), math.sin(angle)
    mmu = make_mmu(KeyDiff(), text, num_slots=6, num_sinks=0, window=1)
    drive(mmu, text.cut(0, 6))
    keys = text.k[0, 0, :6, :2].tolist()
    typical = by_hand(keys).index(min(by_hand(keys)))
    call(mmu, text, 6, 7)
    assert held(mmu, 0, 0) == set(range(7)) - {typical}


def test_keydiff_stands_zero_keys():
    priority = KeyDiff().priority(keydiff_view(torch.zeros(3, 4), [0, 1, 2]))
    assert bool(priority.isfinite().all())


# Random -----------------------------------------------------------------------------------------


def draw(
    policy: Random, *, num_seen: int = 50, layer: int = 0, heads: int = 2, granularity: str = "head"
) -> torch.Tensor:
    """Priorities of positions 0..39. -> [heads, 40]."""
    at = torch.arange(40, dtype=torch.int32).expand(1, heads, 40)
    seen = torch.full((1, 1, 1), num_seen, dtype=torch.int32)
    return policy.priority(SlotView(at, torch.zeros(at.shape), seen, layer, 4, granularity))[0]


def test_random_is_the_same_for_the_same_seed():
    assert torch.equal(draw(Random(seed=7)), draw(Random(seed=7)))
    assert torch.equal(draw(Random()), draw(Random(seed=0)))


def test_random_differs_by_seed_layer_step_and_head():
    base = draw(Random())
    others = [
        draw(Random(seed=1)),
        draw(Random(seed=2**31 - 1)),
        draw(Random(), layer=1),
        draw(Random(), num_seen=51),
        base.flip(0),
    ]
    for other in others:
        assert float((base == other).float().mean()) < 0.1
        correlation = torch.corrcoef(torch.stack([base.flatten(), other.flatten()]))[0, 1]
        assert abs(float(correlation)) < 0.45  # 80 pairs: 4 standard deviations


def test_random_draws_alike_in_all_heads_for_one_victim_a_layer():
    drawn = draw(Random(), granularity="layer", heads=4)
    assert torch.equal(drawn, drawn[:1].expand(4, -1))


def test_random_numbers_lie_in_zero_to_one_and_spread():
    numbers = torch.stack([draw(Random(seed=s), num_seen=t) for s in range(10) for t in range(20)])
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    counts = torch.histc(numbers, bins=20, min=0, max=1)  # 16,000 draws, 800 a bin
    assert float(((counts - 800) ** 2 / 800).sum()) < 43.8  # chi square, 19 degrees, p = .001


def test_random_victims_are_uniform_among_those_who_may_leave():
    counts = torch.zeros(40)
    for seed in range(20):
        for step in range(100):
            counts[draw(Random(seed=seed), num_seen=50 + step, heads=1)[0, :36].argmin()] += 1
    expected = 2000 / 36
    assert float(counts[36:].sum()) == 0
    assert float(((counts[:36] - expected) ** 2 / expected).sum()) < 66.6  # 35 degrees, p = .001


def test_random_depends_on_positions_not_on_slots():
    base = draw(Random())
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    at = torch.arange(40, dtype=torch.int32)[order].expand(1, 2, 40)
    seen = torch.full((1, 1, 1), 50, dtype=torch.int32)
    drawn = Random().priority(SlotView(at, torch.zeros(at.shape), seen, 0, 4, "head"))[0]
    assert torch.equal(drawn, base[:, order])


def test_random_evictions_differ_between_layers(seed):
    text = make_text(seed, 60)
    kept = []
    for layer_idx in range(3):
        mmu = make_mmu(Random(), text, num_slots=12, layer_idx=layer_idx)
        drive(mmu, text, [20])
        kept += [frozenset(held(mmu, 0, h)) for h in range(2)]
    assert len(set(kept)) == 6


@pytest.mark.parametrize("seed", [-1, 2**31, 1.5, "a", True])
def test_random_refuses_a_seed_out_of_range(seed):
    with pytest.raises(
        ValueError, match=r"seed must lie in \[0, 2\*\*31\) and be an integer, got "
    ):
        Random(seed=seed)
