"""Is the agreement of integer victims with fp32 counted as one would count by hand?"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trace_story import SINKS, WINDOW, header, story, write

from kvmmu import trace as tr
from kvmmu.errors import TraceError
from kvmmu.trace import VictimAgreement, VictimTally


class Oracle:
    """Count from what was recorded alone: dictionaries of positions, no integer KV-MMU."""

    def __init__(self, head: tr.TraceHeader) -> None:
        self.head = head
        self.keep = 1.0 if head.decay_shift is None else 1 - 2.0**-head.decay_shift
        self.held: dict[tuple[int, int, int], dict[int, int]] = {}  # slot -> position
        self.scores: dict[tuple[int, int, int], dict[int, float]] = {}  # position -> score
        self.seen = [0] * head.geometry.batch
        self.same = self.evictions = self.chunk_same = self.chunk_lost = 0
        self.ranks: list[int] = []
        self.lost = self.least = 0.0

    def leaving(self, scores: dict[int, float], newest: int) -> list[int]:
        """List the positions in the order in which they would leave."""
        safe = {p for p in scores if p < SINKS or p > newest - WINDOW}
        return sorted(scores, key=lambda p: (p in safe, scores[p]))

    def tables(self, lane: int, layers: Any = None) -> list[tuple[int, int, int]]:
        every = range(self.head.geometry.num_layers) if layers is None else layers
        return [(layer, lane, head) for layer in every for head in range(self.head.num_tables)]

    def decode(self, block: tr.DecodeBlock) -> None:
        for s, lanes in enumerate(block.num_queries):
            for lane in np.flatnonzero(lanes):
                position = int(block.positions[s, lane])
                for table in self.tables(lane):
                    layer, _, head = table
                    held = self.held.setdefault(table, {})
                    scores = self.scores.setdefault(table, {})
                    if len(held) == self.head.geometry.slots[layer]:
                        self.judge(scores, int(block.evicted[s, layer, lane, head]), position)
                        del scores[int(block.evicted[s, layer, lane, head])]
                    held[int(block.slots[s, layer, lane, head])] = position
                    scores[position] = 0.0
                    masses = block.masses[s, layer, lane, head]
                    for slot, p in held.items():
                        scores[p] = scores[p] * self.keep + masses[slot] / 65536
                self.seen[lane] = position + 1

    def judge(self, scores: dict[int, float], left: int, newest: int) -> None:
        best = self.leaving(scores, newest)[0]
        self.evictions += 1
        self.same += left == best
        safe = {p for p in scores if p < SINKS or p > newest - WINDOW}
        self.ranks.append(sum(scores[p] < scores[left] for p in scores if p not in safe))
        self.lost += scores[left]
        self.least += scores[best]

    def chunk(self, event: tr.ChunkEvent) -> None:
        num_slots = self.head.geometry.slots[event.layer]
        for lane, valid in enumerate(event.valid):
            first, count = self.seen[lane], int(valid.sum())
            new = np.where(valid, first + valid.cumsum() - 1, -1)
            for table in self.tables(lane, [event.layer]):
                head = table[2]
                held = self.held.setdefault(table, {})
                scores = self.scores.setdefault(table, {})
                scores |= {int(p): 0.0 for p in new if p >= 0}
                places = held | {num_slots + i: int(p) for i, p in enumerate(new) if p >= 0}
                for slot, p in places.items():
                    mass = event.masses[lane, head, slot] / 65536
                    scores[p] = scores[p] * self.keep**count + (mass if count else 0)
                for row in range(len(event.slots)):
                    if (event.lanes[row], event.heads[row]) == (lane, head):
                        held[int(event.slots[row])] = int(event.positions[row])
                gone = set(scores) - set(held.values())
                would = self.leaving(scores, first + count - 1)[: len(gone)]
                self.chunk_lost += len(gone)
                self.chunk_same += len(gone & set(would))
                for p in gone:
                    del scores[p]
            if event.layer == self.head.geometry.num_layers - 1:
                self.seen[lane] += count

    def lane(self, event: tr.LaneEvent) -> None:
        if event.kind == "reorder":
            self.seen = [self.seen[source] for source in event.sources]
            for kept in (self.held, self.scores):
                old = {key: dict(value) for key, value in kept.items()}
                for lane, source in zip(event.lanes, event.sources, strict=True):
                    for layer, _, head in self.tables(lane):
                        kept[layer, lane, head] = dict(old[layer, source, head])
        elif event.kind != "merge":
            for lane in event.lanes:
                self.seen[lane] = 0
                for table in self.tables(lane):
                    self.held[table], self.scores[table] = {}, {}


def run_oracle(head: tr.TraceHeader, events: list[tr.Event]) -> Oracle:
    oracle = Oracle(head)
    for event in events:
        if isinstance(event, tr.DecodeBlock):
            oracle.decode(event)
        elif isinstance(event, tr.ChunkEvent):
            oracle.chunk(event)
        else:
            oracle.lane(event)
    return oracle


@pytest.mark.parametrize("granularity", ["head", "layer"])
@pytest.mark.parametrize("shift", [None, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_count_is_that_of_plain_dictionaries(
    tmp_path: Path, granularity: Any, shift: int | None, seed: int
) -> None:
    head = header(granularity=granularity, decay_shift=shift)
    events, _ = story(head, seed)
    found = tr.agreement(tr.read(write(tmp_path / "t", head, events, masses=True)))
    oracle = run_oracle(head, events)
    assert (found.evictions, found.same_slot) == (oracle.evictions, oracle.same)
    assert (found.chunk_evictions, found.chunk_same) == (oracle.chunk_lost, oracle.chunk_same)
    assert list(found.ranks) == np.bincount(oracle.ranks).tolist()
    assert found.lost_mass == pytest.approx(oracle.lost, rel=1e-5)  # float32 sums
    assert found.least_mass == pytest.approx(oracle.least, rel=1e-5)
    assert min(found.evictions, found.chunk_evictions) > 20
    assert found.weights == "uq0.16"


def test_a_difference_that_was_shifted_away_is_found(tmp_path: Path) -> None:
    head = one_table(3)
    full = [[20001, 0, 0], [20000, 60000, 0], [60000, 40000, 0]]
    none = tr.agreement(tr.read(write(tmp_path / "t", head, [decodes(full)], masses=True)))
    assert (none.evictions, none.rate, none.p99_rank) == (0, None, None)
    # 100,001 and 100,000 are 50,000 after the shift: the lower slot leaves, fp32 takes the other
    more = [*full, [0, 0, 0]]
    made = tr.agreement(tr.read(write(tmp_path / "u", head, [decodes(more)], masses=True)))
    assert (made.evictions, made.same_slot, made.same_or_tied, made.num_ties) == (1, 0, 1, 1)
    assert (made.ranks, made.mean_rank, made.p99_rank) == ((0, 1), 1, 1)
    assert (made.lost_mass * 65536, made.least_mass * 65536) == (100001, 100000)
    assert made.lost_more == pytest.approx(1e-5)
    assert (made.chunk_evictions, made.to_json()["chunk_rate"]) == (0, None)


def one_table(num_slots: int) -> tr.TraceHeader:
    """Describe one lane, layer and table; the newest two tokens are protected, no sink is."""
    plain = header()
    geometry = dataclasses.replace(
        plain.geometry, num_layers=1, batch=1, num_kv_heads=1, slots=(num_slots,)
    )
    return dataclasses.replace(
        plain, geometry=geometry, num_sinks=0, window=2, decay_shift=None, layer_types=("full",)
    )


def decodes(masses: list[list[int]]) -> tr.DecodeBlock:
    """Make decode steps of one table; what it wrote is not looked at."""
    steps = len(masses)
    table = (steps, 1, 1, 1)
    return tr.DecodeBlock(
        steps=np.arange(steps),
        num_queries=np.ones((steps, 1), np.int32),
        slots=np.zeros(table, np.int32),
        evicted=np.full(table, -1, np.int32),
        positions=np.arange(steps)[:, None],
        n_valid=np.ones((steps, 1, 1), np.int32),
        masses=np.array(masses, np.uint16).reshape(*table, -1),
    )


def test_masses_that_were_not_recorded_are_refused(tmp_path: Path) -> None:
    trace = tr.read(write(tmp_path / "t", header(), [], masses=False))
    with pytest.raises(TraceError, match="holds no masses"):
        tr.agreement(trace)


def test_another_victim_without_a_tie_is_no_agreement() -> None:
    tally = VictimTally()
    exact = np.array([[0.3, 0.1, 0.2, np.inf], [0.3, 0.1, 0.2, np.inf]], np.float32)
    integer = np.array([[3, 2, 1, np.inf], [3, 1, 1, np.inf]], np.float32)
    tally.decode(exact, integer, slots=np.array([2, 1]), masses=exact)
    made = tally.made("float32")
    assert (made.evictions, made.same_slot, made.same_or_tied, made.num_ties) == (2, 1, 1, 1)
    assert made.ranks == (1, 1)


def test_parts_pool_to_the_whole() -> None:
    rng = np.random.default_rng(3)
    whole, parts = VictimTally(), [VictimTally(), VictimTally()]
    for part in parts:
        exact = rng.random((40, 6)).astype(np.float32)
        integer = np.floor(exact * 8)
        rows = {"slots": integer.argmin(-1), "masses": exact}
        is_lost = rng.random((5, 8)) < 0.3
        for tally in (whole, part):
            tally.decode(exact, integer, **rows)
            tally.chunk(rng.permuted(np.tile(np.arange(8.0), (5, 1)), axis=1), is_lost, num_new=2)
    made = [part.made("float32") for part in parts]
    pooled, all_ = VictimAgreement.pooled(made), whole.made("float32")
    assert 0 < pooled.same_slot < pooled.same_or_tied <= pooled.evictions == 80
    for name in ("evictions", "same_slot", "same_or_tied", "num_ties", "ranks", "chunk_evictions"):
        assert getattr(pooled, name) == getattr(all_, name), name
    with pytest.raises(ValueError, match="must have one kind of weights"):
        VictimAgreement.pooled([made[0], dataclasses.replace(made[1], weights="uq0.16")])
    plain = json.loads(json.dumps(pooled.to_json()))
    assert VictimAgreement.from_json(plain) == pooled
    assert plain["rate"] == pooled.same_slot / 80
