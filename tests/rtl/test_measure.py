"""A trace on the netlist of a build, and the costs fitted to such replays."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from kvmmu.cli import app
from kvmmu.rtl.build import Build, build, toy_liberties
from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.costs import fit_costs
from kvmmu.rtl.gates.energy import Energy, EnergyParts
from kvmmu.rtl.gates.liberty_read import read_library
from kvmmu.rtl.gates.netlist_read import read_netlist
from kvmmu.rtl.gates.simulate import GateSimulation
from kvmmu.rtl.measure import items_for, measure_build, settings_for
from kvmmu.rtl.ports import header_layout, image_layout
from kvmmu.rtl.replay import Replay, _Images, replay_on_netlist
from kvmmu.rtl.report import REPORT
from kvmmu.rtl.synth import NETLIST
from kvmmu.rtl.verify.traces import read_decodes, trace_items

TRACE = Path(__file__).parent / "data" / "layer.trace"
HEADS = TRACE.with_name("head.trace")
CONFIG = BlockConfig(slots=64, ways=8, lanes=3, layers=4, position_bits=16)
SWAPPING = replace(CONFIG, ways=4, heads=4, store="dram")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a block that fits the trace, with the toy library."""
    made = tmp_path_factory.mktemp("block")
    build(Build(CONFIG), made)
    return made


def test_the_netlist_writes_what_the_library_recorded(folder: Path) -> None:
    done, energy = measure_build(folder, TRACE, liberty=None, most_steps=90)
    assert done.evictions > 50
    assert (done.mismatches, done.recorded_mismatches) == (0, 0)
    assert energy.cycles >= done.beats == done.rows
    assert done.stall_cycles > 0  # rescales hold the masses back
    assert energy.parts.clock_pj > 0 < energy.parts.sram_read_pj


def test_gaps_and_clock_are_those_asked_for(folder: Path) -> None:
    steps = {"liberty": None, "most_steps": 12}
    dense, at_100 = measure_build(folder, TRACE, clock_mhz=100.0, **steps)
    sparse, at_50 = measure_build(folder, TRACE, clock_mhz=50.0, mass_probability=0.1, **steps)
    assert (at_100.period_ns, at_50.period_ns) == (10.0, 20.0)
    assert sparse.beats == dense.beats
    assert sparse.cycles > dense.cycles + 3 * dense.beats
    assert sparse.mismatches == dense.mismatches == 0


@pytest.fixture(scope="module")
def swapping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a block with four heads, twice those of the trace, and its tables in DRAM."""
    made = tmp_path_factory.mktemp("swapping")
    build(Build(SWAPPING), made)
    return made


def test_swapped_tables_of_every_head_come_back_as_they_went(swapping: Path) -> None:
    done, energy = measure_build(swapping, HEADS, liberty=None, most_steps=64)
    assert done.evictions > 100
    assert (done.mismatches, done.recorded_mismatches) == (0, 0)
    # every table goes out and comes back once a step, but for its first and what stays on chip
    assert 0.9 < done.image_beats / (2 * (done.rows + done.steps)) < 1
    assert energy.parts.sram_write_pj > 0


def test_a_table_that_comes_back_wrong_is_noticed(
    swapping: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = _Images.answer

    def spoilt(images: Any, request: Any, kept: Any) -> Any:
        beats = answer(images, request, kept).copy()
        beats[0, 0] ^= np.uint64(1 << place)  # the first beat is the header
        return beats

    config = SWAPPING
    place = image_layout(config)["header"].offset + header_layout(config)["position"].offset

    monkeypatch.setattr(_Images, "answer", spoilt)
    with pytest.raises(RuntimeError, match="must answer every command"):  # other rows than masses
        measure_build(swapping, HEADS, liberty=None, most_steps=3)


def test_two_tables_are_never_swapped(swapping: Path) -> None:
    config = SWAPPING
    trace = read_decodes(HEADS)
    items = list(items_for(trace, config, most_steps=20, most_tables=2))
    steps = [item.command for item in items if item.recorded_slot is not None]
    assert {(step.lane, step.layer) for step in steps} == {(0, 0)}
    assert [step.head for step in steps] == [0, 1] * 20
    netlist = read_netlist(swapping / "synth" / "netlist.json", read_library(toy_liberties()[0]))
    done = replay_on_netlist(GateSimulation(netlist), config, settings_for(trace, config), items)
    assert (done.steps, done.image_beats, done.mismatches) == (40, 0, 0)


def test_a_slot_that_is_not_the_recorded_one_is_counted(folder: Path) -> None:
    trace = read_decodes(TRACE)
    items = list(trace_items(trace, ways=CONFIG.ways, most_steps=3))
    steps = [n for n, item in enumerate(items) if item.recorded_slot is not None]
    items[steps[4]] = replace(items[steps[4]], recorded_slot=63)
    netlist = read_netlist(folder / "synth" / "netlist.json", read_library(toy_liberties()[0]))
    settings = settings_for(trace, CONFIG)
    done = replay_on_netlist(GateSimulation(netlist), CONFIG, settings, items)
    assert (done.mismatches, done.recorded_mismatches) == (0, 1)


def test_command_prints_what_a_trace_costs(folder: Path) -> None:
    arguments = ["rtl", "energy", str(TRACE), "--build", str(folder), "--steps", "4", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout.splitlines()[-1])
    assert said["replay"]["mismatches"] == 0
    assert said["energy"]["total_pj"] > 0
    assert "wires" in said["energy"]["left_out"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"slots": 32}, "at least 64 slots"),
        ({"layers": 3}, "at least 4 layers"),
        ({"lanes": 2}, "at least 3 lanes"),
    ],
)
def test_a_block_that_cannot_follow_the_trace_is_refused(change: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        settings_for(read_decodes(TRACE), replace(CONFIG, **change))


def test_a_block_must_have_every_head_of_the_trace_equally_often() -> None:
    with pytest.raises(ValueError, match="a multiple of 2 tables a layer for this trace, got 3"):
        settings_for(read_decodes(HEADS), replace(CONFIG, heads=3))


def test_a_folder_without_a_build_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="make it with `kvmmu rtl build`"):
        measure_build(tmp_path, TRACE, liberty=None)


@pytest.mark.parametrize("report", ['{"clock_mhz": 100}', "{", None])
def test_a_build_that_was_not_synthesised_last_is_refused(
    folder: Path, tmp_path: Path, report: str | None
) -> None:
    (tmp_path / "synth").mkdir()
    shutil.copy(folder / "synth" / NETLIST, tmp_path / "synth")
    if report is not None:
        (tmp_path / REPORT).write_text(report)
    with pytest.raises(ValueError, match="the build must hold a netlist and its report"):
        measure_build(tmp_path, TRACE, liberty=None)


def test_macros_without_cells_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="must go with a liberty"):
        measure_build(folder, TRACE, liberty=None, sram_liberties=toy_liberties()[1:])


def test_a_cell_to_avoid_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dont_use must name cells of the liberty, got 'NAND9'"):
        build(Build(CONFIG, dont_use=("INV*", "NAND9")), tmp_path)


def test_other_libraries_than_the_build_had_are_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.lib"
    other.write_text(toy_liberties()[0].read_text().replace("area : 12;", "area : 13;"))
    with pytest.raises(ValueError, match="must be those of the build"):
        measure_build(folder, TRACE, liberty=other)


# Costs ------------------------------------------------------------------------------------------


def run(
    beats: int, rows: int, steps: int, cycles: int, image_beats: int = 0, *, energy_pj: float
) -> Any:
    """Return a replay and its energy."""
    counts = {"evictions": 0, "stall_cycles": 0, "mismatches": 0, "recorded_mismatches": 0}
    counts |= {"beats": beats, "rows": rows, "steps": steps, "image_beats": image_beats}
    done = Replay(cycles=cycles, first_mismatch=None, **counts)
    third = energy_pj / 3
    sram = (300.0 * rows + 40.0 * steps + 50.0 * image_beats) / 4
    names = ("sram_read_pj", "sram_write_pj", "sram_idle_pj", "sram_pins_pj")
    other = {"leakage_pj": 1e6, "sram_leakage_pj": 1e6}
    parts = EnergyParts(third, third, third, **other, **dict.fromkeys(names, sram))
    return done, Energy(parts, cycles, 10.0, {}, 0.0, "toy", 1.0)


def runs_of(costs: tuple[float, ...], count: int = 6) -> list[Any]:
    """Draw counts and give each the energy that the costs make."""
    drawn = np.random.default_rng(3).integers(100, 10_000, (count, len(costs))).tolist()
    return [run(*n, energy_pj=float(np.dot(n, costs))) for n in drawn]


def test_costs_are_found_again() -> None:
    found = fit_costs(runs_of((20.0, 90.0, 70.0, 9.0)))
    assert found.beat_pj == pytest.approx(20.0)
    assert found.row_pj == pytest.approx(90.0)
    assert found.step_pj == pytest.approx(70.0)
    assert found.cycle_pj == pytest.approx(9.0)
    assert (found.image_beat_pj, found.sram_image_beat_pj) == (0.0, 0.0)
    assert (found.sram_row_pj, found.sram_step_pj) == pytest.approx((300.0, 40.0))
    assert max(found.largest_residual, found.sram_largest_residual) < 1e-9


def test_a_beat_of_an_image_has_a_cost_of_its_own() -> None:
    found = fit_costs(runs_of((20.0, 90.0, 70.0, 9.0, 13.0)))
    assert found.image_beat_pj == pytest.approx(13.0)
    assert found.row_pj == pytest.approx(90.0)
    assert found.sram_image_beat_pj == pytest.approx(50.0)


def test_blocks_without_macros_spend_nothing_in_sram() -> None:
    runs = runs_of((20.0, 90.0, 70.0, 9.0))
    none = EnergyParts(internal_pj=100.0)
    found = fit_costs([(done, replace(energy, parts=none)) for done, energy in runs])
    assert found.sram_row_pj == found.sram_step_pj == found.sram_largest_residual == 0.0


def test_no_cost_is_below_zero() -> None:
    found = fit_costs(runs_of((20.0, 90.0, -5.0, 9.0)))
    assert found.step_pj == 0.0
    assert min(found.beat_pj, found.row_pj, found.cycle_pj) > 0
    assert found.largest_residual > 1e-3


def test_too_few_or_equal_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4, got 3"):
        fit_costs(runs_of((1.0, 1.0, 1.0, 1.0), count=3))
    with pytest.raises(ValueError, match="at least 5, got 4"):
        fit_costs(runs_of((1.0, 1.0, 1.0, 1.0, 1.0), count=4))
    with pytest.raises(ValueError, match="rank 1"):
        fit_costs([run(100, 100, 10, 200, energy_pj=500.0)] * 5)
