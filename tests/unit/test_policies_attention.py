"""RCE, H2O and TOVA on small cases by hand: who earned what, and who leaves."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from mmu_driver import SCALE, drive, make_mmu, make_text

from kvmmu.policies.base import Seen, SlotView
from kvmmu.policies.h2o import H2O
from kvmmu.policies.rce import RCE
from kvmmu.policies.tova import TOVA


def view(
    positions: list[int],
    scores: list[float] | None = None,
    *,
    num_seen: int,
    k: torch.Tensor | None = None,
    **more: Any,
) -> SlotView:
    """One row and KV head of candidates."""
    at = torch.tensor(positions, dtype=torch.int32)[None, None]
    held = torch.zeros(at.shape) if scores is None else torch.tensor(scores)[None, None]
    seen = torch.full((1, 1, 1), num_seen, dtype=torch.int32)
    return SlotView(at, held, seen, 0, 1, "head", k=k, **more)


def seen(num_queries: int, **planes: list[float]) -> Seen:
    """What `num_queries` queries showed."""
    count = torch.full((1, 1, 1), num_queries, dtype=torch.int32)
    return Seen(
        {name: torch.tensor(p)[None, None] for name, p in planes.items()}, count, count, 4, 2
    )


def weights(text: Any, length: int) -> list[list[list[float]]]:
    """Attention of a full cache, by plain Python. -> [Hq][query][key]."""
    found = []
    for h in range(text.q.shape[1]):
        kv = h // (text.q.shape[1] // text.k.shape[1])
        rows = []
        for i in range(length):
            logits = [
                SCALE * sum(a * b for a, b in zip(text.q[0, h, i].tolist(), key))
                for key in text.k[0, kv, : i + 1].tolist()
            ]
            total = sum(math.exp(x) for x in logits)
            rows.append([math.exp(x) / total for x in logits])
        found.append(rows)
    return found


def flat(scores: torch.Tensor) -> list[float]:
    return scores.flatten().tolist()


# RCE --------------------------------------------------------------------------------------------


def test_rce_adds_what_it_sees():
    scores, _ = RCE(statistic="mass").update(
        view([0, 1, 2], [1.0, 2.0, 0.0], num_seen=3), seen(1, mass=[1, 2, 3])
    )
    assert flat(scores) == [2, 4, 3]


def test_rce_fades_once_a_query():
    policy = RCE(decay=0.5, statistic="mass")
    scores, _ = policy.update(view([0, 1], [8.0, 4.0], num_seen=5), seen(3, mass=[0, 1.0]))
    assert flat(scores) == [1, 1.5]
    scores, _ = policy.update(view([0, 1], [8.0, 4.0], num_seen=5), seen(0, mass=[0, 0.0]))
    assert flat(scores) == [8, 4]  # a row of pads fades nothing


def test_rce_divides_by_the_queries_that_saw_the_token():
    priority = RCE(normalize="age").priority(view([0, 3, 8, 9], [10.0, 7.0, 3.0, 2.0], num_seen=10))
    assert flat(priority) == [1, 1, 1.5, 2]


def test_rce_divides_by_the_faded_count_of_queries():
    priority = RCE(decay=0.5, normalize="age").priority(
        view([0, 2, 3], [1.0, 1.0, 1.0], num_seen=4)
    )
    want = [1 / (1 + 0.5 + 0.25 + 0.125), 1 / 1.5, 1.0]
    assert flat(priority) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("decay", [1 - 1e-6, 1 - 1e-7, 1 - 1e-9, 1 - 2.0**-53, 1e-300])
def test_rce_takes_decays_that_float32_cannot_tell_from_one_or_zero(decay):
    positions = [0, 1000, 3999]
    priority = flat(
        RCE(decay=decay, normalize="age").priority(view(positions, [1.0] * 3, num_seen=4000))
    )
    for p, found in zip(positions, priority):
        age = -math.expm1((4000 - p) * math.log(decay)) / (1 - decay)
        assert found == pytest.approx(1 / age, rel=1e-5)


def test_rce_sum_favours_the_old_and_age_does_not():
    candidates = view([0, 90], [20.0, 5.0], num_seen=100)  # .2 a query against .5
    old, young = flat(RCE(statistic="mass").priority(candidates))
    assert old > young
    old, young = flat(RCE(normalize="age").priority(candidates))
    assert old < young


@pytest.mark.parametrize("decay", [1.0, 0.9])
@pytest.mark.parametrize("calls", [[], [14], [5, 1, 4, 1]])
def test_rce_scores_count_tokens_not_calls(decay, calls, seed):
    text = make_text(seed, 14)
    mmu = make_mmu(RCE(decay=decay, statistic="mass"), text, num_slots=16, chunk_size=6)
    drive(mmu, text, calls)
    p = weights(text, 14)
    for h in range(2):
        for j in range(14):
            want = sum(
                decay ** (13 - i) * (p[2 * h][i][j] + p[2 * h + 1][i][j]) for i in range(j, 14)
            )
            assert float(mmu.table.scores[0, h, j]) == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"decay": 0.0}, r"decay must lie in \(0, 1\], got 0.0"),
        ({"decay": 1.5}, r"decay must lie in \(0, 1\], got 1.5"),
        ({"decay": "a"}, r"decay must lie in \(0, 1\], got 'a'"),
        ({"decay": True}, r"decay must lie in \(0, 1\], got True"),
        ({"fixed_point": "yes"}, "fixed_point must be True or False, got 'yes'"),
        ({"decay": math.nan}, r"decay must lie in \(0, 1\], got nan"),
        ({"normalize": "mean"}, "normalize must be 'none' or 'age', got 'mean'"),
        (
            {"fixed_point": True, "normalize": "age"},
            "normalize must be 'none' with fixed_point=True",
        ),
        (
            {"fixed_point": True, "normalize": "none", "decay": 0.9},
            r"decay must be 1 - 2\*\*-k for k in 1..16 with fixed_point=True, got 0.9",
        ),
        (
            {"fixed_point": True, "normalize": "none", "decay": 1 - 2.0**-17},
            r"decay must be 1 - 2\*\*-k for k in 1..16",
        ),
    ],
)
def test_rce_refuses(params, words):
    with pytest.raises(ValueError, match=words):
        RCE(**params)


@pytest.mark.parametrize("k", range(1, 17))
def test_rce_finds_the_shift_of_a_decay(k):
    assert RCE(decay=1 - 2.0**-k, normalize="none", fixed_point=True).decay_shift == k


def test_rce_without_decay_has_no_shift():
    assert RCE(statistic="mass").decay_shift is None
    assert RCE(decay=0.9).decay_shift is None


# H2O --------------------------------------------------------------------------------------------


def test_h2o_ranks_by_all_the_attention_so_far(seed):
    text = make_text(seed, 12)
    mmu = make_mmu(H2O(), text, num_slots=12)
    drive(mmu, text, [7])
    p = weights(text, 12)
    for h in range(2):
        want = [sum(p[2 * h][i][j] + p[2 * h + 1][i][j] for i in range(j, 12)) for j in range(12)]
        assert flat(mmu.table.scores[0, h]) == pytest.approx(want, abs=1e-5)
        shown = view(list(range(12)), want, num_seen=12)
        assert flat(H2O().priority(shown)) == pytest.approx(want)


def test_h2o_evicts_the_lightest_token(seed):
    text = make_text(seed, 9)
    mmu = make_mmu(H2O(), text, num_slots=8, num_sinks=1, window=3)
    drive(mmu, text.cut(0, 8))
    p = weights(text, 8)
    for h in range(2):
        mass = [sum(p[2 * h][i][j] + p[2 * h + 1][i][j] for i in range(j, 8)) for j in range(8)]
        victim = min(range(1, 6), key=lambda j: mass[j])  # 0 is a sink; 6, 7 and 8 the window
        assert int(mmu.table.scores[0, h, 1:6].argmin()) + 1 == victim
    drive(mmu, text.cut(8, 9))
    for h in range(2):
        mass = [sum(p[2 * h][i][j] + p[2 * h + 1][i][j] for i in range(j, 8)) for j in range(8)]
        assert int(mmu.table.positions[0, h].argmax()) == min(range(1, 6), key=lambda j: mass[j])


def test_layer_granularity_sums_over_heads(seed):
    text = make_text(seed, 9, heads=3)
    mmu = make_mmu(H2O(), text, num_slots=8, num_sinks=0, window=2, granularity="layer")
    drive(mmu, text)
    p = weights(text, 8)
    mass = [sum(p[h][i][j] for h in range(6) for i in range(j, 8)) for j in range(8)]
    victim = min(range(7), key=lambda j: mass[j])
    assert mmu.table.positions[0].argmax(-1).tolist() == [victim] * 3


# TOVA -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [[], [9], [4, 5]])
def test_tova_evicts_what_the_query_before_looked_at_least(calls, seed):
    text = make_text(seed, 10)
    mmu = make_mmu(TOVA(), text, num_slots=9, num_sinks=0, window=1, chunk_size=9)
    drive(mmu, text.cut(0, 9), calls)
    last = [row[8] for row in weights(text, 9)]  # the query at position 8, one list a head
    for h in range(2):
        mean = [(a + b) / 2 for a, b in zip(last[2 * h], last[2 * h + 1])]
        assert flat(mmu.table.scores[0, h]) == pytest.approx(mean, abs=1e-6)
    drive(mmu, text.cut(9, 10))
    for h in range(2):
        mean = [a + b for a, b in zip(last[2 * h], last[2 * h + 1])]
        assert int(mmu.table.positions[0, h].argmax()) == mean.index(min(mean))


def test_tova_keeps_its_scores_through_pads():
    scores, _ = TOVA().update(view([0, 1], [0.25, 0.75], num_seen=2), seen(0, newest=[0.0, 0.0]))
    assert flat(scores) == [0.25, 0.75]
    scores, _ = TOVA().update(view([0, 1], [0.25, 0.75], num_seen=2), seen(1, newest=[0.5, 0.5]))
    assert flat(scores) == [0.5, 0.5]
