"""Drive a simulated block through its ready/valid streams, all cycles inside numba.

A stream `x` is the ports x__valid, x__ready and x__payload (or x__payload__field...). A beat is
the payload's bits packed into 64-bit words, bit b at bit b % 64 of word b // 64; with fields, the
ports' bits follow each other in the netlist's order.

A source offers its next beat with its probability each cycle, and keeps it until it is taken;
while it offers none the payload keeps its last level. `after` holds a beat back until another
stream has moved `gates[k]` beats: causes that run outside the block, such as masses that follow
the write of their step. A Store is a memory outside: it keeps one stream's beats and answers
another's, so what goes in depends on what came out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from kvmmu.rtl.gates.netlist import Netlist
from kvmmu.rtl.gates.simulate import GateSimulation
from kvmmu.rtl.gates.stream_kernel import STREAM, run_streams

__all__ = ["Sink", "Source", "Store", "StreamRun", "simulate_streams", "stream_payload"]

_run_streams = cast("Callable[..., int]", run_streams)  # its many arrays travel as one tuple
_Ints = NDArray[np.int64]
_Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Source:
    """Offer beats [n, words]; beat k only once stream `after` has moved gates[k] beats."""

    beats: _Words
    probability: float = 1.0
    after: str = ""
    gates: _Ints = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True)
class Sink:
    """Take `count` beats, ready with `probability` each cycle; one more is an error."""

    count: int
    probability: float = 1.0


@dataclass(frozen=True)
class Store:
    """Keep what comes on `kept`; at a beat of `asked` offer what answer() returns on `given`.

    answer gets the beat of `asked` [words] and the beats of `kept` since the last one [n, words],
    and returns beats [m, words]. At most so many beats of each: one more is an error.
    """

    kept: str
    asked: str
    given: str
    answer: Callable[[_Words, _Words], _Words]
    most_beats: int


@dataclass(frozen=True)
class StreamRun:
    """Hold what came out: captured stream -> beats [n, words], taken source -> beats.

    done is False where the run ended at its limit of cycles, or stalled: no beat moved for
    `stall_cycles`. stalls: source -> cycles in which it offered a beat that was not taken.
    """

    done: bool
    cycles: int
    captured: Mapping[str, _Words]
    taken: Mapping[str, int]
    stalls: Mapping[str, int]


def stream_payload(ports: Mapping[str, _Ints], name: str) -> _Ints:
    """Return the payload nets of a stream in the order of its beats' bits."""
    prefix = f"{name}__payload"
    found = [nets for p, nets in ports.items() if p == prefix or p.startswith(f"{prefix}__")]
    return np.concatenate([np.zeros(0, np.int64), *found])


def simulate_streams(
    simulation: GateSimulation,
    sources: Mapping[str, Source],
    sinks: Mapping[str, Sink],
    *,
    max_cycles: int,
    constants: Mapping[str, int] | None = None,
    seed: int = 0,
    stall_cycles: int = 10_000,
    drain_cycles: int = 0,
    store: Store | None = None,
) -> StreamRun:
    """Run until every beat went in and came out; constants are plain inputs, port -> integer.

    drain_cycles go on after the last beat, so that a beat too many that is still inside shows. The
    store's streams count as a source and as sinks that need not fill. Raises ValueError if a stream
    is not in the netlist or a beat does not fit, and RuntimeError if a sink is offered more beats
    than its count.
    """
    setup = _Setup(simulation.netlist, sources, sinks, store)
    simulation.reserve(max_cycles)
    nets, levels = simulation.input_nets, simulation.levels(dict(constants or {}))
    random = np.array([np.random.default_rng(seed).integers(1, 2**63)], np.uint64)
    total = 0
    while True:
        cycles = _run_streams(
            *simulation.compiled.core(),
            simulation.netlist.num_gates,
            int(simulation.idle_rdata == "hold"),
            simulation.cycle,
            *(nets, levels),
            *(setup.records, setup.payload, setup.beats, setup.gates, setup.counters),
            *(random, max_cycles - total, stall_cycles, drain_cycles, setup.asks),
        )
        simulation.cycle += abs(cycles)
        total += abs(cycles)
        if cycles < 0:
            raise RuntimeError(setup.surplus())
        if total >= max_cycles or not setup.answer():
            return setup.result(total)
        nets, levels = nets[:0], levels[:0]  # the constants are there already


class _Setup:
    """Lay out streams as the kernel wants them, and read what it left."""

    def __init__(
        self,
        netlist: Netlist,
        sources: Mapping[str, Source],
        sinks: Mapping[str, Sink],
        store: Store | None,
    ) -> None:
        self.sources = dict(sources)
        self.sinks = dict(sinks)
        self.store = store
        if store is not None:
            size = len(stream_payload(netlist.inputs, store.given))
            self.sources[store.given] = Source(
                np.zeros((store.most_beats, -(-size // 64)), np.uint64)
            )
            self.sinks |= dict.fromkeys((store.kept, store.asked), Sink(store.most_beats))
        self.names: Sequence[str] = [*self.sources, *self.sinks]
        self.records = np.zeros(len(self.names), STREAM)
        self.counters = np.zeros((len(self.names), 2), np.int64)
        self._lay_out(netlist)
        self.asks = self._answered = self._kept = -1
        if store is not None:
            self.asks = self.names.index(store.asked)
            self._answered = self._kept = 0
            self._record(store.given)["count"] = 0
            for name in (store.kept, store.asked):
                self._record(name)["is_open"] = 1

    def _lay_out(self, netlist: Netlist) -> None:
        payload: list[_Ints] = [np.zeros(0, np.int64)]
        beats: list[_Words] = [np.zeros(0, np.uint64)]
        gates: list[_Ints] = [np.zeros(0, np.int64)]
        for record, name in zip(self.records, self.names):
            given, taken = netlist.inputs, netlist.outputs
            if name in self.sinks:
                given, taken = taken, given
            if f"{name}__valid" not in given or f"{name}__ready" not in taken:
                raise ValueError(f"stream must be in the netlist, got {name!r}")
            nets = stream_payload(given, name)
            words = -(-len(nets) // 64)
            one = self._beats(name, words, len(nets))
            record["is_sink"] = name in self.sinks
            record["valid"] = given[f"{name}__valid"][0]
            record["ready"] = taken[f"{name}__ready"][0]
            record["payload"], record["bits"] = sum(map(len, payload)), len(nets)
            record["beat"], record["beat_words"] = sum(map(len, beats)), words
            record["count"] = len(one)
            record["after"] = -1
            side = self.sinks if name in self.sinks else self.sources
            record["probability"] = side[name].probability
            payload.append(nets)
            beats.append(one.reshape(-1))
            if name in self.sources and self.sources[name].after:
                record["after"] = self._after(name, self.sources[name])
                record["gate"] = sum(map(len, gates))
                gates.append(self.sources[name].gates.astype(np.int64))
        self.payload, self.beats = np.concatenate(payload), np.concatenate(beats)
        self.gates = np.concatenate(gates)

    def _beats(self, name: str, words: int, bits: int) -> _Words:
        if name in self.sinks:
            return np.zeros((self.sinks[name].count, words), np.uint64)
        beats = self.sources[name].beats
        if beats.ndim != 2 or beats.shape[1] != words or beats.dtype != np.uint64:
            raise ValueError(
                f"beats of {name!r} must be uint64 [n, {words}], "
                f"got {beats.dtype} {list(beats.shape)}"
            )
        if bits % 64 and len(beats) and int(beats[:, -1].max()) >> bits % 64:
            raise ValueError(f"beats of {name!r} must fit {bits} bits")
        return beats

    def _after(self, name: str, source: Source) -> int:
        if source.after not in self.names:
            raise ValueError(f"after must be one of {list(self.names)}, got {source.after!r}")
        if source.gates.shape != (len(source.beats),):
            raise ValueError(
                f"gates of {name!r} must be one a beat, [{len(source.beats)}], "
                f"got {list(source.gates.shape)}"
            )
        return self.names.index(source.after)

    def answer(self) -> bool:
        """Answer the beat of `asked` that just came, if one did; say whether."""
        store = self.store
        if store is None or self._moved(store.asked) == self._answered:
            return False
        request = self._room(store.asked)[self._answered]
        kept = self._room(store.kept)[self._kept : self._moved(store.kept)]
        beats = store.answer(request, kept)
        self._answered += 1
        self._kept = self._moved(store.kept)
        given = self._record(store.given)
        first = int(given["count"])
        if first + len(beats) > store.most_beats:
            raise RuntimeError(
                f"stream {store.given!r} must move {store.most_beats} beats, got more"
            )
        self._room(store.given)[first : first + len(beats)] = beats
        given["count"] += len(beats)
        return True

    def surplus(self) -> str:
        """Say which sink was offered more than it has room for."""
        name = next(n for n, sink in self.sinks.items() if self._moved(n) > sink.count)
        return f"stream {name!r} must move {self.sinks[name].count} beats, got more"

    def result(self, cycles: int) -> StreamRun:
        """Return what moved."""
        closed = [n for n in self.names if not self._record(n)["is_open"]]
        return StreamRun(
            done=all(self._moved(n) == self._record(n)["count"] for n in closed),
            cycles=cycles,
            captured={n: self._room(n)[: self._moved(n)] for n in self.sinks},
            taken={n: self._moved(n) for n in self.sources},
            stalls={n: int(self.counters[self.names.index(n), 1]) for n in self.sources},
        )

    def _record(self, name: str) -> Any:
        return self.records[self.names.index(name)]

    def _moved(self, name: str) -> int:
        return int(self.counters[self.names.index(name), 0])

    def _room(self, name: str) -> _Words:
        """Return the room for a stream's beats, [room, words]."""
        record, store = self._record(name), self.store
        is_given = store is not None and name == store.given  # its count grows into its room
        count = store.most_beats if store and is_given else int(record["count"])
        size = count * int(record["beat_words"])
        first = int(record["beat"])
        return self.beats[first : first + size].reshape(count, int(record["beat_words"]))
