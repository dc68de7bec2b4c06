"""Protection, order of leaving and places of survivors, against plain Python lists."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from kvmmu.slots.ranking import plan_chunk, protected, rank

INF = float("inf")


def at(*positions: int) -> torch.Tensor:
    return torch.tensor(positions, dtype=torch.int32)[None, None]


def newest(position: int) -> torch.Tensor:
    return torch.full((1, 1, 1), position, dtype=torch.int32)


def flat(x: torch.Tensor) -> list[float]:
    return x.flatten().tolist()


def test_sinks_and_window_are_protected():
    found = protected(at(0, 1, 2, 3, 7, 8, 9, -1), newest(9), num_sinks=2, window=2)
    assert flat(found) == [True, True, False, False, False, True, True, False]


def test_window_counts_the_token_being_written():
    # token 10 is about to come: of the window of 3, it takes one place
    found = protected(at(6, 7, 8, 9), newest(10), num_sinks=0, window=3)
    assert flat(found) == [False, False, True, True]


def test_newest_is_protected_though_the_window_is_zero():
    assert flat(protected(at(8, 9), newest(9), num_sinks=0, window=0)) == [False, True]


def test_empty_slots_are_never_protected():
    assert not bool(protected(at(-1, -1), newest(0), num_sinks=4, window=8).any())


def test_order_of_leaving_is_empty_expired_priority_protected():
    positions = at(-1, 1, 5, 6, 9, 0)
    is_protected = torch.tensor([[[False, False, False, False, True, True]]])
    priority = torch.tensor([[[9.0, 9.0, 2.0, -5e30, 0.0, 0.0]]])
    ranks = rank(priority, positions, is_protected, newest(9), 6)
    assert ranks.argsort(dim=-1, stable=True).flatten().tolist() == [0, 1, 5, 3, 2, 4]
    assert flat(ranks)[:1] == [-INF]
    assert flat(ranks)[4] == INF


def test_sink_out_of_reach_leaves_before_any_token_in_reach():
    is_protected = torch.tensor([[[True, False, True]]])
    ranks = rank(torch.zeros(1, 1, 3), at(0, 5, 9), is_protected, newest(9), 8)
    assert int(ranks.argmin()) == 0


def test_reach_ends_where_the_mask_does():
    # a window of 4 at query 9 sees 6, 7, 8, 9
    none = torch.zeros(1, 1, 5, dtype=torch.bool)
    ranks = rank(torch.zeros(1, 1, 5), at(5, 6, 7, 8, 9), none, newest(9), 4)
    assert [r < 0 for r in flat(ranks)] == [True, False, False, False, False]


def plan(ranks: list[float], positions: list[int], num_slots: int) -> list[tuple[int, int]]:
    """(slot, candidate) pairs in writing order."""
    found = plan_chunk(torch.tensor(ranks)[None, None], at(*positions), num_slots)
    assert found.at.lane.tolist() == found.at.head.tolist() == [0] * len(found.new)
    return list(zip(found.at.slot.tolist(), found.new.tolist()))


def test_survivors_among_the_new_take_the_slots_of_the_losers():
    # slots hold 0..3; 4, 5, 6 are new; 1, 2 and 5 lose
    assert plan([9, 1, 2, 9, 9, 3, 9], [0, 1, 2, 3, 4, 5, 6], 4) == [(1, 4), (2, 6)]


def test_empty_slots_are_taken_before_evicted_ones():
    # slots 1 and 3 are empty; 7, 8, 9 come and the token in slot 0 loses
    ranks = [1, -INF, 5, -INF, 9, 9, 9]
    assert plan(ranks, [4, -1, 2, -1, 7, 8, 9], 4) == [(1, 4), (3, 5), (0, 6)]


def test_pads_are_never_written_and_free_nobody():
    assert plan([3, 2, -INF, -INF, 4], [0, 1, -1, -1, 2], 2) == [(1, 4)]
    assert plan([3, 2, -INF, -INF], [0, 1, -1, -1], 2) == []
    assert plan([-INF, -INF, -INF, 0], [-1, -1, -1, 0], 2) == [(0, 3)]


def test_ties_lose_by_the_lowest_candidate():
    assert plan([5, 5, 5, 5, 5], [0, 1, 2, 3, 4], 3) == [(0, 3), (1, 4)]


@given(data=st.data())
def test_plan_is_the_stable_sorts(data):
    num_slots, num_new = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 12))
    num_held, num_pads = data.draw(st.integers(0, num_slots)), data.draw(st.integers(0, num_new))
    order = data.draw(st.permutations(range(num_slots)))
    positions = [-1] * num_slots
    for p, slot in enumerate(order[:num_held]):
        positions[slot] = p
    positions += [-1] * num_pads + list(range(num_held, num_held + num_new - num_pads))
    ranks = [-INF if p < 0 else data.draw(st.sampled_from([0.0, 1.0, 2.0, INF])) for p in positions]
    real = [i for i, p in enumerate(positions) if p >= 0]
    num_losers = max(0, len(real) - num_slots)
    losers = sorted(real, key=lambda i: ranks[i])[:num_losers]  # Python's sort is stable
    came = [i for i in real if i >= num_slots and i not in losers]
    empty = [i for i in range(num_slots) if positions[i] < 0]
    gone = [i for i in range(num_slots) if i in losers]
    assert plan(ranks, positions, num_slots) == list(zip(empty + gone, came))
