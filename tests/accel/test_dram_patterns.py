"""Energy of commands, cost of patterns, requests over channels, layouts, and the cache."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from kvmmu.accel.dram import patterns
from kvmmu.accel.dram.cache import cache_folder
from kvmmu.accel.dram.energy import command_energy, static_power_w
from kvmmu.accel.dram.layouts import LAYOUTS, compare_layouts, mappings_of
from kvmmu.accel.dram.patterns import Pattern, bursts_of, pattern_cost
from kvmmu.accel.dram.requests import simulate_requests
from kvmmu.accel.dram.spec import DramSpec, list_drams, load_dram

MIB = 2**20
REGION = 512 * 8192
STREAM = Pattern("sequential", 8192, REGION)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVMMU_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(patterns, "_memo", {})
    return tmp_path


# --------------------------------------------------------------------------------- energy


def test_ddr4_energy_is_the_five_terms_of_its_currents() -> None:
    """By hand: 8 devices, VDD 1.2 V and VPP 2.5 V."""
    energy = command_energy(load_dram("ddr4_2400_x64"))
    t_rc, t_ras, burst, t_rfc = (cycles / 1.20048 for cycles in (56, 39, 4, 433))
    activate = 1.2 * (48 * t_rc - 43 * t_ras - 34 * (t_rc - t_ras))
    assert energy.activate_pj == pytest.approx(8 * activate)  # VPP: IPP0 = IPP3N, nothing more
    assert energy.read_pj == pytest.approx(8 * burst * 1.2 * (135 - 43))
    assert energy.write_pj == pytest.approx(8 * burst * 1.2 * (123 - 43))
    assert energy.refresh_pj == pytest.approx(8 * t_rfc * (1.2 * (250 - 43) + 2.5 * (28 - 3)))
    assert energy.background_active_w == pytest.approx(8 * (1.2 * 43 + 2.5 * 3) / 1e3)
    assert energy.io_read_pj == pytest.approx(64 * 8 * 6.0)


def test_hbm2_energy_is_the_published_split() -> None:
    energy = command_energy(load_dram("hbm2_256"))
    assert energy.activate_pj == pytest.approx(0.11 * 1024 * 8, rel=1e-3)
    assert energy.read_pj == pytest.approx((0.44 + 1.01 + 1.23 + 0.5) * 32 * 8)
    assert energy.io_read_pj == pytest.approx(0.3 * 32 * 8)


@pytest.mark.parametrize("name", list_drams())
def test_split_of_a_stream_lies_near_the_published_all_in_figure(name: str) -> None:
    """A cross-check, never added: within a factor of 1.5 of what others publish."""
    spec = load_dram(name)
    cost = pattern_cost(spec, STREAM)
    split = cost.activate_pj_per_byte + cost.column_pj_per_byte + cost.io_pj_per_byte
    all_in = spec.energy.cross_check_all_in_pj_per_bit
    assert all_in is not None
    assert 1 / 1.5 < split / 8 / all_in.value < 1.5


@pytest.mark.parametrize("name", list_drams())
def test_corners_are_ordered(name: str) -> None:
    spec = load_dram(name)
    low, nominal, high = (command_energy(spec, corner) for corner in ("low", "nominal", "high"))
    assert low.read_pj <= nominal.read_pj <= high.read_pj
    assert low.io_write_pj < nominal.io_write_pj < high.io_write_pj


def test_static_power_counts_all_channels_and_ranks() -> None:
    spec = load_dram("lpddr4_3200_x64")
    energy = command_energy(spec)
    background, refresh = static_power_w(spec)
    assert background == pytest.approx(8 * energy.background_active_w)
    assert refresh == pytest.approx(8 * energy.refresh_pj / (6246 / 1.6) / 1e3)
    idle, _ = static_power_w(spec, active_fraction=0.0)
    assert idle == pytest.approx(8 * energy.background_idle_w)
    with pytest.raises(ValueError, match="active_fraction"):
        static_power_w(spec, active_fraction=1.5)


# -------------------------------------------------------------------------------- patterns


@pytest.mark.parametrize("name", list_drams())
def test_stream_runs_near_peak_less_refresh_and_no_faster(name: str) -> None:
    spec = load_dram(name)
    cost = pattern_cost(spec, STREAM)
    gaps = spec.gaps
    limit = 1 - gaps.ref_act / gaps.refi if spec.organization.ranks == 1 else 1.0
    assert 0.85 < cost.fraction_of_peak <= limit + 1e-3
    assert cost.gbps == pytest.approx(cost.fraction_of_peak * spec.peak_gbps)


def test_small_pieces_cost_activations() -> None:
    spec = load_dram("hbm2_256")
    stream, gather = pattern_cost(spec, STREAM), pattern_cost(spec, Pattern("random", 64, REGION))
    assert gather.activates_per_kib > 5 * stream.activates_per_kib
    assert gather.gbps < 0.6 * stream.gbps


def test_partial_bursts_are_charged_whole() -> None:
    spec = load_dram("ddr4_3200_x64")
    whole, half = (pattern_cost(spec, Pattern("random", size, REGION, True)) for size in (64, 32))
    assert half.column_pj_per_byte == pytest.approx(2 * whole.column_pj_per_byte)
    assert half.io_pj_per_byte == pytest.approx(2 * whole.io_pj_per_byte)


def test_writes_cost_the_write_energy() -> None:
    spec = load_dram("lpddr4_3200_x64")
    read = pattern_cost(spec, STREAM)
    write = pattern_cost(spec, Pattern("sequential", 8192, REGION, True))
    energy = command_energy(spec)
    assert write.column_pj_per_byte / read.column_pj_per_byte == pytest.approx(
        energy.write_pj / energy.read_pj
    )


def test_sequential_covers_regions_in_order_and_random_stays_inside_them() -> None:
    spec = load_dram("ddr4_3200_x64")
    addresses, asked = bursts_of(spec, Pattern("sequential", 4096, 65536))
    assert asked == len(addresses) * 64
    assert (np.diff(addresses) == 64).all()
    addresses, asked = bursts_of(spec, Pattern("random", 256, 65536, pieces_per_region=2))
    pieces = addresses.reshape(-1, 4)
    assert asked == pieces.size * 64
    assert (pieces[:, 0] // 65536 == np.repeat(np.arange(len(pieces) // 2), 2)).all()
    assert (pieces[::2, 0] != pieces[1::2, 0]).all()


def test_strided_reads_every_byte_once() -> None:
    spec = load_dram("ddr4_3200_x64")
    pattern = Pattern("strided", 128, 32768, stride_bytes=1024)
    addresses, _ = bursts_of(spec, pattern)
    first = addresses[: 32768 // 64]
    assert sorted(first.tolist()) == list(range(0, 32768, 64))
    assert first[:4].tolist() == [0, 64, 1024, 1088]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sequental", 64, 1024), "kind must be"),
        (("random", 0, 1024), "piece_bytes"),
        (("random", 2048, 1024), "piece_bytes"),
        (("random", 64, 1024, False, 17), "pieces_per_region"),
        (("sequential", 64, 1024, False, None, 128), "stride_bytes"),
        (("strided", 64, 1024, False, None, 100), "stride_bytes"),
    ],
)
def test_impossible_pattern_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pattern(*arguments)


def test_region_larger_than_the_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="region_bytes must fit"):
        pattern_cost(load_dram("hbm2_256"), Pattern("sequential", 64, 2**40))


def test_pattern_agrees_with_the_whole_run_within_2_percent() -> None:
    """The cached steady state against the command-level model on a case of its own, refresh on."""
    spec = load_dram("lpddr4_3200_x64")
    addresses = np.arange(4 * MIB // 32) * 32
    result = simulate_requests(spec, addresses, np.zeros(len(addresses), bool))
    cost = pattern_cost(spec, STREAM)
    assert result.time_ns == pytest.approx(4 * MIB / cost.gbps, rel=0.02)
    assert result.column_pj == pytest.approx(4 * MIB * cost.column_pj_per_byte, rel=1e-9)
    assert result.activate_pj == pytest.approx(4 * MIB * cost.activate_pj_per_byte, rel=0.05)


def test_requests_are_shared_among_channels_and_energy_adds_up() -> None:
    spec = load_dram("lpddr4_3200_x64")
    addresses = np.arange(4000) * 32
    is_write = np.arange(4000) % 4 == 0
    result = simulate_requests(spec, addresses, is_write)
    energy = command_energy(spec)
    assert (result.reads, result.writes) == (3000, 1000)
    assert len(result.channel_cycles) == 4
    assert result.cycles == max(result.channel_cycles)
    assert result.dynamic_pj == pytest.approx(
        result.activates * energy.activate_pj
        + 3000 * (energy.read_pj + energy.io_read_pj)
        + 1000 * (energy.write_pj + energy.io_write_pj)
    )
    one = simulate_requests(
        spec, np.arange(1000) * 32 % 64 + np.arange(1000) // 2 * 256, is_write[:1000]
    )
    assert len(one.channel_cycles) == 1
    assert one.cycles > result.cycles * 0.9


def test_no_requests_take_no_time() -> None:
    result = simulate_requests(load_dram("hbm2_256"), np.zeros(0, np.int64), np.zeros(0, bool))
    assert (result.cycles, result.dynamic_pj) == (0, 0.0)


def test_address_outside_the_memory_is_refused() -> None:
    spec = load_dram("hbm2_256")
    with pytest.raises(ValueError, match="addresses must lie in"):
        simulate_requests(spec, np.array([spec.capacity_bytes]), np.array([False]))


# ----------------------------------------------------------------------------------- cache


def test_cached_pattern_is_read_not_simulated(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_dram("ddr4_3200_x64")
    first = pattern_cost(spec, STREAM)
    patterns._memo.clear()
    monkeypatch.setattr(patterns, "_simulate", lambda *_: pytest.fail("simulated again"))
    assert pattern_cost(spec, STREAM) == first
    assert pattern_cost(spec, STREAM, corner="high").gbps == first.gbps


@pytest.mark.parametrize("content", ["", "{", "[]", '{"gbps": 1.0}', "null"])
def test_broken_cache_entry_is_ignored_and_rewritten(own_cache: Path, content: str) -> None:
    spec = load_dram("ddr4_3200_x64")
    first = pattern_cost(spec, STREAM)
    (entry,) = cache_folder().glob("*.json")
    entry.write_text(content)
    patterns._memo.clear()
    assert pattern_cost(spec, STREAM) == first
    assert json.loads(entry.read_text())["gbps"] == first.gbps
    assert not list(cache_folder().glob("*.tmp"))


def test_unwritable_cache_costs_only_time(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert pattern_cost(load_dram("ddr4_3200_x64"), STREAM, cache_dir=blocked).gbps > 20


def test_other_mapping_or_timing_is_another_entry() -> None:
    spec = load_dram("ddr4_3200_x64")
    other = spec.with_address(("column", "bankgroup", "bank", "rank", "row"))
    assert pattern_cost(spec, STREAM).gbps > 1.4 * pattern_cost(other, STREAM).gbps


# --------------------------------------------------------------------------------- layouts


def test_layouts_are_compared_on_every_mapping_best_first() -> None:
    spec = load_dram("ddr4_3200_x64")
    choices = compare_layouts(spec, row_bytes=8192, num_kv_heads=32, num_slots=256)
    assert len(choices) == len(LAYOUTS) * len(mappings_of(spec))
    assert choices[0].slowdown == 1.0
    assert [c.step_ns for c in choices] == sorted(c.step_ns for c in choices)
    assert choices[-1].mapping in ("row_contiguous", "channel_by_row")
    assert choices[-1].slowdown == pytest.approx(
        1.56, abs=0.05
    )  # window 32: 15.6 against 24.3 GB/s


def test_layout_matters_when_heads_are_read_one_by_one() -> None:
    spec = load_dram("lpddr4_3200_x64")
    choices = compare_layouts(
        spec, row_bytes=8192, num_kv_heads=32, num_slots=256, reads="per_head"
    )
    assert choices[0].layout == "head"
    assert choices[-1].layout != "head"


def test_wrong_pair_for_gathered_reads_costs_nearly_twice_the_time() -> None:
    """One rank, as in the golden stream S6: 326,552 cycles against 176,166, 1.85 times."""
    data = load_dram("ddr4_3200_x64").model_dump()
    data["organization"]["ranks"] = 1
    spec = DramSpec.model_validate(data)
    choices = compare_layouts(
        spec, row_bytes=8192, num_kv_heads=32, num_slots=256, reads="gathered"
    )
    assert choices[0].layout == "head"
    assert choices[-1].slowdown == pytest.approx(1.9, abs=0.15)


def test_heads_that_do_not_divide_a_row_are_refused() -> None:
    with pytest.raises(ValueError, match="row_bytes must be a multiple"):
        compare_layouts(load_dram("hbm2_256"), row_bytes=100, num_kv_heads=3, num_slots=4)


@pytest.mark.slow
def test_pattern_is_simulated_in_half_a_second_on_every_preset() -> None:
    for name in list_drams():
        spec = load_dram(name)
        pattern_cost(spec, STREAM)  # the compiled code is read from its cache once
        begin = time.perf_counter()
        pattern_cost(spec, Pattern("random", 256, REGION))
        assert time.perf_counter() - begin < 0.5
