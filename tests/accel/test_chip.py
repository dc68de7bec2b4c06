"""The chip's price list: sums, monotone costs, corners, flavours, anchors, refusals."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from kvmmu.accel.chip.chip import Chip, MmuTables, build_chip
from kvmmu.accel.chip.describe import describe
from kvmmu.accel.spec.accelerator import AcceleratorSpec
from kvmmu.accel.spec.load import list_accelerators, load_accelerator
from kvmmu.accel.spec.sourced import Corner
from kvmmu.accel.spec.tables import load_arithmetic
from kvmmu.errors import SpecError

SPEC = load_accelerator("jetcas65")
CORNERS: tuple[Corner, ...] = ("low", "nominal", "high")


def tables(spec: AcceleratorSpec, *, batch: int = 16, slots: int = 512) -> MmuTables:
    return MmuTables.of(spec, batch=batch, num_layers=32, num_kv_heads=32, slots=slots)


def chip(spec: AcceleratorSpec = SPEC, *, corner: Corner = "nominal", slots: int = 512) -> Chip:
    return build_chip(spec, corner=corner, mmu_tables=tables(spec, slots=slots))


@pytest.mark.parametrize("name", list_accelerators())
@pytest.mark.parametrize("corner", CORNERS)
def test_area_and_leakage_of_the_units_sum_to_the_totals(name: str, corner: Corner) -> None:
    built = chip(load_accelerator(name), corner=corner)
    units = {"weight_buffer", "kv_buffer", "activation_buffer", "logits_buffer", "mmu_score"}
    units |= {"array", "softmax", "vector", "mmu_logic"}
    assert set(built.area_mm2) == set(built.leakage_w) == units
    assert built.total_area_mm2 == pytest.approx(sum(built.area_mm2.values()), rel=1e-12)
    assert built.total_leakage_w == pytest.approx(sum(built.leakage_w.values()), rel=1e-12)
    for memory in built.memories.values():
        unit = "mmu_score" if memory.name == "score" else f"{memory.name}_buffer"
        assert built.leakage_w[unit] == memory.leakage_w > 0
        assert built.area_mm2[unit] == memory.area_mm2 > 0


def test_a_buffer_s_banks_are_rows_of_the_table_at_the_chip_s_vdd() -> None:
    kv = chip().memories["kv"]  # 4 banks of 32 KiB, 128 bit, LOP: 14.1 and 39.9 pJ at 0.8 V
    assert kv.read_pj_per_byte == pytest.approx(14.1 / 16 * (1.0 / 0.8) ** 2, rel=1e-3)
    assert kv.write_pj_per_byte == pytest.approx(39.94 / 16 * (1.0 / 0.8) ** 2, rel=1e-3)
    assert kv.leakage_w == pytest.approx(4 * (0.4091 + 0.3953) * 1e-3 * 1.5625, rel=1e-3)
    assert kv.area_mm2 == pytest.approx(4 * 1.103 * 0.227, rel=1e-3)
    assert (kv.capacity_bytes, kv.port_bytes_per_cycle, kv.latency_cycles) == (131072, 64, 2)


def test_one_byte_written_and_read_costs_what_the_estimates_took() -> None:
    kv = chip().memories["kv"]  # banks of 32 KiB by CACTI (commit 1ffd8df, 300 K): pJ a byte
    assert 3.4 < kv.read_pj_per_byte + kv.write_pj_per_byte < 6.6


@pytest.mark.parametrize("buffer", ["weight", "kv", "activation", "logits"])
def test_a_larger_buffer_leaks_more_and_takes_more_area(buffer: str) -> None:
    sizes = [
        chip(SPEC.with_overrides({f"buffers.{buffer}_kib": kib})) for kib in (128, 256, 512, 1024)
    ]
    for smaller, larger in itertools.pairwise(sizes):
        assert smaller.memories[buffer].leakage_w < larger.memories[buffer].leakage_w
        assert smaller.total_area_mm2 < larger.total_area_mm2


@pytest.mark.parametrize(
    ("key", "values", "unit"),
    [
        ("array.rows", (16, 32, 64), "array"),
        ("softmax.ways", (8, 16, 32), "softmax"),
        ("vector.ways", (8, 16, 32), "vector"),
        ("mmu.ways", (8, 16, 32), "mmu_logic"),
        ("bits.weights", (8, 12, 16), "array"),
    ],
)
def test_a_larger_unit_leaks_more_and_takes_more_area(
    key: str, values: tuple[int, ...], unit: str
) -> None:
    built = [chip(SPEC.with_overrides({key: value})) for value in values]
    for smaller, larger in itertools.pairwise(built):
        assert smaller.area_mm2[unit] < larger.area_mm2[unit]
        assert smaller.leakage_w[unit] < larger.leakage_w[unit]


def test_corners_are_ordered_in_every_price_and_sum() -> None:
    low, nominal, high = (chip(corner=corner) for corner in CORNERS)
    for a, b in ((low, nominal), (nominal, high)):
        assert a.mac_pj < b.mac_pj
        assert a.vector_op_pj < b.vector_op_pj
        assert a.pe_register_pj_per_mac < b.pe_register_pj_per_mac
        assert a.clock_noc_pj_per_mac < b.clock_noc_pj_per_mac
        for name, pj in vars(a.softmax).items():
            assert pj < getattr(b.softmax, name), name
        for name, memory in a.memories.items():
            assert memory.read_pj_per_byte < b.memories[name].read_pj_per_byte
        assert a.total_area_mm2 < b.total_area_mm2
        assert a.total_leakage_w < b.total_leakage_w


def test_the_flavour_changes_leakage_in_every_memory_and_all_logic() -> None:
    lop, hp = chip(), chip(SPEC.with_overrides({"process.sram_flavour": "hp"}))
    for unit, leakage_w in lop.leakage_w.items():
        assert hp.leakage_w[unit] > 10 * leakage_w, unit


def test_sixteen_banks_of_high_performance_cells_leak_as_measured() -> None:
    spec = SPEC.with_overrides({"process.sram_flavour": "hp", "process.vdd_v": 1.1})
    built = chip(spec)
    data_w = sum(built.memories[name].leakage_w for name in ("weight", "kv", "activation"))
    gate_w = 16 * 2.389e-3  # which CACTI prints apart
    # 16 banks of 32 KiB, HP, of 23.0 mW each: CACTI (commit 1ffd8df, 300 K).
    assert data_w - gate_w == pytest.approx(0.368, abs=0.001)


def test_a_mac_is_multiplier_and_accumulate_and_widths_multiply() -> None:
    built = chip()
    # 0.2 + 0.1 pJ (Horowitz, ISSCC 2014, 45 nm) x 1.906 (Stillmaker and Baas 2017, to 65 nm, 1 V)
    assert built.mac_pj == pytest.approx(0.57, abs=0.005)
    narrow = chip(SPEC.with_overrides({"bits.kv": 4}))
    assert narrow.mac_pj == built.mac_pj
    add_pj = 0.1 * 1.9059
    assert narrow.attention_mac_pj - add_pj == pytest.approx((built.mac_pj - add_pj) / 2, rel=1e-3)


def test_a_multiplier_s_energy_goes_with_both_widths() -> None:
    add_pj = chip().mac_pj - 0.2 * 1.9059
    for weights, activations in ((4, 8), (8, 4), (4, 4), (16, 16)):
        spec = SPEC.with_overrides({"bits.weights": weights, "bits.activations": activations})
        product = weights * activations / 64
        assert chip(spec).mac_pj - add_pj == pytest.approx(0.2 * 1.9059 * product, rel=1e-3)


def test_registers_and_clock_follow_from_their_stated_shares() -> None:
    built = chip()
    register_pj = 40 * 0.009 * 1.9059  # bits a MAC, pJ a bit at 45 nm, to 65 nm
    assert built.pe_register_pj_per_mac == pytest.approx(register_pj, rel=1e-3)
    assert built.clock_noc_pj_per_mac == pytest.approx(0.5 * (built.mac_pj + register_pj), rel=1e-3)


def test_softmax_and_vector_operations_are_the_table_s_at_65_nm() -> None:
    # fp16 of Horowitz, ISSCC 2014, scaled by Stillmaker and Baas 2017; exp of IEICE ELEX 19; half
    # of a 32-bit compare.
    built = chip()
    softmax = {"multiply_pj": 2.1, "add_pj": 0.76, "exp_pj": 4.6, "compare_pj": 0.021}
    for name, pj in softmax.items():
        assert getattr(built.softmax, name) == pytest.approx(pj, rel=0.01), name
    assert built.softmax.divide_pj == pytest.approx(7.1 * built.softmax.multiply_pj, rel=0.01)
    assert built.vector_op_pj == pytest.approx(built.softmax.multiply_pj + built.softmax.add_pj)


def test_the_array_s_parts_lie_within_the_whole_figures_of_real_chips() -> None:
    assert SPEC.cross_checks is not None
    assert SPEC.cross_checks.cross_check_pj_per_mac is not None
    built, whole = chip(), SPEC.cross_checks.cross_check_pj_per_mac
    parts = built.mac_pj + built.pe_register_pj_per_mac + built.clock_noc_pj_per_mac
    assert whole.low < parts < whole.high


def test_an_all_in_figure_leaves_no_part_to_be_priced_again() -> None:
    raw = SPEC.model_dump(exclude_none=True)
    del raw["overheads"]
    band = {"low": 1.0, "nominal": 1.5, "high": 4.0}
    spec = AcceleratorSpec.model_validate(raw | {"all_in": {"pj_per_mac": band, "source": "x"}})
    built = chip(spec, corner="high")
    assert built.mac_pj == built.attention_mac_pj == 4.0
    prices = [built.pe_register_pj_per_mac, built.clock_noc_pj_per_mac, built.vector_op_pj]
    prices += [*vars(built.softmax).values(), *vars(built.mmu).values()]
    for memory in built.memories.values():
        prices += [memory.read_pj_per_byte, memory.write_pj_per_byte]
    assert not any(prices)
    assert not built.total_leakage_w
    assert describe(spec, built)


def test_area_of_the_kv_mmu_is_the_synthesised_block_s() -> None:
    """Within 1 % of 4, 8 and 16 ways on chip, of 16 with tables in DRAM; the fit's 4.3 to 65 nm."""
    for ways, store, native_um2 in (
        (4, "sram", 178_169),
        (8, "sram", 244_263),
        (16, "sram", 382_095),
        (16, "dram", 503_243),
    ):
        spec = SPEC.with_overrides({"mmu.ways": ways, "mmu.store": store})
        assert chip(spec).area_mm2["mmu_logic"] == pytest.approx(native_um2 / 4.3e6, rel=0.01)


def test_a_way_s_work_and_the_clock_cost_the_same_with_any_ways() -> None:
    on_chip = SPEC.with_overrides({"mmu.store": "sram"})
    narrow, wide = (chip(on_chip.with_overrides({"mmu.ways": ways})) for ways in (16, 64))
    assert vars(wide.mmu) == vars(narrow.mmu)
    assert wide.mmu_clock_w == narrow.mmu_clock_w
    assert narrow.mmu_clock_w == pytest.approx(narrow.mmu.idle_cycle_pj * 500e6 / 1e12)


@pytest.mark.parametrize("store", ["sram", "dram"])
@pytest.mark.parametrize("corner", CORNERS)
def test_energies_of_the_kv_mmu_are_those_of_the_table(corner: str, store: str) -> None:
    def given(name: str) -> float:
        return load_arithmetic().energy_pj(name, to_node="65", to_vdd_v=1.0, corner=corner)

    mmu = chip(SPEC.with_overrides({"mmu.store": store}), corner=corner).mmu
    assert mmu.beat_pj_per_way == pytest.approx(given("mmu_beat"))
    assert mmu.row_pj_per_way == pytest.approx(given("mmu_row"))
    assert mmu.step_pj == pytest.approx(given("mmu_step"))
    assert mmu.image_pj_per_way == pytest.approx(given("mmu_image_beat"))
    swap_pj = 16 * given("mmu_swap_cycle") if store == "dram" else 0.0  # what swaps has a clock too
    assert mmu.idle_cycle_pj == pytest.approx(given("mmu_idle_cycle") + swap_pj)


def test_a_search_for_a_chunk_s_loser_takes_its_rows_and_a_tree() -> None:
    assert [chip().loser_search_cycles(n) for n in (16, 17, 256, 512)] == [6, 7, 21, 37]


def test_all_score_tables_are_held_on_chip_or_two_of_them() -> None:
    on_chip = SPEC.with_overrides({"mmu.store": "sram"})
    table = tables(on_chip)
    assert (table.num_tables, table.tables_on_chip, tables(SPEC).tables_on_chip) == (512, 512, 2)
    # 512 slots of 16 + 1 + 24 bit; a header of exponent, position and victim
    assert table.bytes_per_table(on_chip) == -(-(512 * 41 + 5 + 24 + 9) // 8)
    assert chip(on_chip).memories["score"].capacity_bytes == 512 * table.bytes_per_table(on_chip)
    assert chip(on_chip).area_mm2["mmu_score"] > 50 * chip().area_mm2["mmu_score"]
    per_head = SPEC.with_overrides({"mmu.granularity": "head"})
    assert tables(per_head).num_tables == 512 * 32
    assert tables(per_head).tables_on_chip == 2 + 2 * 32  # two work, those of two lanes wait


def test_more_slots_take_more_score_memory() -> None:
    areas = [chip(slots=slots).area_mm2["mmu_score"] for slots in (2048, 4096, 8192, 16384)]
    assert areas == sorted(set(areas))


def test_without_tables_there_is_no_score_memory() -> None:
    built = build_chip(SPEC)
    assert built.memories["score"].capacity_bytes == 0
    assert built.leakage_w["mmu_score"] == built.area_mm2["mmu_score"] == 0
    without = AcceleratorSpec.model_validate(SPEC.model_dump(exclude={"mmu"}, exclude_none=True))
    bare = build_chip(without)
    assert bare.area_mm2["mmu_logic"] == 0
    assert not any(vars(bare.mmu).values())
    with pytest.raises(SpecError, match=r"mmu must be given for a search"):
        bare.loser_search_cycles(16)
    with pytest.raises(SpecError, match=r"mmu must be given for score tables"):
        tables(without)


def test_impossible_tables_and_corners_are_refused_by_name() -> None:
    on_chip = SPEC.with_overrides({"mmu.store": "sram"})
    with pytest.raises(SpecError, match=r"tables_on_chip must be all 512 tables.*got 2"):
        build_chip(on_chip, mmu_tables=MmuTables(512, 512, 2))
    with pytest.raises(SpecError, match=r"corner must be 'low', 'nominal' or 'high', got 'mid'"):
        build_chip(SPEC, corner="mid")  # type: ignore[arg-type]
    for counts in ((0, 512, 2), (512, 0, 2), (512, 512, 1)):
        with pytest.raises(ValueError, match=r"must be at least"):
            MmuTables(*counts)


def test_a_chip_does_not_change() -> None:
    built = chip()
    with pytest.raises(dataclasses.FrozenInstanceError):
        built.mac_pj = 0.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        built.area_mm2["array"] = 0.0  # type: ignore[index]


@pytest.mark.parametrize("name", list_accelerators())
def test_a_description_names_every_section_its_source_and_the_sums(name: str) -> None:
    spec = load_accelerator(name)
    told = dict(describe(spec, chip(spec), bandwidth_gbps=25.6))
    for section in ("process", "clock", "bits", "array", "buffers", "softmax", "vector", "mmu"):
        assert told[f"{section}.source"] == getattr(spec, section).source
    assert "geometric" in told[f"area 45 -> {spec.process.node_nm} nm"]
    assert {"SRAM bank.source", "operations.source", "total area, leakage"} <= set(told)
    assert "at batch 16 and 25.6 GB/s" in told["PEs / (BW x B / f)"]
