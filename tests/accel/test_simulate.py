"""Whole runs: regular and recorded, against baselines; what adds up, what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvmmu.accel.pipeline.counts import INDEX
from kvmmu.accel.request import Request
from kvmmu.accel.simulate import simulate
from kvmmu.accel.workload import RegularRun, read_workload, regular_events, regular_header
from kvmmu.errors import CapacityError, SpecError, TraceError
from kvmmu.geometry import CacheGeometry
from kvmmu.trace import LaneEvent, TraceWriter

SMALL = Request(model="gpt2", batch=4, prompt=200, generate=56, num_slots=64)
GEOMETRY = CacheGeometry(12, 4, 12, 64, (64,) * 12, "int8", 1)


@pytest.fixture(scope="module")
def small():
    return simulate(SMALL)


def header(geometry=GEOMETRY, *, chunk=32, granularity="layer"):
    return regular_header(
        geometry, granularity=granularity, chunk=chunk, num_sinks=4, window=8, model="gpt2"
    )


def write(path, head, events):
    with TraceWriter(path, head) as writer:
        for event in events:
            writer.write(event)
    return path


# Workloads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["layer", "head"])
@pytest.mark.parametrize("chunk", [1, 7, 64, 100])
def test_regular_run_counts_every_token_once(granularity, chunk):
    head = header(chunk=chunk, granularity=granularity)
    made = read_workload(head, regular_events(head, RegularRun(100, 20, chunk)))
    assert made.num_tokens == 4 * (100 + 19)  # the last token generated is never fed back
    assert made.longest_lane == 119
    # Slots are read as far as they are filled, and never more than there are.
    lives = [run.live[0] for part in made.segments for run in part.step.runs]
    assert max(lives) <= 64
    assert lives[0] == 0


def test_regular_run_samples_each_lane_once_for_each_token_it_generates():
    head = header()
    made = read_workload(head, regular_events(head, RegularRun(100, 20, 32)))
    assert sum(part.count * sum(part.step.logits) for part in made.segments) == 4 * 20


def test_steps_at_constant_size_are_one_segment():
    head = header()
    made = read_workload(head, regular_events(head, RegularRun(100, 2000, 32)))
    decode = [part for part in made.segments if part.step.phase == "decode"]
    assert [part.count for part in decode] == [1999]


def test_fill_phase_has_a_step_for_each_length():
    head = header()
    made = read_workload(head, regular_events(head, RegularRun(10, 100, 32)))
    decode = [part for part in made.segments if part.step.phase == "decode"]
    assert [part.count for part in decode] == [1] * 53 + [46]  # 10 ... 62 held, then 63 others


def test_staggered_lanes_make_mixed_steps():
    head = header()
    made = read_workload(head, regular_events(head, RegularRun(64, 30, 32, is_staggered=True)))
    assert made.num_tokens == 4 * (64 + 29)
    phases = [part.step.phase for part in made.segments]
    assert phases[0] == "prefill"
    assert "mixed" in phases
    assert phases[-1] == "decode"


def test_chunk_that_lacks_a_layer_is_refused(tmp_path):
    head = header()
    events = [e for e in regular_events(head, RegularRun(64, 2, 32)) if getattr(e, "layer", 0) != 3]
    with pytest.raises(TraceError, match="must hold a chunk of each of the 12 layers, got 11"):
        read_workload(head, events)


# What adds up -------------------------------------------------------------------------------


def test_phases_add_up_to_the_total(small):
    for result in (small.ours, *small.others):
        for mode in ("overlapped", "serial"):
            parts = sum(part.energy_j(mode) for part in result.phases.values())
            assert result.total.energy_j(mode) == pytest.approx(parts, rel=1e-12)
            by_unit = result.total.energy_by_unit_j(mode)
            assert result.total.energy_j(mode) == pytest.approx(sum(by_unit.values()), rel=1e-12)
        delays = sum(part.delay_s() for part in result.phases.values())
        assert result.total.delay_s() == pytest.approx(delays, rel=1e-12)


def test_bytes_of_the_run_equal_the_closed_form(small):
    row, L, B, C = 2 * 12 * 64, 12, 4, 64
    decode = small.ours.phases["decode"]
    assert decode.steps == 55
    assert decode.dram_bytes["kv_read"] == 55 * L * B * (C - 1) * row
    assert decode.dram_bytes["kv_write"] == 55 * L * B * row
    full = next(o for o in small.others if o.name == "full_8bit").phases["decode"]
    assert full.dram_bytes["kv_read"] == pytest.approx(L * B * row * sum(range(200, 255)))
    assert full.dram_bytes["weight"] == decode.dram_bytes["weight"]


def test_full_cache_and_rce_agree_where_nothing_is_evicted():
    made = simulate(replace(SMALL, num_slots=300, window=8, softmax_form="online"))
    full = next(o for o in made.others if o.name == "full_8bit")
    mine, theirs = made.unscored.phases["decode"], full.phases["decode"]
    assert theirs.dram_bytes["kv_read"] == pytest.approx(mine.dram_bytes["kv_read"])
    assert theirs.delay_s() == pytest.approx(mine.delay_s(), rel=1e-3)


def test_every_baseline_runs_the_same_tokens(small):
    names = {other.name for other in small.others}
    assert names == {
        "full_8bit",
        "full_16bit",
        "full_4bit",
        "paged",
        "window",
        "irregular",
        "irregular_head",
        "varying",
    }
    for other in small.others:
        assert other.total.tokens == small.ours.total.tokens


def test_gathering_by_head_pays_for_short_pieces():
    """The energy of short pieces, a row opened for each, is the gathered baseline's alone."""
    made = simulate(replace(SMALL, model="llama_7b", kv_bits=4, layout="slot"))
    ours = made.ours.phases["decode"]
    rows, pieces = (
        next(o for o in made.others if o.name == name).phases["decode"]
        for name in ("irregular", "irregular_head")
    )
    assert pieces.dram_bytes["kv_read"] == pytest.approx(rows.dram_bytes["kv_read"])
    assert rows.busy_cycles["dram"] == pytest.approx(ours.busy_cycles["dram"], rel=0.02)
    assert pieces.busy_cycles["dram"] >= rows.busy_cycles["dram"]
    opened = [p.machine.pattern("kv_read").activates_per_kib for p in (rows, pieces)]
    assert opened[1] > 10 * opened[0]
    energy = [p.energy_by_unit_j()["dram_activate"] for p in (rows, pieces)]
    assert energy[1] > 1.1 * energy[0]


def test_window_without_scores_costs_less_than_rce(small):
    window = next(o for o in small.others if o.name == "window").total
    assert window.energy_j() < small.ours.total.energy_j()
    assert window.delay_s() <= small.ours.total.delay_s()


def test_shares_of_the_kv_mmu_are_of_the_whole(small):
    share = small.mmu_share()
    terms = small.ours.total.mmu_energy_j()
    assert share["tables"] == pytest.approx(
        sum(v for k, v in terms.items() if "mmu" in k and k != "mmu_collect")
        / small.ours.total.energy_j()
    )
    # The logits buffer of an online softmax is there for the scores alone, and so is its leakage.
    assert share["leak_logits_buffer"] > 0
    assert share["with_collection"] > sum(share[name] for name in terms)
    chip = small.unscored.total.machine.chip
    assert chip.leakage_w["logits_buffer"] == chip.area_mm2["mmu_logic"] == 0


def test_leakage_of_the_score_tables_is_the_kv_mmu_s():
    tables = {}
    for flavour in ("lop", "hp"):
        overrides = {"process.sram_flavour": flavour, "mmu.store": "sram"}
        made = simulate(replace(SMALL, overrides=overrides), names=("full_8bit",))
        tables[flavour] = made.ours.total.mmu_energy_j()["leak_mmu_score"]
    assert tables["hp"] > 10 * tables["lop"]


# Shortcuts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["gpt2"])
def test_stepping_through_every_step_changes_nothing_for_rce(model):
    request = replace(SMALL, model=model, generate=40)
    short = simulate(request, names=("full_8bit",))
    long = simulate(request, names=("full_8bit",), exact=True)
    for scope in ("decode", "end_to_end"):
        mine, theirs = short.ours.scope(scope), long.ours.scope(scope)
        assert mine.cost.overlapped_cycles == theirs.cost.overlapped_cycles
        assert mine.energy_j() == pytest.approx(theirs.energy_j(), rel=1e-9)


def test_growing_baselines_are_integrated_within_the_tolerance(small):
    exact = simulate(SMALL, exact=True)
    for got, want in zip(small.others, exact.others, strict=True):
        assert got.total.delay_s() == pytest.approx(want.total.delay_s(), rel=5e-4), got.name
        assert got.total.energy_j() == pytest.approx(want.total.energy_j(), rel=5e-4), got.name


# Recorded runs ------------------------------------------------------------------------------


def test_regular_trace_equals_the_regular_estimate(tmp_path, small):
    head = header(chunk=64)
    path = write(tmp_path / "t.trace", head, regular_events(head, RegularRun(200, 56, 64)))
    made = simulate(Request(model="gpt2", trace=path), names=("full_8bit",))
    assert made.ours.total.cost.overlapped_cycles == small.ours.total.cost.overlapped_cycles
    assert np.allclose(made.ours.total.cost.counts, small.ours.total.cost.counts)


def ragged(head):
    """Two lanes run 60 tokens, two 30; the two leave, and one new one joins and runs 20."""
    run = list(regular_events(head, RegularRun(32, 29, 32)))
    yield from run[:-1]
    yield LaneEvent("release", 100, np.array([2, 3]))
    for event in run[-2:-1]:
        yield replace(
            event,
            steps=event.steps + 200,
            num_queries=event.num_queries * np.array([1, 1, 0, 0]),
            slots=np.where(np.array([1, 1, 0, 0])[None, None, :, None], event.slots, -1),
            evicted=np.where(np.array([1, 1, 0, 0])[None, None, :, None], event.evicted, -2),
        )


def test_ragged_lanes_leave_and_cost_less(tmp_path):
    head = header()
    path = write(tmp_path / "ragged.trace", head, ragged(head))
    even = list(regular_events(head, RegularRun(32, 29, 32)))[:-1]
    even.append(replace(even[-1], steps=even[-1].steps + 200))
    whole = write(tmp_path / "even.trace", head, even)
    short = simulate(Request(model="gpt2", trace=path), names=("full_8bit",))
    full = simulate(Request(model="gpt2", trace=whole), names=("full_8bit",))
    mine, theirs = short.ours.total, full.ours.total
    assert mine.tokens < theirs.tokens
    assert mine.dram_bytes["kv_read"] < theirs.dram_bytes["kv_read"]
    assert mine.dram_bytes["weight"] == theirs.dram_bytes["weight"]  # once a step, whoever asks
    assert mine.delay_s() < theirs.delay_s()
    assert short.workload.lane_events == {"admit": 4, "release": 2}


def test_reorder_and_merge_move_rows(tmp_path):
    head = header()
    events = list(regular_events(head, RegularRun(32, 8, 32)))
    plain = write(tmp_path / "a.trace", head, events)
    events.insert(-1, LaneEvent("reorder", 50, np.array([0, 1]), np.array([1, 1])))
    events.insert(-1, LaneEvent("merge", 50, np.array([0])))
    moved = write(tmp_path / "b.trace", head, events)
    a, b = (simulate(Request(model="gpt2", trace=p), names=("full_8bit",)) for p in (plain, moved))
    row, held = 2 * 12 * 64, 32 + 7
    copied = 12 * held + 12  # lane 1's slots of every layer; one row of every layer for the merge
    entry = 2 + 3  # scores and positions go along
    assert b.ours.total.dram_bytes["copy"] == 2 * copied * (row + entry)
    assert a.ours.total.dram_bytes["copy"] == 0
    assert b.ours.total.delay_s() > a.ours.total.delay_s()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "opt_350m"}, "num_layers of the trace must be the simulated one, 24"),
        ({"num_slots": 128}, "num_slots of the trace must be the simulated one, 128"),
    ],
)
def test_trace_of_another_geometry_is_refused(tmp_path, changes, message):
    head = header()
    path = write(tmp_path / "t.trace", head, regular_events(head, RegularRun(40, 4, 32)))
    with pytest.raises(SpecError, match=message):
        simulate(replace(Request(model="gpt2", trace=path), **changes))


def test_trace_of_a_policy_that_is_not_in_hardware_is_refused(tmp_path):
    head = replace(header(), policy="keydiff")
    path = write(tmp_path / "t.trace", head, regular_events(head, RegularRun(40, 4, 32)))
    with pytest.raises(SpecError, match=r"one that the KV-MMU can run .*, got 'keydiff'"):
        simulate(Request(model="gpt2", trace=path))


def test_trace_of_a_policy_without_scores_has_no_score_hardware(tmp_path):
    head = replace(header(), policy="streaming_llm")
    path = write(tmp_path / "t.trace", head, regular_events(head, RegularRun(100, 4, 32)))
    made = simulate(Request(model="gpt2", trace=path), names=("full_8bit",))
    assert made.ours.total.cost.counts[INDEX["mmu_beats"]] == 0
    assert sum(made.ours.total.mmu_energy_j().values()) < 1e-3 * made.ours.total.energy_j()


# Refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_slots": 12}, ValueError, r"num_slots must exceed num_sinks \+ window = 5, got"),
        ({"accelerator": "jetcas"}, SpecError, "did you mean 'jetcas65'"),
        ({"accelerator": "H200"}, SpecError, "got the profile 'h200' of a published machine"),
        ({"dram": "lpddr5_x"}, SpecError, "unknown DRAM|unknown dram"),
        ({"model": "llama_9b"}, SpecError, "unknown model 'llama_9b'; did you mean"),
        ({"batch": 0}, ValueError, "batch must be at least 1, got 0"),
        ({"compression": 0.5}, ValueError, "compression must be at least 1, got 0.5"),
        ({"layout": "rows"}, ValueError, "layout must be one of slot, split, head, got 'rows'"),
        ({"overrides": {"array.rowz": 3}}, SpecError, "rowz"),
    ],
)
def test_impossible_requests_are_refused_by_name(changes, error, message):
    if changes == {"num_slots": 12}:
        changes = {"num_slots": 5}
    with pytest.raises(error, match=message):
        simulate(replace(SMALL, **changes))


def test_run_that_does_not_fit_the_dram_is_refused():
    with pytest.raises(CapacityError, match=r"must fit the 17\.2 GB of lpddr4_3200_x64, got"):
        simulate(Request(model="llama_3_70b"))


def test_baseline_that_does_not_fit_is_said(small):
    assert not small.notes
    made = simulate(Request(prompt=2048, generate=1000, batch=16), names=("full_16bit",))
    assert not made.others[0].fits
    assert "does not fit" in made.notes[0]


# The case ---------------------------------------------------------------------------


@pytest.mark.slow
def test_every_step_of_llama_7b_equals_the_steady_state(capsys):
    """2,055 forwards of 32 layers, one after the other, against one of each shape."""
    request = Request(model="llama_7b", batch=16, prompt=2048, generate=2048, num_slots=512)
    short, long = simulate(request, names=()), simulate(request, names=(), exact=True)
    for scope in ("decode", "end_to_end"):
        mine, theirs = short.ours.scope(scope), long.ours.scope(scope)
        with capsys.disabled():
            print(
                f"\n{scope}: {theirs.cost.overlapped_cycles:,.0f} cycles and "
                f"{theirs.energy_j():.6f} J step by step, {mine.cost.overlapped_cycles:,.0f} and "
                f"{mine.energy_j():.6f} by the shortcut",
                end="",
            )
        assert mine.cost.overlapped_cycles == theirs.cost.overlapped_cycles
        assert mine.energy_j() == pytest.approx(theirs.energy_j(), rel=1e-9)
