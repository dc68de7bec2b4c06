"""Rounds in turns: the order, which of them count, and what is made of them."""

from __future__ import annotations

from kvmmu.evals.bench.rounds import MOST_TAKEN, Clock, Turn, alternate, quartiles


def script(*turns):
    """Make a candidate that takes these (ms, share taken) turns, one after another."""
    left = iter(turns)
    return lambda: Turn(*next(left))


def test_the_order_alternates():
    seen = []

    def note(name):
        return lambda: seen.append(name) or Turn(1.0, 0.0)

    alternate({"a": note("a"), "b": note("b")}, rounds=3)
    assert seen == ["a", "b", "b", "a", "a", "b"]


def test_a_round_counts_up_to_the_limit_and_is_void_above_it():
    turns = [(1.0, MOST_TAKEN), (2.0, MOST_TAKEN + 0.01), (3.0, 0.0)]
    made = alternate({"a": script(*turns)}, rounds=2)
    assert (made.valid, made.num_rounds) == ([0, 2], 3)
    assert made.times_ms("a") == [1.0, 3.0]


def test_one_disturbed_turn_voids_the_round_of_all():
    quiet = [(1.0, 0.0)] * 4
    made = alternate({"a": script(*quiet), "b": script((9.0, 0.9), *quiet)}, rounds=2)
    assert made.valid == [1, 2]
    assert made.median_ms("b") == 1.0


def test_rounds_end_at_twice_as_many_and_say_that_none_counts():
    made = alternate({"a": script(*[(1.0, 0.9)] * 6)}, rounds=3)
    assert made.is_void
    assert made.num_rounds == 6
    assert made.median_ms("a") == 1.0


def test_speedups_are_taken_round_by_round():
    made = alternate({"a": script((1, 0), (2, 0)), "b": script((3, 0), (8, 0))}, rounds=2)
    assert made.speedups("a", "b") == [3.0, 4.0]
    assert made.speedups("b", "a") == [1 / 3, 1 / 4]


def test_quartiles_of_one_value_are_the_value():
    assert quartiles([5.0]) == (5.0, 5.0)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)


def test_the_clock_takes_the_childs_own_time_for_its_own(monkeypatch):
    clock = Clock(2)
    busy = iter([10.0, 12.0])
    monkeypatch.setattr(clock, "busy_s", lambda: next(busy))
    made, taken = clock.watch(lambda: {"cpu_s": 1.5, "all_cpu_s": 2.0, "wall_s": 1.0})
    assert taken == 0.0
    assert made["cpu_s"] == 1.5


def test_where_nothing_tells_the_childs_share_of_its_threads_decides(monkeypatch):
    clock = Clock(2)
    monkeypatch.setattr(clock, "busy_s", lambda: None)
    _, taken = clock.watch(lambda: {"cpu_s": 1.0, "wall_s": 1.0})
    assert taken == 0.5
