"""The transaction-level model answers commands as the ports say, on the integer KV-MMU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvmmu.errors import IntegrityError
from kvmmu.fixed_point import FixedPointConfig, FixedPointMMU
from kvmmu.geometry import CacheGeometry
from kvmmu.rtl.config import BlockConfig

pytest.importorskip("amaranth", reason="the RTL needs amaranth")

from kvmmu.rtl.model import BlockModel, num_rows, row_words
from kvmmu.rtl.ports import BlockError, Op
from kvmmu.rtl.transactions import BlockSettings, Command, LayerSettings

CONFIG = BlockConfig(slots=8, ways=2, lanes=2, layers=2, heads=2, position_bits=4)


def settings(*, slots=(8, 5), **parts):
    return BlockSettings(tuple(LayerSettings(n, 1000 * i) for i, n in enumerate(slots)), **parts)


def zeros(position, num_slots):
    return (np.zeros((1, 2), np.int64),) * num_rows(position, num_slots, ways=2)


def fill(model, lane, layer, head, count):
    """Step one table `count` times with zero masses, and return the writes."""
    writes = []
    for _ in range(count):
        writes.append(model.step(lane, layer, head))
        if writes[-1] is None:
            break
        num_slots = model.settings.layers[layer].num_slots
        model.accumulate(lane, layer, head, masses=zeros(writes[-1].position, num_slots))
    return writes


def test_lowest_free_lane_is_admitted_and_a_full_block_declines():
    model = BlockModel(CONFIG, settings())
    assert [model.admit().lane for _ in range(2)] == [0, 1]
    assert not model.admit().accepted
    model.release(0)
    assert model.admit().lane == 0


def test_rows_of_a_step_cover_the_held_slots_alone():
    counts = [num_rows(position, 5, ways=2) for position in range(8)]
    assert counts == [1, 1, 2, 2, 3, 3, 3, 3]


def test_row_word_saturates_at_24_bits_then_shifts_then_saturates_at_16():
    flood = np.full((300, 2), 65535)
    assert row_words([flood], head_shift=9).tolist() == [(2**24 - 1) >> 9] * 2
    assert row_words([flood], head_shift=8).tolist() == [65535] * 2
    assert row_words([np.array([[3, 4], [2, 0]])], head_shift=1).tolist() == [2, 2]
    assert row_words([np.array([[65535, 1]] * 2)], head_shift=0).tolist() == [65535, 2]


def test_address_is_base_plus_lane_and_slot_strides():
    model = BlockModel(CONFIG, settings(lane_stride_bytes=10_000, slot_stride_bytes=16))
    model.admit()
    model.admit()
    for layer, head in ((0, 0), (0, 1), (1, 0), (1, 1)):
        write = fill(model, 1, layer, head, 3)[-1]
        num_slots = model.settings.layers[layer].num_slots
        assert write.address == 1000 * layer + 10_000 + (head * num_slots + 2) * 16


def test_addresses_are_those_of_the_dram_layout():
    from kvmmu.rtl.verify.traces import block_of, read_decodes

    trace = read_decodes(Path(__file__).parent / "data" / "layer.trace")
    config, block = block_of(trace)
    model, geometry = BlockModel(config, block), trace.header.geometry
    assert isinstance(geometry, CacheGeometry)
    for lane, layer, slot in ((0, 0, 0), (2, 3, 63), (1, 2, 17)):
        wanted = geometry.dram_address(lane, layer, slot)
        assert model.address(lane, layer, 0, slot=slot) == wanted


def test_write_evicts_from_the_first_token_that_finds_no_empty_slot():
    model = BlockModel(CONFIG, settings(slots=(5, 8), num_sinks=1, window=2))
    model.admit()
    writes = fill(model, 0, 0, 0, 8)
    assert [write.evicts for write in writes] == [False] * 5 + [True] * 3
    assert [write.slot for write in writes[:6]] == [0, 1, 2, 3, 4, 1]
    assert [write.position for write in writes] == list(range(8))


def test_table_equals_the_integer_kv_mmu_after_random_masses(rng):
    model = BlockModel(CONFIG, settings(num_sinks=1, window=2, decay_shift=3, head_shift=1))
    mmu = FixedPointMMU(FixedPointConfig(8, 1, 2, 3))
    model.admit()
    for position in range(15):
        rows = num_rows(position, 8, ways=2)
        beats = tuple(rng.integers(0, 65536, (2, 2)) for _ in range(rows))
        words = np.zeros(8, np.uint16)
        words[: 2 * rows] = np.concatenate([row.sum(0) >> 1 for row in beats])
        assert model.step(0, 0, 0).slot == mmu.admit()
        model.accumulate(0, 0, 0, masses=beats)
        mmu.accumulate(words)
    state = model.table(0, 0, 0)
    assert state.mantissas.tolist() == mmu.mantissas.tolist()
    assert state.positions.tolist() == mmu.positions.tolist()
    assert (state.exponent, state.num_seen) == (int(mmu.exponents), 15)
    assert int(mmu.exponents) > 0


def test_released_lane_starts_from_empty_tables():
    model = BlockModel(CONFIG, settings())
    model.admit()
    fill(model, 0, 0, 0, 9)
    model.release(0)
    model.admit()
    assert model.table(0, 0, 0).num_seen == 0
    assert fill(model, 0, 0, 0, 1)[0].position == 0
    assert model.held_tables() == [(0, 0, 0)]


@pytest.mark.parametrize(
    ("commands", "error"),
    [
        ([Command(Op.STEP)], BlockError.INACTIVE_LANE),
        ([Command(Op.RELEASE, lane=1)], BlockError.INACTIVE_LANE),
        ([Command(Op.ADMIT), Command(Op.STEP, 0, 0, 2)], BlockError.OUT_OF_RANGE),
        ([Command(Op.ADMIT), Command(Op.STEP, 0, 2, 0)], BlockError.OUT_OF_RANGE),
        ([Command(Op.ADMIT), Command(Op.STEP, 2, 0, 0)], BlockError.OUT_OF_RANGE),
        ([Command(Op.ADMIT), Command(Op.STEP, 0, 0, 1)], BlockError.OUT_OF_ORDER),
    ],
)
def test_wrong_command_stops_the_model_for_ever(commands, error):
    model = BlockModel(CONFIG, settings())
    outcome = model.run([*commands, Command(Op.ADMIT)], [])
    assert outcome.error is error
    assert len(outcome.responses) == commands.count(Command(Op.ADMIT))
    assert model.admit() is None
    assert model.step(0, 0, 0) is None


def test_position_that_does_not_fit_stops_the_model():
    model = BlockModel(CONFIG, settings())
    model.admit()
    writes = fill(model, 0, 0, 0, 17)
    assert writes[15].position == 15
    assert writes[16] is None
    assert model.error is BlockError.POSITION_OVERFLOW


def test_table_without_a_victim_stops_the_model_when_it_is_full():
    model = BlockModel(CONFIG, settings(slots=(8, 5), num_sinks=2, window=4))
    model.admit()
    fill(model, 0, 0, 0, 12)
    fill(model, 0, 0, 1, 1)
    assert model.error is BlockError.NONE
    assert len([w for w in fill(model, 0, 1, 0, 9) if w]) == 5
    assert model.error is BlockError.NO_VICTIM


def test_wrong_number_of_rows_is_refused():
    model = BlockModel(CONFIG, settings())
    model.admit()
    model.step(0, 0, 0)
    with pytest.raises(IntegrityError, match="must bring 1 rows of masses, got 2"):
        model.accumulate(0, 0, 0, masses=zeros(2, 8))


@pytest.mark.parametrize(
    "parts",
    [
        {"head_shift": 16},
        {"slot_stride_bytes": 1 << 20},
        {"decay_shift": 17},
        {"window": -1},
        {"lane_stride_bytes": 1 << 40},
    ],
)
def test_settings_that_do_not_fit_their_inputs_are_refused(parts):
    with pytest.raises(ValueError, match="must"):
        settings(**parts)


def test_layers_that_do_not_fit_the_block_are_refused():
    with pytest.raises(ValueError, match=r"num_slots must be in \[1, 8\], got 9"):
        BlockModel(CONFIG, settings(slots=(8, 9)))
    with pytest.raises(ValueError, match="each of the 2 layers, got 1"):
        BlockModel(CONFIG, settings(slots=(8,)))
