"""Whatever comes and goes, in whatever order: the engine's invariants hold after every step."""

from __future__ import annotations

import pytest
from engine_models import VOCAB, tiny
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from kvmmu.engine.engine import Engine
from kvmmu.engine.lane_class import LaneClass
from kvmmu.engine.request import SamplingParams
from kvmmu.errors import CapacityError

CLASSES = (
    LaneClass("rce", 12, 2, chunk_size=5),
    LaneClass("novelty", 7, 1, policy="novelty", num_sinks=1, window=2),
    LaneClass("snapkv", 9, 2, policy="snapkv", num_sinks=0, window=1, granularity="layer"),
    LaneClass("endless", 10, 1, positions="in_cache"),
)


class Schedules(RuleBasedStateMachine):
    """Requests come, run, are cancelled and end; what each was given is what it makes alone."""

    names = Bundle("names")

    @initialize(
        mode=st.sampled_from(["fast", "reference"]),
        token_budget=st.sampled_from([1, 6, 20, 512]),
        max_waiting=st.sampled_from([None, 0, 2]),
    )
    def make(self, mode, token_budget, max_waiting):
        options = {"mode": mode, "token_budget": token_budget, "max_waiting": max_waiting}
        self.engine = Engine(tiny(), CLASSES, **options)
        self.tokens: dict[str, list[int]] = {}
        self.asked: dict[str, int] = {}
        self.finished: dict[str, str] = {}

    @rule(
        target=names,
        prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40),
        lane_class=st.sampled_from([one.name for one in CLASSES]),
        new=st.integers(1, 12),
        temperature=st.sampled_from([0.0, 1.0]),
        stops=st.sampled_from([(), (3, 17)]),
    )
    def add(self, prompt, lane_class, new, temperature, stops):
        params = SamplingParams(
            temperature=temperature, seed=1, max_new_tokens=new, stop_token_ids=stops
        )
        stats = self.engine.stats()
        try:
            name = self.engine.add(prompt, params, lane_class=lane_class)
        except CapacityError:
            assert self.engine.stats() == stats
            return "refused"
        self.tokens[name], self.asked[name] = [], new
        return name

    @rule(name=consumes(names))
    def cancel(self, name):
        was_live = name in self.tokens and name not in self.finished
        assert self.engine.cancel(name) == was_live

    @precondition(lambda self: self.engine.has_work)
    @rule(times=st.integers(1, 6))
    def step(self, times):
        for _ in range(times):
            for output in self.engine.step():
                name = output.request_id
                assert name not in self.finished
                self.tokens[name] += output.token_ids
                if output.finish:
                    self.finished[name] = output.finish
            self.engine.check_integrity()

    @invariant()
    def holds(self):
        if not hasattr(self, "engine"):
            return
        self.engine.check_integrity()
        stats = self.engine.stats()
        assert sum(busy for busy, _ in stats.lanes.values()) == stats.num_running
        for name, finish in self.finished.items():
            n, asked = len(self.tokens[name]), self.asked[name]
            assert n <= asked
            assert finish != "length" or n == asked
            assert finish != "error"

    def teardown(self):
        if not hasattr(self, "engine"):
            return
        for _ in range(2000):
            if not self.engine.has_work:
                break
            self.step(1)
        assert self.finished.keys() == self.tokens.keys()
        stats = self.engine.stats()
        assert stats.num_running == stats.num_waiting == 0
        assert all(busy == 0 for busy, _ in stats.lanes.values())


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(max_examples=10, stateful_step_count=15, deadline=None)


@pytest.mark.slow
class TestManySchedules(Schedules.TestCase):
    settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
