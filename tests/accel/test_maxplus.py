"""The max-plus machine against an independent longest path over an explicit graph of tasks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmmu.accel.pipeline.maxplus import (
    ARRAY,
    COLUMNS,
    DRAM,
    GEMM,
    MMU,
    ONLINE,
    SINGLE,
    SOFTMAX,
    STREAM,
    SWEEPS,
    VECTOR,
    State,
    run_layers,
    run_program,
)


def op(kind, **given):
    row = {"wait": -1, "put": -1, "scored": -1} | given | {"kind": kind}
    return [row.get(name, 0) for name in COLUMNS]


def parts(total, n):
    """Split a whole number as evenly as whole numbers allow, the larger parts first."""
    return [total // n + (i < total % n) for i in range(n)]


class Graph:
    """Tasks as nodes with explicit predecessors; the end of each is its longest path."""

    def __init__(self, depth):
        self.depth, self.ends = depth, []
        self.last_of_unit, self.registers = {}, {}
        self.tiles = {"weight": [], "kv": []}  # per tile: [fetch node, node that uses it up]

    def add(self, unit, duration, after=(), put=None):
        units = (unit,) if isinstance(unit, str) else unit
        before = [p for p in (*map(self.last_of_unit.get, units), *after) if p is not None]
        self.ends.append(max((self.ends[p] for p in before), default=0) + duration)
        node = len(self.ends) - 1
        self.last_of_unit |= dict.fromkeys(units, node)
        if put is not None:
            self.registers[put] = node
        return node

    def fetch(self, ring, duration):
        tiles = self.tiles[ring]
        lies_there = tiles[-self.depth][1] if len(tiles) >= self.depth else None
        tiles.append([self.add("dram", duration, [lies_there]), None])
        return tiles[-1]

    def stream(self, r, total, last, after, put=None):
        """Add the softmax's pass whose last part the KV-MMU takes as it is made."""
        before = self.add("soft", total - last, after)
        units = ("soft", "mmu") if r["beats"] else ("soft",)
        joint = self.add(units, max(last, r["beats"]), [before], put)
        if r["scored"] >= 0:
            self.add((), r["latency"], [joint], r["scored"])
        return joint

    def register(self, name):
        return self.registers.get(name) if name >= 0 else None

    def run(self, row):
        r = dict(zip(COLUMNS, row))
        n, put = r["tiles"], r["put"] if r["put"] >= 0 else None
        first = self.register(r["wait"])
        if r["kind"] == SINGLE:
            names = {DRAM: "dram", ARRAY: "array", SOFTMAX: "soft", VECTOR: "vector", MMU: "mmu"}
            self.add(names[r["unit"]], r["a"], [first], put)
        elif r["kind"] == GEMM:
            for i, (f, u) in enumerate(zip(parts(r["a"], n), parts(r["b"], n))):
                tile = self.fetch("weight", f)
                after = [tile[0], first if i == 0 else None]
                tile[1] = self.add("array", u, after, put if i == n - 1 else None)
        elif r["kind"] == ONLINE:
            spans = list(zip(*(parts(r[x], n) for x in "abcd")))
            for i, (f, qk, soft, pv) in enumerate(spans):
                tile = self.fetch("kv", f)
                logits = self.add("array", qk, [tile[0], first])
                weights = self.add("soft", soft, [logits])
                tile[1] = self.add("array", pv, [weights], put if i == n - 1 else None)
        elif r["kind"] == STREAM:
            self.stream(r, r["a"], r["a"], [first], put)
        else:
            keys = r["a"] - r["a"] // 2
            for f, u, c in zip(parts(keys, n), parts(r["b"], n), parts(r["c"], n)):
                tile = self.fetch("kv", f)
                after = [tile[0], first]
                tile[1] = self.add("array", u, after)
                self.add("soft", c, [tile[1]])
            late = self.stream(r, r["late"], min(r["c"], r["late"]), [])
            for i, (f, u) in enumerate(zip(parts(r["a"] // 2, n), parts(r["d"], n))):
                tile = self.fetch("kv", f)
                tile[1] = self.add("array", u, [tile[0], late], put if i == n - 1 else None)


cycles = st.integers(0, 60)
register = st.integers(-1, 5)
ops = st.one_of(
    st.builds(
        lambda unit, a, wait, put: op(SINGLE, unit=unit, a=a, wait=wait, put=put),
        st.sampled_from([DRAM, ARRAY, SOFTMAX, VECTOR, MMU]),
        cycles,
        register,
        register,
    ),
    st.builds(
        lambda n, a, b, wait, put: op(GEMM, tiles=n, a=a, b=b, wait=wait, put=put),
        st.integers(1, 6),
        cycles,
        cycles,
        register,
        register,
    ),
    st.builds(
        lambda kind, n, a, b, c, d, late, beats, wait, put, scored: op(
            kind,
            tiles=n,
            a=a,
            b=b,
            c=c,
            d=d,
            late=late if kind == SWEEPS else 0,
            beats=beats if kind == SWEEPS else 0,
            wait=wait,
            put=put,
            scored=scored if kind == SWEEPS else -1,
            latency=6,
        ),
        st.sampled_from([ONLINE, SWEEPS]),
        st.integers(1, 5),
        cycles,
        cycles,
        cycles,
        cycles,
        cycles,
        cycles,
        register,
        register,
        register,
    ),
    st.builds(
        lambda a, beats, wait, put, scored, latency: op(
            STREAM, a=a, beats=beats, wait=wait, put=put, scored=scored, latency=latency
        ),
        cycles,
        cycles,
        register,
        register,
        register,
        st.integers(0, 9),
    ),
)


@settings(max_examples=200, deadline=None)
@given(program=st.lists(ops, min_size=1, max_size=8), depth=st.integers(1, 3))
def test_kernel_equals_the_longest_path(program, depth):
    state, graph = State(depth), Graph(depth)
    for _ in range(2):  # rings and registers go on where the first turn left them
        run_program(state, np.asarray(program, dtype=np.int64))
        for row in program:
            graph.run(row)
    assert state.end == max(graph.ends)


@settings(max_examples=100, deadline=None)
@given(program=st.lists(ops, min_size=1, max_size=8), count=st.integers(1, 40))
def test_repeated_layers_equal_stepping_through_each(program, count):
    tasks = np.asarray(program, dtype=np.int64)
    short, long = State(2), State(2)
    run_layers(short, tasks, count=count)
    run_layers(long, tasks, count=count, exact=True)
    assert short.end == long.end
    assert (short.base == long.base).all()


long_ops = st.one_of(
    st.builds(
        lambda n, a, b: op(GEMM, tiles=n, a=a, b=b, wait=0, put=0),
        st.integers(1, 300),
        st.integers(0, 3000),
        st.integers(0, 3000),
    ),
    st.builds(
        lambda n, a, b, c, d: op(ONLINE, tiles=n, a=a, b=b, c=c, d=d, wait=0, put=1),
        st.integers(1, 300),
        st.integers(0, 3000),
        st.integers(0, 3000),
        st.integers(0, 3000),
        st.integers(0, 3000),
    ),
)


@settings(max_examples=200, deadline=None)
@given(program=st.lists(long_ops, min_size=1, max_size=4), depth=st.integers(1, 3))
def test_tiles_added_at_once_equal_the_longest_path(program, depth):
    """Hundreds of like tiles, remainders and all: skipping must land on the same cycle."""
    state, graph, stepped = State(depth), Graph(depth), State(depth)
    for _ in range(2):
        run_program(state, np.asarray(program, dtype=np.int64))
        run_program(stepped, np.asarray(program, dtype=np.int64), exact=True)
        for row in program:
            graph.run(row)
    assert state.end == stepped.end == max(graph.ends)
    for name in ("free", "ready", "used", "registers", "base"):
        assert (getattr(state, name) == getattr(stepped, name)).all(), name


def test_shortcut_is_taken():
    """Count the layers really run: the state repeats after a few of 1,000."""
    calls = []
    program = np.asarray([op(GEMM, tiles=5, a=50, b=30, wait=0, put=0)], dtype=np.int64)
    state = State(2)
    original = State.shape
    State.shape = lambda self, now, units: calls.append(now) or original(self, now, units)
    try:
        run_layers(state, program, count=1000)
    finally:
        State.shape = original
    assert len(calls) < 6
    assert state.end == 1000 * 50 + 6  # memory-bound: fetches back to back, then the last product


@pytest.mark.parametrize(("fetch", "use"), [(100, 40), (40, 100)])
def test_double_buffer_hides_the_shorter_of_fetch_and_use(fetch, use):
    n = 10
    program = np.asarray([op(GEMM, tiles=n, a=fetch * n, b=use * n)], dtype=np.int64)
    state = State(2)
    run_program(state, program)
    slow, fast = max(fetch, use), min(fetch, use)
    assert state.end == n * slow + fast


def test_single_buffer_hides_nothing():
    program = np.asarray([op(GEMM, tiles=10, a=1000, b=400)], dtype=np.int64)
    state = State(1)
    run_program(state, program)
    assert state.end == 1400
