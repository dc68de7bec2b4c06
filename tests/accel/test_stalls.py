"""The KV-MMU does not hold the pipeline up, and how many ways that takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvmmu.accel.chip.mmu_timing import WAYS
from kvmmu.accel.request import Request
from kvmmu.accel.simulate import simulate
from kvmmu.accel.stalls import CAUSES, stalls, stalls_of

LLAMA = Request(num_slots=512)
OPT = Request(model="opt_6.7b", prompt=1024, generate=1024, num_slots=256)
SLOTS_64 = Request(model="kvmmu-ref-1m", prompt=256, generate=256, num_slots=64)


@pytest.mark.parametrize(
    ("request_", "least"),
    [
        (LLAMA, 16),
        (replace(LLAMA, batch=1), 2),
        (SLOTS_64, 4),
        (replace(SLOTS_64, batch=1), 2),
        (replace(LLAMA, accelerator="hbm_server"), 16),
        (replace(LLAMA, accelerator="hbm_server", batch=1), 2),
        (OPT, 8),
        (replace(OPT, accelerator="hbm_server"), 8),
    ],
    ids=str,
)
def test_the_presets_never_stall_and_the_least_ways_are_pinned(request_, least):
    """Batch 16, batch 1, 64 slots, HBM: 16 ways are built, none of the three causes stalls."""
    made = stalls(request_)
    assert made.own.ways == 16
    assert made.own.by_cause == dict.fromkeys(CAUSES, 0)
    assert made.least_ways == least


def test_few_ways_stall_by_score_input_and_more_ways_never_stall_more():
    made = stalls(LLAMA)
    totals = [row.total for row in sorted(made.rows, key=lambda row: row.ways)]
    assert totals == sorted(totals, reverse=True)
    assert totals[0] > 0.03 * made.own.step_cycles
    narrow = next(row for row in made.rows if row.ways == 1)
    assert narrow.by_cause["score input"] == narrow.total
    assert not narrow.is_built


def test_tables_per_head_in_dram_stall_by_their_swap():
    """One beat a row is faster than a table comes and goes: three cycles a row."""
    request = replace(LLAMA, accelerator="hbm_server", granularity="head")
    made = stalls(replace(request, overrides={"mmu.store": "dram"}))
    assert made.own.by_cause["table swap"] > 0
    assert made.own.by_cause["score input"] == 0
    assert made.least_ways == 64
    assert 0 < next(row for row in made.rows if row.ways == 32).total < 1e-5 * made.own.step_cycles
    assert stalls(request).own.total == 0  # all on chip, as the preset has them


def test_a_stall_is_the_step_longer_than_with_an_infinitely_fast_kv_mmu():
    request = replace(SLOTS_64, accelerator="hbm_server", overrides={"mmu.store": "dram"})
    made = stalls(request)
    for row in made.rows:
        assert row.total == sum(row.by_cause.values())
        assert row.traffic_cycles >= 0
        assert row.collection_cycles >= 0
    # So small a model on so fast a DRAM waits for the tables' latency, whatever the ways.
    assert made.least_ways is None
    assert made.own.total < 0.05 * made.own.step_cycles


def test_ways_that_are_not_built_do_not_count():
    made = stalls(SLOTS_64, ways=(1, 64))
    assert [row.is_built for row in made.rows] == [True, False, False]
    assert made.least_ways == 16
    assert set(WAYS) == {2, 4, 8, 16, 32, 64}


def test_the_worst_step_of_rescales_is_shown_and_bounds_a_run():
    made = stalls(LLAMA)
    narrow = next(row for row in made.rows if row.ways == 8)
    assert narrow.rescale_cycles > 0
    # Rows and a few cycles for each of 16 x 32 tables, where nothing hides them.
    assert narrow.rescale_cycles <= 16 * 32 * (64 + 10)
    assert made.rescales_per_table == 12  # ceil(log2(4095))
    assert made.rescale_share < 1e-5


def test_a_simulation_has_its_stalls_unless_it_keeps_no_scores(tmp_path):
    request = Request(model="opt_125m", batch=4, prompt=192, generate=64, num_slots=32)
    made = simulate(request, names=())
    found = stalls_of(made)
    assert found is not None
    assert found.to_json()["least_ways"] == stalls(request).least_ways
    plain = replace(made, ours=made.unscored)
    assert stalls_of(plain) is None
