"""Who decodes, whose chunk runs: within a budget, in order, never resized."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmmu.engine.request import Request, SamplingParams
from kvmmu.engine.sampler import RowState
from kvmmu.engine.scheduler import Scheduler, Track
from kvmmu.engine.text import TextStream
from kvmmu.errors import CapacityError, IntegrityError


class Lanes:
    """The part of a pool that a scheduler sees."""

    def __init__(self, num_lanes, chunk_size=8, kind="step"):
        self.settings = SimpleNamespace(chunk_size=chunk_size, policy=SimpleNamespace(kind=kind))
        self.num_lanes, self.claimed = num_lanes, []
        self.num_seen = [0] * num_lanes

    @property
    def num_free(self):
        return self.num_lanes - len(self.claimed)

    def claim(self):
        free = [lane for lane in range(self.num_lanes) if lane not in self.claimed]
        if free:
            self.claimed = sorted([*self.claimed, free[0]])
        return free[0] if free else None

    def release(self, lane):
        self.claimed.remove(lane)
        self.num_seen[lane] = 0

    def check_integrity(self):
        pass


def scheduler(num_lanes=2, *, token_budget=16, max_waiting=None, **parts):
    pools = {"a": Lanes(num_lanes, **parts)}
    return Scheduler(pools, token_budget=token_budget, max_waiting=max_waiting)


def track(num_prompt, name="r", lane_class="a"):
    params = SamplingParams()
    prompt = tuple(range(num_prompt))
    request = Request(name, prompt, params, lane_class)
    return Track(request, RowState(params, prompt, 99), TextStream(None, ()))


def fed(plan, pools):
    """Do what an engine does with a plan; return the rows that it took."""
    rows = 0
    for name, tracks in plan.decodes.items():
        for one in tracks:
            one.num_fed += 1
            pools[name].num_seen[one.lane] += 1
            rows += 1
    for chunk in plan.chunks:
        assert chunk.start == chunk.track.num_fed
        chunk.track.num_fed = chunk.stop
        pools[chunk.track.request.lane_class].num_seen[chunk.track.lane] = chunk.stop
        rows += chunk.stop - chunk.start
    return rows


def spans(plan):
    return [(c.track.request.request_id, c.start, c.stop) for c in plan.chunks]


def test_lanes_go_to_those_who_came_first():
    made = scheduler(num_lanes=2)
    tracks = [track(3, name) for name in "xyz"]
    for one in tracks:
        made.add(one)
    made.plan()
    assert [one.lane for one in tracks] == [0, 1, None]
    made.end(tracks[0])
    made.plan()
    assert tracks[2].lane == 0


def test_oldest_prompt_goes_first_and_one_chunk_a_step():
    made = scheduler(token_budget=8)
    made.add(track(20, "x"))
    made.add(track(5, "y"))
    seen = []
    for _ in range(4):
        plan = made.plan()
        seen.append(spans(plan))
        fed(plan, made.pools)
    assert seen == [[("x", 0, 8)], [("x", 8, 16)], [("x", 16, 20)], [("y", 0, 5)]]


def test_prompt_takes_as_many_chunks_in_a_row_as_fit():
    made = scheduler(token_budget=20)
    made.add(track(37, "x"))
    made.add(track(4, "y"))
    seen = []
    for _ in range(3):
        plan = made.plan()
        seen.append(spans(plan))
        fed(plan, made.pools)
    assert seen == [[("x", 0, 16), ("y", 0, 4)], [("x", 16, 32)], [("x", 32, 37)]]


def test_chunks_of_several_prompts_share_a_step_within_the_budget():
    made = scheduler(num_lanes=3, token_budget=16)
    for name in "xyz":
        made.add(track(8, name))
    assert spans(made.plan()) == [("x", 0, 8), ("y", 0, 8)]


def test_decoding_rows_come_first():
    made = scheduler(num_lanes=2, token_budget=9)
    made.add(track(1, "x"))
    fed(made.plan(), made.pools)
    made.add(track(8, "y"))
    plan = made.plan()
    assert [one.request.request_id for one in plan.decodes["a"]] == ["x"]
    assert spans(plan) == [("y", 0, 8)]


def test_chunk_larger_than_what_is_left_waits_for_left_overs():
    made = scheduler(num_lanes=2, token_budget=4)
    made.add(track(1, "x"))
    fed(made.plan(), made.pools)
    made.add(track(16, "y"))
    runs = []
    for _ in range(6):
        plan = made.plan()
        assert len(plan.decodes["a"]) == 1  # who decodes never waits
        runs.append(spans(plan))
        fed(plan, made.pools)
    assert runs == [[], [], [("y", 0, 8)], [], [], [("y", 8, 16)]]  # 3 + 3 + 3 >= 8


def test_left_overs_of_a_step_that_ran_a_chunk_are_not_saved():
    made = scheduler(num_lanes=6, token_budget=12)
    for name in "abcd":
        made.add(track(1, name))
    fed(made.plan(), made.pools)
    made.add(track(8, "x"))
    made.add(track(8, "y"))
    runs = []
    for _ in range(3):
        plan = made.plan()
        runs.append(spans(plan))
        fed(plan, made.pools)
    assert runs == [[("x", 0, 8)], [], [("y", 0, 8)]]  # five decode then: 7 a step are left


def test_prompts_of_all_classes_go_in_order_of_arrival():
    pools = {"a": Lanes(2), "b": Lanes(2)}
    made = Scheduler(pools, token_budget=8, max_waiting=None)
    for name in ("b", "a"):
        made.add(track(8, name, lane_class=name))
    seen = []
    for _ in range(2):
        plan = made.plan()
        seen += spans(plan)
        for chunk in plan.chunks:
            chunk.track.num_fed = chunk.stop
            made.end(chunk.track)
    assert seen == [("b", 0, 8), ("a", 0, 8)]


def test_budget_that_decoding_takes_whole_still_lets_prompts_in():
    made = scheduler(num_lanes=3, token_budget=1)
    for name in "xy":
        made.add(track(1, name))
    for _ in range(2):
        fed(made.plan(), made.pools)
    made.add(track(8, "z"))
    runs = [spans(made.plan()) for _ in range(8)]
    assert runs[-1] == [("z", 0, 8)]
    assert not any(runs[:-1])


def test_chunk_larger_than_the_budget_runs_at_once_while_nothing_decodes():
    made = scheduler(token_budget=2)
    made.add(track(20, "x"))
    assert spans(made.plan()) == [("x", 0, 8)]


def test_selector_takes_its_prompt_whole():
    made = scheduler(token_budget=2, kind="selector")
    made.add(track(50, "x"))
    assert spans(made.plan()) == [("x", 0, 50)]


@given(
    arrivals=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    token_budget=st.integers(1, 40),
    chunk_size=st.integers(1, 12),
    num_lanes=st.integers(1, 4),
)
def test_every_prompt_is_cut_at_multiples_of_the_chunk_and_ends(
    arrivals, token_budget, chunk_size, num_lanes
):
    made = scheduler(num_lanes, token_budget=token_budget, chunk_size=chunk_size)
    waiting = [track(n, str(i)) for i, n in enumerate(arrivals)]
    cuts = {str(i): [] for i in range(len(arrivals))}
    live = []
    for _ in range(2000):
        if waiting:
            live.append(waiting.pop(0))
            made.add(live[-1])
        plan = made.plan()
        made.check_integrity([*live])
        rows = fed(plan, made.pools)
        num_decoding = sum(map(len, plan.decodes.values()))
        if sum(stop - start for _, start, stop in spans(plan)) > chunk_size:
            assert rows <= token_budget
        assert len({c.track.lane for c in plan.chunks}) == len(plan.chunks)
        assert num_decoding + len(plan.chunks) > 0 or not live or token_budget < chunk_size
        for name, start, stop in spans(plan):
            cuts[name].append((start, stop))
        for one in [one for one in live if one.num_fed > len(one.request.prompt_ids) + 2]:
            made.end(one)
            live.remove(one)
        if not live and not waiting:
            break
    else:
        pytest.fail("a request never ended")
    for i, n in enumerate(arrivals):
        starts = [start for start, _ in cuts[str(i)]]
        assert not any(start % chunk_size for start in starts)
        assert [0, *(stop for _, stop in cuts[str(i)])] == [*starts, n]
    assert made.num_running == made.num_waiting == 0


# ------------------------------------------------------------------------ the queue's bound
def test_more_than_may_wait_are_refused():
    made = scheduler(num_lanes=1, max_waiting=1)
    made.add(track(1, "x"))
    made.add(track(1, "y"))
    assert not made.has_room("a")
    with pytest.raises(CapacityError, match="at most 1 requests may wait"):
        made.add(track(1, "z"))
    made.plan()
    with pytest.raises(CapacityError, match="at most 1 requests may wait"):
        made.add(track(1, "z"))
    assert made.num_waiting == 1


def test_none_may_wait_where_the_bound_is_zero():
    made = scheduler(num_lanes=2, max_waiting=0)
    made.add(track(1, "x"))
    made.add(track(1, "y"))
    with pytest.raises(CapacityError):
        made.add(track(1, "z"))


def test_request_that_waits_can_end():
    made = scheduler(num_lanes=1)
    first, second = track(1, "x"), track(1, "y")
    made.add(first)
    made.add(second)
    made.end(second)
    made.plan()
    assert (made.num_waiting, made.num_running) == (0, 1)


@pytest.mark.parametrize("value", [0, -1, True, 1.5])
def test_budget_must_be_a_positive_integer(value):
    with pytest.raises(ValueError, match="token_budget must be an integer of at least 1"):
        scheduler(token_budget=value)


@pytest.mark.parametrize("value", [-1, True, 1.5])
def test_bound_of_the_queue_must_be_a_count(value):
    with pytest.raises(ValueError, match="max_waiting must be None or an integer"):
        scheduler(max_waiting=value)


# ------------------------------------------------------------------------ integrity
@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda s, t: s.pools["a"].claimed.append(1), "must be claimed by running requests"),
        (lambda s, t: setattr(t, "lane", 1), "must be claimed by running requests"),
        (lambda s, t: setattr(t, "num_fed", 3), "must have seen 3 tokens, got 16"),
        (lambda s, t: setattr(t, "num_fed", 17), "must have seen 17 tokens, got 16"),
        (lambda s, t: s.running["a"].clear(), "must be claimed"),
        (lambda s, t: setattr(s.waiting["a"][0], "num_fed", 2), "must hold no lane"),
        (lambda s, t: s.waiting["a"].clear(), "live requests must be those that wait or run"),
    ],
)
def test_integrity_check_names_what_does_not_fit(break_it, message):
    made = scheduler(num_lanes=1)
    made.pools["a"].num_lanes = 1
    live = [track(20, "x"), track(20, "y")]
    for one in live:
        made.add(one)
    fed(made.plan(), made.pools)
    made.check_integrity(live)
    break_it(made, live[0])
    with pytest.raises(IntegrityError, match=message):
        made.check_integrity(live)
