"""The accelerator's cycles of a KV-MMU are those of its RTL, in Amaranth's simulator."""

from __future__ import annotations

import pytest

from kvmmu.accel.chip.mmu import HEADER_BYTES
from kvmmu.accel.chip.mmu_timing import (
    LATENCY_CYCLES,
    WAYS,
    num_rows,
    rescale_cycles,
    stream_cycles,
)

pytest.importorskip("amaranth")

from rtl_cycles import step_tables

from kvmmu.rtl.config import BlockConfig

SHAPES = [  # slots, ways, beats a row: long and short tables, odd and even rows
    (16, 2, 4),
    (8, 2, 4),
    (4, 2, 1),
    (4, 2, 3),
    (6, 2, 1),
    (8, 4, 8),
]


@pytest.mark.parametrize(("slots", "ways", "beats"), SHAPES)
def test_tables_in_a_row_take_the_rtl_s_cycles(slots, ways, beats):
    tables = 7
    measured, step = step_tables(slots=slots, ways=ways, beats=beats, tables=tables)
    got = measured.stream(step + 1, tables)
    rows = num_rows(slots, ways)
    said = stream_cycles(rows, beats, tables)
    assert got <= said <= got + 1
    if rows % 2 == 0 and rows * beats > 8:
        assert got == said == tables * rows * beats  # not one cycle between tables


@pytest.mark.parametrize("latency", [1, 6])
@pytest.mark.parametrize(("slots", "ways", "beats"), [(16, 2, 4), (8, 2, 1), (6, 2, 2), (16, 4, 8)])
def test_tables_that_swap_with_dram_take_the_rtl_s_cycles(slots, ways, beats, latency):
    tables = 5
    measured, step = step_tables(
        slots=slots, ways=ways, beats=beats, tables=tables, store="dram", latency=latency
    )
    got = measured.stream(step + 1, tables)
    said = stream_cycles(num_rows(slots, ways), beats, tables, latency_cycles=latency)
    assert got <= said <= got + 1


def test_victim_is_known_and_written_a_constant_time_after_the_last_beat():
    for slots, ways, beats in ((8, 2, 4), (16, 4, 1), (16, 2, 2)):
        measured, step = step_tables(slots=slots, ways=ways, beats=beats, tables=1)
        assert measured.over - 1 - measured.last[step + 1, 0] == LATENCY_CYCLES, (slots, ways)


@pytest.mark.parametrize(("slots", "ways", "beats"), [(16, 2, 4), (8, 2, 4), (16, 2, 1)])
def test_a_rescale_holds_the_stream_up_no_longer_than_said(slots, ways, beats):
    tables = 4
    calm, step = step_tables(slots=slots, ways=ways, beats=beats, tables=tables, further_steps=3)
    loud, _ = step_tables(
        slots=slots, ways=ways, beats=beats, tables=tables, further_steps=3, is_loud=True
    )
    longer = loud.first[step + 2, 0] - loud.first[step, 0]
    longer -= calm.first[step + 2, 0] - calm.first[step, 0]
    rows = num_rows(slots, ways)
    assert 0 < longer <= tables * rescale_cycles(rows)
    assert longer > tables * rows / 2


def test_sizes_are_those_of_the_rtl():
    config = BlockConfig(512, 16)
    assert config.image_bytes == HEADER_BYTES + 512 * (2 + 3)
    for ways in WAYS:
        assert BlockConfig(2 * ways, ways).rows == 2
    with pytest.raises(ValueError, match="ways must be in"):
        BlockConfig(512, 2 * WAYS[-1])
    with pytest.raises(ValueError, match="slots must be in"):
        BlockConfig(WAYS[-1], WAYS[-1])
