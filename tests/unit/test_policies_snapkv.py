"""SnapKV on small cases by hand: what the last queries choose, and who follows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmu_driver import SCALE, call, drive, full_attention, held, make_mmu, make_text, real_part

from kvmmu.policies.h2o import H2O
from kvmmu.policies.rce import RCE
from kvmmu.policies.snapkv import SnapKV
from kvmmu.policies.streaming_llm import StreamingLLM
from kvmmu.policies.tova import TOVA


def chosen(text: Any, *, row: int, head: int, keep: int, votes: int, kernel: int, how: str) -> set:
    """Sinks apart, the positions that SnapKV's rule keeps, in plain Python over float64."""
    one = text.row(row)
    length, group = one.length, one.q.shape[1] // one.k.shape[1]
    total = [0.0] * (length - votes)
    for g in range(group):
        q, k = one.q[0, head * group + g].double(), one.k[0, head].double()
        for i in range(length - votes, length):
            p = (SCALE * (k[: i + 1] @ q[i])).softmax(0).tolist()
            total = [a + b for a, b in zip(total, p)]
    half = kernel // 2
    padded = [0.0] * half + total + [0.0] * half
    pool = max if how == "max" else sum
    pooled = [pool(padded[j : j + kernel]) for j in range(len(total))]
    best = sorted(range(len(total)), key=lambda j: -pooled[j])[: keep - votes]
    return {*best, *range(length - votes, length)}


@pytest.mark.parametrize(("kernel", "how"), [(1, "avg"), (5, "avg"), (3, "max")])
@pytest.mark.parametrize("votes", [1, 4])
def test_prompt_is_chosen_by_its_last_queries(kernel, how, votes, seed):
    text = make_text(seed, 40, lengths=[40, 28])
    policy = SnapKV(observation_window=votes, kernel_size=kernel, pooling=how)
    mmu = make_mmu(policy, text, num_slots=11, num_sinks=0, window=1)
    drive(mmu, text, [40])
    for row in range(2):
        for head in range(2):
            want = chosen(text, row=row, head=head, keep=11, votes=votes, kernel=kernel, how=how)
            found = held(mmu, row, head)
            assert set(range((40, 28)[row] - votes, (40, 28)[row])) <= found
            if how == "avg":
                assert found == want
            else:  # neighbours of a peak tie, and ties go to the lowest candidate
                assert len(found & want) >= 9


def test_sinks_and_window_stay_beside_the_choice(seed):
    text = make_text(seed, 40)
    mmu = make_mmu(SnapKV(observation_window=2), text, num_slots=12, num_sinks=3, window=5)
    drive(mmu, text, [40])
    for head in range(2):
        assert {0, 1, 2, 35, 36, 37, 38, 39} <= held(mmu, 0, head)


def test_prompt_attends_to_all_of_itself(seed):
    text = make_text(seed, 40, lengths=[40, 28])
    mmu = make_mmu(SnapKV(), text, num_slots=8)
    out = real_part(drive(mmu, text, [40]), text)
    assert torch.allclose(out, real_part(full_attention(text).float(), text), atol=1e-5)


@pytest.mark.parametrize("then", [RCE(), RCE(decay=0.9), H2O(), TOVA(), StreamingLLM()], ids=repr)
def test_step_policy_goes_on_with_its_own_scores(then, seed):
    text = make_text(seed, 50)
    mmu = make_mmu(SnapKV(then=then), text, num_slots=12)
    twin = make_mmu(then, text, num_slots=64)  # sees the prompt whole, and evicts nobody
    drive(mmu, text.cut(0, 30), [30])
    drive(twin, text.cut(0, 30))
    for head in range(2):
        scores = dict(zip(mmu.table.positions[0, head].tolist(), mmu.table.scores[0, head]))
        for position, score in scores.items():
            want = twin.table.scores[0, head, position]
            assert float(score) == pytest.approx(float(want), abs=1e-5)
    heir = make_mmu(then, text, num_slots=12)  # continues from SnapKV's choice
    for name, tensor in heir.tensors().items():
        tensor.copy_(mmu.tensors()[name])
    for a in range(30, 50):
        assert torch.equal(call(mmu, text, a, a + 1), call(heir, text, a, a + 1))
    assert torch.equal(mmu.table.positions, heir.table.positions)


def test_second_prompt_is_chosen_from_what_is_held_and_what_is_new(seed):
    text = make_text(seed, 60)
    mmu = make_mmu(SnapKV(observation_window=3), text, num_slots=12, num_sinks=1)
    drive(mmu, text.cut(0, 32), [30])
    before = held(mmu, 0, 0)
    call(mmu, text, 32, 60)
    after = held(mmu, 0, 0)
    assert after <= before | set(range(32, 60))
    assert {0, 57, 58, 59} <= after
    assert len(after) == 12


def test_prompt_shorter_than_the_observation_window_is_kept(seed):
    text = make_text(seed, 10, lengths=[10, 2])
    mmu = make_mmu(SnapKV(observation_window=6), text, num_slots=9, num_sinks=2)
    drive(mmu, text.cut(0, 10), [10])
    assert held(mmu, 1, 0) == {0, 1}
    assert {0, 1, 4, 5, 6, 7, 8, 9} <= held(mmu, 0, 0)


# Parameters -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_slots", "want"), [(4, 1), (7, 1), (16, 4), (64, 16), (128, 32), (4096, 32)]
)
def test_default_observation_window_fits_the_slots(num_slots, want):
    bound = SnapKV().bind(num_slots=num_slots, num_sinks=0, window=1)
    assert bound.num_last == want


def test_explicit_observation_window_that_does_not_fit_is_refused():
    SnapKV(observation_window=12).bind(num_slots=16, num_sinks=4, window=2)
    words = (
        "observation_window must be at most num_slots - num_sinks = 12, got 13; "
        "raise num_slots or lower it"
    )
    with pytest.raises(ValueError, match=words):
        SnapKV(observation_window=13).bind(num_slots=16, num_sinks=4, window=2)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"observation_window": 0}, "observation_window must be an integer of at least 1, got 0"),
        (
            {"observation_window": 2.5},
            "observation_window must be an integer of at least 1, got 2.5",
        ),
        ({"observation_window": True}, "must be an integer of at least 1, got True"),
        ({"kernel_size": 5.0}, "kernel_size must be an odd and positive integer, got 5.0"),
        ({"kernel_size": 4}, "kernel_size must be an odd and positive integer, got 4"),
        ({"kernel_size": -1}, "kernel_size must be an odd and positive integer, got -1"),
        ({"pooling": "mean"}, "pooling must be 'avg' or 'max', got 'mean'"),
        ({"then": "snapkv"}, "then must be a step policy, got 'snapkv'"),
        ({"then": SnapKV()}, "then must be a step policy, got 'snapkv'"),
        ({"then": "rec"}, "unknown policy 'rec'; did you mean 'rce'"),
    ],
)
def test_snapkv_refuses(params, words):
    with pytest.raises(ValueError, match=words):
        SnapKV(**params)


def test_snapkv_refuses_what_is_no_policy():
    with pytest.raises(TypeError, match="policy must be a name or a registered Policy, got 3"):
        SnapKV(then=3)


def test_step_policies_choose_nothing_at_once():
    with pytest.raises(TypeError, match="policy 'rce' is not a selector"):
        RCE().select(None, None)


def test_integers_cannot_follow_a_selection():
    with pytest.raises(ValueError, match="then must take a prompt of any length at once"):
        SnapKV(then=RCE(fixed_point=True, normalize="none"))
