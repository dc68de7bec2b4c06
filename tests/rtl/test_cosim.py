"""The block in Amaranth's simulator answers as the model does: random steps, traces, errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvmmu.errors import TraceError
from kvmmu.rtl.config import BlockConfig
from kvmmu.trace import DecodeBlock, TraceWriter, read

pytest.importorskip("amaranth", reason="the RTL needs amaranth")

from rtl_cases import Case

from kvmmu.rtl.core.kv_mmu import KvMmu
from kvmmu.rtl.model import num_rows
from kvmmu.rtl.ports import BlockError, Op
from kvmmu.rtl.transactions import BlockSettings, Command, LayerSettings
from kvmmu.rtl.verify import traces
from kvmmu.rtl.verify.driver import Pace, cosimulate
from kvmmu.rtl.verify.stimuli import Item, Mix, draw_items, draw_settings

DATA = Path(__file__).parent / "data"
TRACES = ("layer", "head")


def zeros(position, num_slots, ways=2):
    return (np.zeros((1, ways), np.int64),) * num_rows(position, num_slots, ways=ways)


# ------------------------------------------------------------------------------ random steps


@pytest.mark.parametrize("seed", range(20, 24))
def test_random_steps_answer_as_the_model(seed):
    report = Case(seed, 150).run(KvMmu)
    assert report.is_equal, report.mismatches
    assert report.steps == 150
    assert report.evictions > 20
    assert report.tables_checked > 3


def test_equal_scores_rescales_and_saturation_come_back_to_back(seed):
    masses = {"full": 3.0, "equal": 1.0, "zero": 0.5, "spike": 1.0}
    mix = Mix(masses=masses, order="same", admit=0.01, release=0.01, most_beats=1)
    reports = [Case(n, 150, mix).run(KvMmu) for n in (40, 44)]
    assert all(report.is_equal for report in reports), reports
    assert sum(report.rescales for report in reports) > 10


def test_lanes_that_leave_after_few_tokens_leave_nothing_behind():
    mix = Mix(admit=0.2, release=0.18)
    reports = [Case(n, 200, mix).run(KvMmu, check_every=20) for n in (61, 62)]
    assert all(report.is_equal for report in reports), reports
    assert sum(report.responses for report in reports) > 80


@pytest.mark.parametrize("seed", [17, 23])
def test_tables_swapped_with_dram_answer_as_those_on_chip(seed):
    report = Case(seed, 150, store="dram").run(KvMmu, check_every=25)
    assert report.is_equal, report.mismatches
    assert report.tables_checked > 30


def test_a_table_is_not_asked_for_before_all_of_it_went_out():
    report = Case(2003, 60, store="dram").run(KvMmu, check_every=25)  # DRAM slow to take rows
    assert report.is_equal, report.mismatches


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2000, 2016))
def test_many_steps_swapped_with_dram_answer_as_the_model(seed):
    report = Case(seed, 1500, store="dram").run(KvMmu, check_every=100)
    assert report.is_equal, report.mismatches


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1040))
def test_hundred_thousand_random_steps_answer_as_the_model(seed):
    report = Case(seed, 2500).run(KvMmu, check_every=250)
    assert report.is_equal, report.mismatches
    assert report.steps == 2500


@pytest.mark.slow
@pytest.mark.parametrize(("slots", "ways"), [(64, 16), (128, 64), (256, 2)])
def test_larger_blocks_answer_as_the_model(rng, slots, ways):
    config = BlockConfig(slots=slots, ways=ways, lanes=2, layers=1, heads=1)
    settings = replace(
        draw_settings(rng, config), layers=(LayerSettings(slots - 3),), num_sinks=2, window=5
    )
    items = draw_items(
        rng, config, settings=settings, num_steps=4 * slots, mix=Mix(release=0.001, order="same")
    )
    report = cosimulate(KvMmu(config), config, settings=settings, items=items, rng=rng)
    assert report.is_equal, report.mismatches


# ------------------------------------------------------------------------------ recorded traces


@pytest.mark.parametrize("name", TRACES)
def test_kept_traces_are_hard_enough(name):
    hardness = traces.qualify(traces.read_decodes(DATA / f"{name}.trace"))
    print(hardness.describe())
    assert hardness.evictions >= 2000
    assert hardness.num_distinct_victims >= 200
    assert hardness.positive_minimum_share >= 0.5
    assert min(hardness.num_rescales, hardness.num_ties) >= 1
    assert min(hardness.num_lanes_left, hardness.num_lanes_joined) >= 1


def run_trace(name, rng, *, beats, pace, most_steps=None):
    trace = traces.read_decodes(DATA / f"{name}.trace")
    traces.qualify(trace)
    config, settings = traces.block_of(trace, ways=16, beats=beats)
    items = traces.trace_items(trace, ways=16, beats=beats, most_steps=most_steps)
    return cosimulate(
        KvMmu(config),
        config,
        settings=settings,
        items=items,
        rng=rng,
        pace=pace,
        check_every=None if most_steps else 1000,
    )


def test_block_takes_the_slots_of_the_model_and_of_the_library(rng):
    report = run_trace("layer", rng, beats=1, pace=Pace(), most_steps=90)
    assert report.is_equal, report.mismatches
    assert report.recorded == report.steps
    assert report.evictions > 80


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACES)
@pytest.mark.parametrize(
    ("beats", "pace"),
    [(1, Pace()), (2, Pace(cmd_gap=0.2, mass_gap=0.2, rsp_stall=0.2, write_stall=0.4))],
    ids=["back to back", "with gaps"],
)
def test_whole_traces_take_the_slots_of_the_model_and_of_the_library(name, rng, beats, pace):
    report = run_trace(name, rng, beats=beats, pace=pace)
    assert report.is_equal, report.mismatches
    assert report.recorded == report.steps
    assert report.evictions >= 2000


def test_wrong_recorded_slot_is_a_mismatch(rng):
    trace = traces.read_decodes(DATA / "layer.trace")
    config, settings = traces.block_of(trace)
    items = list(traces.trace_items(trace, most_steps=3))
    last = items[-1]
    items[-1] = replace(last, recorded_slot=last.recorded_slot + 1)
    report = cosimulate(KvMmu(config), config, settings=settings, items=items, rng=rng)
    assert "recorded slot" in report.mismatches[0]


def copy_trace(source, path, change):
    """Write a trace again, its events passed through change."""
    trace = read(source)
    with TraceWriter(path, trace.header, masses=True) as writer:
        for event in trace.events(masses=True):
            if (made := change(event)) is not None:
                writer.write(made)
    return path


def test_easy_trace_is_refused_with_what_it_lacks(tmp_path):
    def only_block(event):
        if not isinstance(event, DecodeBlock):
            return None
        return replace(event, masses=np.zeros_like(event.masses))

    path = copy_trace(DATA / "layer.trace", tmp_path / "easy.trace", only_block)
    with pytest.raises(TraceError, match="too easy a test") as caught:
        traces.qualify(traces.read_decodes(path))
    text = str(caught.value)
    for fault in ("num_rescales must be at least 1, got 0", "num_lanes_left", "other"):
        assert fault in text


def test_trace_with_chunks_is_refused_with_how_to_record_one(tmp_path):
    from kvmmu.trace import ChunkEvent

    trace = read(DATA / "layer.trace")
    none = np.zeros(0, np.int32)
    chunk = ChunkEvent(
        step=0,
        layer=0,
        valid=np.ones((3, 4), bool),
        n_valid=np.zeros(3, np.int32),
        lanes=none,
        heads=none,
        slots=none,
        evicted=none,
        positions=none,
        num_dropped=np.zeros((3, 1), np.int32),
        masses=np.zeros((3, 1, 68), np.uint32),
    )
    with TraceWriter(tmp_path / "t", trace.header, masses=True) as writer:
        writer.write(chunk)
    with pytest.raises(TraceError, match=r"got 1 chunks; .*prefill_chunk_size=1"):
        traces.read_decodes(tmp_path / "t")


def test_split_beats_have_the_recorded_words_as_mean():
    trace = traces.read_decodes(DATA / "head.trace")
    whole = traces.trace_items(trace, ways=4, beats=1, most_steps=8)
    split = traces.trace_items(trace, ways=4, beats=4, most_steps=8)
    for one, four in zip(whole, split, strict=True):
        assert one.command == four.command
        for beats in four.masses:
            assert beats.shape == (4, 4)
            assert beats.max() < 1 << 16
        if one.masses:  # the last row's ways past the held slots are drawn at random
            assert (four.masses[0].sum(0) // 4)[0] == one.masses[0][0, 0]


# ------------------------------------------------------------------------------ what stops it

SMALL = BlockConfig(slots=4, ways=2, lanes=2, layers=2, heads=1, position_bits=3)
ADMIT = Item(Command(Op.ADMIT))


def step(position, *, lane=0, layer=0, head=0):
    return Item(Command(Op.STEP, lane, layer, head), zeros(position, 4))


@pytest.mark.parametrize(
    ("config", "items", "error"),
    [
        (SMALL, [step(0)], BlockError.INACTIVE_LANE),
        (SMALL, [ADMIT, Item(Command(Op.RELEASE, lane=1))], BlockError.INACTIVE_LANE),
        (SMALL, [ADMIT, step(0, layer=1)], BlockError.OUT_OF_ORDER),
        (replace(SMALL, layers=3), [ADMIT, step(0, layer=3)], BlockError.OUT_OF_RANGE),
        (replace(SMALL, heads=3), [ADMIT, step(0, head=3)], BlockError.OUT_OF_RANGE),
        (replace(SMALL, lanes=3), [ADMIT, step(0, lane=3)], BlockError.OUT_OF_RANGE),
        (SMALL, [ADMIT, *(step(n) for n in range(9))], BlockError.POSITION_OVERFLOW),
    ],
)
def test_block_stops_where_the_model_does(rng, config, items, error):
    settings = BlockSettings((LayerSettings(4),) * config.layers)
    more = [*items, ADMIT, step(0)]
    report = cosimulate(KvMmu(config), config, settings=settings, items=more, rng=rng)
    assert report.is_equal, report.mismatches
    assert report.error is error


def test_block_stops_when_a_full_table_has_no_victim(rng):
    settings = BlockSettings((LayerSettings(4), LayerSettings(3)), num_sinks=2, window=2)
    items = [ADMIT, *(step(n) for n in range(6))]
    items += [Item(Command(Op.STEP, 0, 1, 0), zeros(n, 3)) for n in range(3)]
    report = cosimulate(KvMmu(SMALL), SMALL, settings=settings, items=items, rng=rng)
    assert report.is_equal, report.mismatches
    assert (report.steps, report.error) == (9, BlockError.NO_VICTIM)
