"""Drive a simulated block through its ready/valid streams, all cycles inside numba.

A stream `x` is the ports x__valid, x__ready and x__payload (or x__payload__field...). A beat is
the payload's bits packed into 64-bit words, bit b at bit b % 64 of word b // 64; with fields, the
ports' bits follow each other in the netlist's order.

A source offers its next beat with its probability each cycle, and keeps it until it is taken;
while it offers none the payload keeps its last level. `after` holds a beat back until another
stream has moved `gates[k]` beats: causes that run outside the block, such as masses that follow
the write of their step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray

from kvmmu.rtl.gates.netlist import Netlist
from kvmmu.rtl.gates.simulate import GateSimulation
from kvmmu.rtl.gates.stream_kernel import STREAM, run_streams

__all__ = ["Sink", "Source", "StreamRun", "simulate_streams", "stream_payload"]

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
) -> StreamRun:
    """Run until every beat went in and came out; constants are plain inputs, port -> integer.

    drain_cycles go on after the last beat, so that a beat too many that is still inside shows.
    Raises ValueError if a stream is not in the netlist or a beat does not fit, and RuntimeError
    if a sink is offered more beats than its count.
    """
    setup = _Setup(simulation.netlist, sources, sinks)
    simulation.reserve(max_cycles)
    levels = simulation.levels(dict(constants or {}))
    counters = np.zeros((len(setup.names), 2), np.int64)
    random = np.array([np.random.default_rng(seed).integers(1, 2**63)], np.uint64)
    cycles = _run_streams(
        *simulation.compiled.core(),
        simulation.netlist.num_gates,
        int(simulation.idle_rdata == "hold"),
        simulation.cycle,
        *(simulation.input_nets, levels),
        *(setup.records, setup.payload, setup.beats, setup.gates, counters),
        *(random, max_cycles, stall_cycles, drain_cycles),
    )
    simulation.cycle += abs(cycles)
    if cycles < 0:
        over = [n for n, sink in sinks.items() if counters[setup.names.index(n), 0] > sink.count]
        raise RuntimeError(f"stream {over[0]!r} must move {sinks[over[0]].count} beats, got more")
    moved = dict(zip(setup.names, counters[:, 0].tolist()))
    return StreamRun(
        done=all(moved[n] == len(s.beats) for n, s in sources.items())
        and all(moved[n] == s.count for n, s in sinks.items()),
        cycles=cycles,
        captured={n: setup.captured(n)[: moved[n]] for n in sinks},
        taken={n: moved[n] for n in sources},
        stalls={n: int(counters[setup.names.index(n), 1]) for n in sources},
    )


class _Setup:
    """Lay out streams as the kernel wants them."""

    def __init__(
        self, netlist: Netlist, sources: Mapping[str, Source], sinks: Mapping[str, Sink]
    ) -> None:
        self.names: Sequence[str] = [*sources, *sinks]
        self.records = np.zeros(len(self.names), STREAM)
        payload: list[_Ints] = [np.zeros(0, np.int64)]
        beats: list[_Words] = [np.zeros(0, np.uint64)]
        gates: list[_Ints] = [np.zeros(0, np.int64)]
        for record, name in zip(self.records, self.names):
            given, taken = netlist.inputs, netlist.outputs
            if name in sinks:
                given, taken = taken, given
            if f"{name}__valid" not in given or f"{name}__ready" not in taken:
                raise ValueError(f"stream must be in the netlist, got {name!r}")
            nets = stream_payload(given, name)
            words = -(-len(nets) // 64)
            one = self._beats(name, words, len(nets), sources, sinks)
            record["is_sink"] = name in sinks
            record["valid"] = given[f"{name}__valid"][0]
            record["ready"] = taken[f"{name}__ready"][0]
            record["payload"], record["bits"] = sum(map(len, payload)), len(nets)
            record["beat"], record["beat_words"] = sum(map(len, beats)), words
            record["count"] = len(one)
            record["after"] = -1
            record["probability"] = (sinks if name in sinks else sources)[name].probability
            payload.append(nets)
            beats.append(one.reshape(-1))
            if name in sources and sources[name].after:
                record["after"] = self._after(name, sources[name])
                record["gate"] = sum(map(len, gates))
                gates.append(sources[name].gates.astype(np.int64))
        self.payload, self.beats = np.concatenate(payload), np.concatenate(beats)
        self.gates = np.concatenate(gates)

    def _beats(
        self,
        name: str,
        words: int,
        bits: int,
        sources: Mapping[str, Source],
        sinks: Mapping[str, Sink],
    ) -> _Words:
        if name in sinks:
            return np.zeros((sinks[name].count, words), np.uint64)
        beats = sources[name].beats
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

    def captured(self, name: str) -> _Words:
        """Return the room for a sink's beats, [count, words]."""
        record = self.records[self.names.index(name)]
        size = int(record["count"] * record["beat_words"])
        first = int(record["beat"])
        return self.beats[first : first + size].reshape(-1, int(record["beat_words"]))
