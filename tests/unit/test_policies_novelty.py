"""Novelty by hand: whose key is new, who was read, and what a neighbour shares."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from mmu_driver import SCALE, call, drive, held, make_mmu, make_text

from kvmmu.policies.base import Seen, SlotView
from kvmmu.policies.novelty import Novelty


def view(
    positions: list[int],
    *,
    keys: Any = None,
    scores: list[float] | None = None,
    num_seen: int = 99,
    **state: Any,
) -> SlotView:
    """One row and KV head of candidates; keys point along the first axis unless given."""
    n = len(positions)
    k = torch.tensor([[1.0, 0.0]] * n if keys is None else keys)[None, None]
    sums = {"keys": torch.tensor(state.get("keys_sum", [0.0, 1.0]))[None, None]}
    return SlotView(
        torch.tensor(positions, dtype=torch.int32)[None, None],
        torch.tensor([0.0] * n if scores is None else scores)[None, None],
        torch.full((1, 1, 1), num_seen, dtype=torch.int32),
        0,
        1,
        "head",
        k=k,
        state=sums,
    )


def ranks(policy: Novelty, shown: SlotView) -> list[float]:
    return policy.priority(shown).flatten().tolist()


def test_key_unlike_the_sum_of_all_keys_ranks_high():
    keys = [[0.0, 2.0], [3.0, 0.0], [0.0, -0.1], [1.0, 1.0]]
    found = ranks(Novelty(pool=0), view([0, 1, 2, 3], keys=keys, keys_sum=[0.0, 7.0]))
    assert found == pytest.approx([-1, 0, 1, -math.sqrt(0.5)])


def test_largest_attention_is_added_by_its_weight():
    shown = view([0, 1, 2], scores=[0.5, 0.0, 1.0])
    assert ranks(Novelty(weight=2.0, pool=0), shown) == pytest.approx([1, 0, 2])
    assert ranks(Novelty(weight=0.0, pool=0), shown) == [0, 0, 0]


@pytest.mark.parametrize(
    ("pool", "want"),
    [
        (0, [0.1, 0.9, 0.0, 0.2, 0.4, 0.0]),
        (1, [0.1, 0.9, 0.9, 0.4, 0.4, 0.0]),
        (2, [0.9, 0.9, 0.9, 0.4, 0.4, 0.0]),
        (9, [0.9, 0.9, 0.9, 0.9, 0.9, 0.9]),
    ],
)
def test_maximum_is_shared_with_neighbours_in_the_text_whatever_their_slots(pool, want):
    positions = [3, 5, 6, 9, 10, 14]
    scores = [0.1, 0.9, 0.0, 0.2, 0.4, 0.0]
    policy = Novelty(weight=1.0, pool=pool)
    assert ranks(policy, view(positions, scores=scores)) == pytest.approx(want)
    order = [4, 0, 5, 2, 1, 3]
    mixed = view([positions[i] for i in order], scores=[scores[i] for i in order])
    assert ranks(policy, mixed) == pytest.approx([want[i] for i in order])


def test_empty_slots_share_nothing():
    shown = view([-1, 0, -1, 1], scores=[9.0, 0.1, 9.0, 0.2])
    found = ranks(Novelty(weight=1.0, pool=3), shown)
    assert [found[1], found[3]] == pytest.approx([0.2, 0.2])


def test_zero_keys_are_stood():
    zero = [[0.0, 0.0]] * 3
    shown = view([0, 1, 2], keys=zero, keys_sum=[0.0, 0.0])
    assert all(math.isfinite(x) for x in ranks(Novelty(), shown))


def test_maxima_fade_once_a_query_and_pads_change_nothing():
    policy = Novelty(decay=0.5)
    shown = view([0, 1], scores=[0.8, 0.4], num_seen=5)

    def seen(num: int, peaks: list[float]) -> Seen:
        count = torch.full((1, 1, 1), num, dtype=torch.int32)
        return Seen({"max": torch.tensor(peaks)[None, None]}, count, count, 4, 2)

    scores, sums = policy.update(shown, seen(3, [0.05, 0.3]))
    assert scores.flatten().tolist() == pytest.approx([0.1, 0.3])
    assert sums["keys"].flatten().tolist() == [0, 1]  # neither token is new
    scores, sums = policy.update(shown, seen(0, [0.0, 0.0]))
    assert torch.equal(scores, shown.scores)
    assert torch.equal(sums["keys"], shown.state["keys"])


@pytest.mark.parametrize("calls", [[], [30], [3, 1, 11, 1, 1, 7]])
@pytest.mark.parametrize("num_slots", [9, 32])
def test_anchor_holds_every_key_once_the_evicted_too(calls, num_slots, seed):
    text = make_text(seed, 30, lengths=[30, 17])
    mmu = make_mmu(Novelty(), text, num_slots=num_slots)
    drive(mmu, text, calls)
    for row in range(2):
        want = text.row(row).k[0].sum(1).numpy()
        assert mmu.table.state["keys"][row].numpy() == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize("grace", [0, 1, 5])
@pytest.mark.parametrize("calls", [[], [30], [3, 1, 11, 1, 1, 7]])
def test_score_is_the_faded_maximum_past_the_grace(grace, calls, seed):
    text = make_text(seed, 30)
    mmu = make_mmu(Novelty(decay=0.9, grace=grace), text, num_slots=32, chunk_size=8)
    drive(mmu, text, calls)
    q, k = text.q[0].double().numpy(), text.k[0].double().numpy()
    logits = SCALE * np.einsum("hgid,hjd->hgij", q.reshape(2, 2, 30, 8), k)
    later = np.arange(30)[:, None] - np.arange(30)
    e = np.where(later >= 0, np.exp(logits), 0)
    p = (e / e.sum(-1, keepdims=True)).mean(1) * (later >= grace)
    want = (p * 0.9 ** np.arange(29, -1, -1.0)[:, None]).max(1)
    assert mmu.table.scores[0, :, :30].numpy() == pytest.approx(want, abs=1e-6)


def test_forgets_no_key_so_a_repeated_one_stays_old():
    text = make_text(0, 12)
    text.k.zero_()
    text.k[..., 0] = 1.0  # eleven tokens of one key
    text.k[:, :, 5, 0], text.k[:, :, 5, 1] = 0.0, 1.0  # and one of another
    mmu = make_mmu(Novelty(weight=0.0), text, num_slots=3, num_sinks=0, window=1)
    drive(mmu, text.cut(0, 11))
    call(mmu, text, 11, 12)
    assert all({5, 11} <= held(mmu, 0, h) for h in range(2))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"weight": -1.0}, "weight must be finite and at least 0, got -1.0"),
        ({"weight": math.inf}, "weight must be finite and at least 0, got inf"),
        ({"weight": True}, "weight must be finite and at least 0, got True"),
        ({"weight": math.nan}, "weight must be finite and at least 0, got nan"),
        ({"decay": 0.0}, r"decay must lie in \(0, 1\], got 0.0"),
        ({"decay": "a"}, r"decay must lie in \(0, 1\], got 'a'"),
        ({"grace": -1}, "grace must be an integer of at least 0, got -1"),
        ({"grace": 1.0}, "grace must be an integer of at least 0, got 1.0"),
        ({"pool": True}, "pool must be an integer of at least 0, got True"),
    ],
)
def test_novelty_refuses(params, words):
    with pytest.raises(ValueError, match=words):
        Novelty(**params)


def test_novelty_asks_and_costs_what_its_rule_is():
    assert Novelty().needs == {"max", "k"}
    assert set(Novelty().state) == {"keys"}
    assert Novelty(pool=3).ops_per_slot == Novelty(pool=0).ops_per_slot + 6
