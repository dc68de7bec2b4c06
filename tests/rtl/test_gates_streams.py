"""Ready/valid streams of a simulated block: a one-place buffer that adds 1 to its input."""

from __future__ import annotations

import numpy as np
import pytest
from toy_gates import Sketch, bus

from kvmmu.rtl.gates.netlist import Netlist
from kvmmu.rtl.gates.simulate import GateSimulation
from kvmmu.rtl.gates.streams import Sink, Source, Store, StreamRun, simulate_streams, stream_payload

WIDTH = 70


def _buffer(fields: bool = False) -> Netlist:
    """i goes to o inverted, through one register a bit; o waits for o__ready."""
    payload = bus("p", WIDTH)
    split = {"i__payload__low": payload[:3], "i__payload__high": payload[3:]}
    ports = {"clk": "clk", "rst": "rst", **(split if fields else {"i__payload": payload})}
    ports |= {"i__valid": "iv", "o__ready": "or"}
    sketch = Sketch(ports, {"i__ready": "ir", "o__valid": "full", "o__payload": bus("q", WIDTH)})
    sketch.cell("empty", "INV", A="full", Y="empty").cell("ir", "OR2", A="empty", B="or", Y="ir")
    sketch.cell("take", "AND2", A="iv", B="ir", Y="take")
    sketch.cell("keep", "MUX2", A="full", B="iv", S="ir", Y="next")
    sketch.cell("on", "INV", A="rst", Y="on").cell("nf", "AND2", A="next", B="on", Y="nf")
    sketch.cell("full", "DFF", CLK="clk", D="nf", Q="full")
    for b in range(WIDTH):
        sketch.cell(f"n{b}", "INV", A=f"p{b}", Y=f"np{b}")
        sketch.cell(f"m{b}", "MUX2", A=f"q{b}", B=f"np{b}", S="take", Y=f"d{b}")
        sketch.cell(f"f{b}", "DFF", CLK="clk", D=f"d{b}", Q=f"q{b}")
    return sketch.netlist()


def _beats(count: int) -> np.ndarray:
    beats = np.random.default_rng(4).integers(0, 2**63, (count, 2), dtype=np.uint64)
    beats[:, 1] &= np.uint64((1 << WIDTH - 64) - 1)
    return beats


def _inverted(beats: np.ndarray) -> np.ndarray:
    mask = np.array([2**64 - 1, (1 << WIDTH - 64) - 1], np.uint64)
    return ~beats & mask


@pytest.mark.parametrize("valid", [1.0, 0.3])
@pytest.mark.parametrize("ready", [1.0, 0.4])
def test_every_beat_arrives_in_order(valid: float, ready: float) -> None:
    simulation = GateSimulation(_buffer(), seed=7)
    simulation.step({"rst": 1})
    beats = _beats(60)
    run = simulate_streams(
        simulation,
        {"i": Source(beats, probability=valid)},
        {"o": Sink(60, probability=ready)},
        max_cycles=2000,
        constants={"rst": 0},
        seed=1,
    )
    assert run.done
    np.testing.assert_array_equal(run.captured["o"], _inverted(beats))
    assert (run.cycles == 61) == (valid == ready == 1.0)
    assert (run.stalls["i"] > 0) == (ready < 1.0)


def test_payload_fields_are_one_payload() -> None:
    netlist = _buffer(fields=True)
    assert len(stream_payload(netlist.inputs, "i")) == WIDTH
    simulation = GateSimulation(netlist)
    run = simulate_streams(
        simulation, {"i": Source(_beats(5))}, {"o": Sink(5)}, max_cycles=50, constants={}
    )
    np.testing.assert_array_equal(run.captured["o"], _inverted(_beats(5)))


def test_gated_beat_waits_for_the_other_stream() -> None:
    """Two buffers side by side cannot be sketched from one, so the stream gates itself."""
    simulation = GateSimulation(_buffer())
    source = Source(_beats(4), after="o", gates=np.array([0, 1, 2, 3]))
    run = simulate_streams(simulation, {"i": source}, {"o": Sink(4)}, max_cycles=50)
    assert run.done
    assert run.cycles == 8  # a beat goes in only after the one before it came out


def test_stalled_run_ends_and_says_what_moved() -> None:
    source = Source(_beats(4), after="o", gates=np.array([0, 1, 9, 9]))
    run = simulate_streams(
        GateSimulation(_buffer()), {"i": source}, {"o": Sink(4)}, max_cycles=500, stall_cycles=20
    )
    assert not run.done
    assert run.taken == {"i": 2}
    assert len(run.captured["o"]) == 2
    assert run.cycles < 40


def test_surplus_beat_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="'o' must move 3 beats"):
        simulate_streams(
            GateSimulation(_buffer()),
            {"i": Source(_beats(4))},
            {"o": Sink(3)},
            max_cycles=50,
            drain_cycles=2,
        )


def test_seed_repeats_a_run() -> None:
    def cycles(seed: int) -> int:
        return simulate_streams(
            GateSimulation(_buffer()),
            {"i": Source(_beats(50), probability=0.5)},
            {"o": Sink(50, probability=0.5)},
            max_cycles=1000,
            seed=seed,
        ).cycles

    assert cycles(1) == cycles(1)
    assert len({cycles(seed) for seed in range(6)}) > 1


# A memory outside -------------------------------------------------------------------------------


def _three_buffers() -> Netlist:
    """a goes to b, c to d and e to f, each through one place that is never full for long."""
    pairs = ("ab", "cd", "ef")
    given = {"clk": "clk"}
    taken = {}
    for i, o in pairs:
        given |= {f"{i}__payload": bus(i, 4), f"{i}__valid": f"{i}v", f"{o}__ready": f"{o}r"}
        taken |= {f"{o}__payload": bus(o, 4), f"{o}__valid": f"{o}v", f"{i}__ready": f"{o}r"}
    sketch = Sketch(given, taken)
    for i, o in pairs:
        sketch.cell(f"{o}f", "DFF", CLK="clk", D=f"{i}v", Q=f"{o}v")
        for b in range(4):
            sketch.cell(f"{o}{b}", "DFF", CLK="clk", D=f"{i}{b}", Q=f"{o}{b}")
    return sketch.netlist()


def _echo(*, most_beats: int = 4) -> tuple[list[tuple[list[int], list[int]]], StreamRun]:
    """Keep 1 to 4 as they come out of b; 7 and 9 out of d fetch them back to e, two at a time."""
    heard: list[tuple[list[int], list[int]]] = []

    def answer(request: np.ndarray, kept: np.ndarray) -> np.ndarray:
        heard.append((request.tolist(), kept[:, 0].tolist()))
        return kept

    run = simulate_streams(
        GateSimulation(_three_buffers()),
        {
            "a": Source(np.arange(1, 5, dtype=np.uint64)[:, None], after="f", gates=GATES),
            "c": Source(np.array([[7], [9]], np.uint64), after="b", gates=np.array([2, 4])),
        },
        {"f": Sink(4)},
        max_cycles=200,
        store=Store("b", "d", "e", answer, most_beats),
    )
    return heard, run


GATES = np.array([0, 0, 2, 2])  # the third beat goes in once two came back


def test_a_memory_outside_gives_back_what_it_kept() -> None:
    heard, run = _echo()
    assert heard == [([7], [1, 2]), ([9], [3, 4])]
    assert run.done
    assert run.captured["f"][:, 0].tolist() == [1, 2, 3, 4]
    assert run.captured["b"][:, 0].tolist() == [1, 2, 3, 4]
    assert run.taken == {"a": 4, "c": 2, "e": 4}


def test_a_memory_outside_that_overflows_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="'b' must move 3 beats"):
        _echo(most_beats=3)


def test_wrong_streams_are_refused() -> None:
    simulation = GateSimulation(_buffer())

    def run(**sources: Source) -> None:
        simulate_streams(simulation, sources, {}, max_cycles=1)

    with pytest.raises(ValueError, match="'k'"):
        run(k=Source(_beats(1)))
    with pytest.raises(ValueError, match="uint64"):
        run(i=Source(_beats(1)[:, :1]))
    with pytest.raises(ValueError, match="fit 70 bits"):
        run(i=Source(np.full((1, 2), 2**63, np.uint64)))
    with pytest.raises(ValueError, match="after must be"):
        run(i=Source(_beats(1), after="z", gates=np.zeros(1, np.int64)))
    with pytest.raises(ValueError, match="one a beat"):
        run(i=Source(_beats(1), after="i"))
