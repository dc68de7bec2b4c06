"""RCE's further scores by hand: the largest attention, a window of queries, values' lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mmu_driver import SCALE, drive, make_mmu, make_text

from kvmmu.policies.base import Policy
from kvmmu.policies.rce import RCE
from kvmmu.policies.snapkv import SnapKV


def attention(text: Any) -> np.ndarray:
    """Attention over a whole row of two query heads a KV head. -> [Hkv,G,query,key]."""
    q, k = (x[0].double().numpy() for x in (text.q, text.k))
    q = q.reshape(len(k), -1, *q.shape[1:])
    logits = SCALE * np.einsum("hgid,hjd->hgij", q, k)
    logits[..., np.triu_indices(text.length, 1)[0], np.triu_indices(text.length, 1)[1]] = -np.inf
    e = np.exp(logits)
    return e / e.sum(-1, keepdims=True)


CALLS = ([], [30], [3, 1, 11, 1, 1, 7], [1, 29])


@pytest.mark.parametrize("chunk_size", [1, 4, 13, 30])
@pytest.mark.parametrize("calls", CALLS)
@pytest.mark.parametrize("decay", [1.0, 0.7])
def test_largest_attention_counts_tokens_not_calls(decay, calls, chunk_size, seed):
    text = make_text(seed, 30)
    policy = RCE(decay=decay, normalize="none", statistic="max")
    mmu = make_mmu(policy, text, num_slots=32, chunk_size=chunk_size)
    drive(mmu, text, calls)
    faded = attention(text).mean(1) * decay ** np.arange(29, -1, -1.0)[:, None]
    assert mmu.table.scores[0, :, :30].numpy() == pytest.approx(faded.max(1), abs=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 4, 13, 30])
@pytest.mark.parametrize("calls", CALLS)
@pytest.mark.parametrize("length", [1, 4, 5, 23, 30])
def test_window_counts_its_queries_whatever_the_calls(length, calls, chunk_size, seed):
    text = make_text(seed, length)
    mmu = make_mmu(
        RCE(window_queries=10, normalize="age"), text, num_slots=32, chunk_size=chunk_size
    )
    drive(mmu, text, calls)
    p = attention(text).sum(1)
    border = (length - 1) // 5 * 5  # 10 / 2 queries a block
    newer, older = p[:, border:].sum(1), p[:, max(0, border - 5) : border].sum(1)
    assert mmu.table.scores[0, :, :length].numpy() == pytest.approx(newer, abs=1e-5)
    assert mmu.table.state["older"][0, :, :length].numpy() == pytest.approx(older, abs=1e-5)


def test_window_divides_by_the_queries_it_holds(seed):
    text = make_text(seed, 23)
    for normalize in ("none", "age"):
        policy = RCE(window_queries=10, normalize=normalize)
        mmu = make_mmu(policy, text, num_slots=32)
        drive(mmu, text)
        table = mmu.table
        view = mmu.view(table.positions, table.scores, table.num_seen.view(1, 1, 1), table.state)
        want = attention(text).sum(1)[:, 15:].sum(1)  # queries [15, 23): 8 of the last 10
        if normalize == "age":
            want = want / np.minimum(8, 23 - np.arange(23))
        assert policy.priority(view)[0, :, :23].numpy() == pytest.approx(want, abs=1e-5)


def test_old_queries_leave_the_window(seed):
    text = make_text(seed, 40)
    mmu = make_mmu(RCE(window_queries=10, normalize="none"), text, num_slots=40)
    drive(mmu, text)
    total = mmu.table.scores + mmu.table.state["older"]
    assert total.sum(-1)[0].tolist() == pytest.approx([20.0, 20.0])  # ten queries, two heads each
    assert bool((total > 0).all())


@pytest.mark.parametrize("normalize", ["none", "age"])
def test_value_norm_weighs_by_the_length_of_the_value(normalize, seed):
    text = make_text(seed, 12)
    plain, weighed = (
        RCE(statistic="mass", normalize=normalize, value_norm=is_weighed)
        for is_weighed in (False, True)
    )
    mmus = [make_mmu(policy, text, num_slots=12) for policy in (plain, weighed)]
    ranks = []
    for mmu in mmus:
        drive(mmu, text, [7])
        table = mmu.table
        view = mmu.view(table.positions, table.scores, table.num_seen.view(1, 1, 1), table.state)
        ranks.append(mmu.policy.priority(view)[0].numpy())
    lengths = np.linalg.norm(text.v[0].numpy(), axis=-1)
    assert ranks[1] == pytest.approx(ranks[0] * lengths, rel=1e-5)
    assert torch.equal(mmus[0].table.scores, mmus[1].table.scores)


@pytest.mark.parametrize(
    ("policy", "needs", "count"),
    [
        (RCE(statistic="mass"), {"mass"}, 2),
        (RCE(), {"max"}, 3),
        (RCE(normalize="age"), {"mass"}, 3),
        (RCE(decay=0.9, normalize="age"), {"mass"}, 4),
        (RCE(decay=1.0, statistic="max"), {"max"}, 2),
        (RCE(window_queries=8), {"mass", "last"}, 3),
        (RCE(statistic="mass", value_norm=True), {"mass", "v"}, 67),
    ],
    ids=lambda value: repr(value) if isinstance(value, Policy) else None,  # a set has no order
)
def test_rce_asks_and_costs_what_its_rules_are(policy: Policy, needs, count):
    assert policy.needs == needs
    assert policy.ops_per_slot == count


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"statistic": "min"}, "statistic must be 'mass' or 'max', got 'min'"),
        ({"window_queries": 0}, "window_queries must be an even integer of at least 2, got 0"),
        ({"window_queries": 7}, "window_queries must be an even integer of at least 2, got 7"),
        ({"window_queries": 8.0}, "window_queries must be an even integer of at least 2, got 8.0"),
        ({"window_queries": True}, "window_queries must be an even integer"),
        ({"value_norm": 1}, "value_norm must be True or False, got 1"),
        ({"statistic": "max", "normalize": "age"}, "normalize must be 'none' with statistic='max'"),
        (
            {"statistic": "max", "window_queries": 8},
            "statistic must be 'mass' with window_queries, got 'max'; a decay forgets old maxima",
        ),
        ({"window_queries": 8, "decay": 0.9}, r"decay must be 1.0 with window_queries"),
        ({"fixed_point": True, "statistic": "max"}, "fixed_point=True adds up plain"),
        ({"fixed_point": True, "window_queries": 8}, "fixed_point=True adds up plain"),
        ({"fixed_point": True, "value_norm": True}, "fixed_point=True adds up plain"),
    ],
)
def test_rce_refuses_what_means_nothing(params, words):
    with pytest.raises(ValueError, match=words):
        RCE(**params)


def test_snapkv_hands_over_to_every_score_but_a_window():
    SnapKV(then=RCE(normalize="none", statistic="max"))
    SnapKV(then=RCE(value_norm=True))
    with pytest.raises(ValueError, match="then must not forget queries in blocks, got RCE"):
        SnapKV(then=RCE(window_queries=8))
