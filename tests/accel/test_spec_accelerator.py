"""Accelerator specifications: sources, unknown keys, overrides, what cannot be built."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvmmu.accel.spec import load as loading
from kvmmu.accel.spec.accelerator import AcceleratorSpec, balance
from kvmmu.accel.spec.load import list_accelerators, load_accelerator
from kvmmu.accel.spec.sourced import Band, parse_spec, read_yaml, require_sources
from kvmmu.errors import SpecError

CONFIGS = Path(loading.__file__).parents[1] / "configs"
SPEC = load_accelerator("jetcas65")


def raw_spec() -> dict[str, Any]:
    return read_yaml(CONFIGS / "jetcas65.yaml")


def places(raw: dict[str, Any], where: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield where a mapping with a source stands."""
    if "source" in raw:
        yield where
    for key, value in raw.items():
        if isinstance(value, dict):
            yield from places(value, (*where, key))


def at(raw: dict[str, Any], where: tuple[str, ...]) -> dict[str, Any]:
    for key in where:
        raw = raw[key]
    return raw


@pytest.mark.parametrize("name", list_accelerators())
def test_every_shipped_accelerator_loads_and_has_its_sources(name: str) -> None:
    spec = load_accelerator(name)
    assert spec.name == name
    require_sources(read_yaml(CONFIGS / f"{name}.yaml"), name)
    assert (CONFIGS / "dram" / f"{spec.dram}.yaml").exists()


@pytest.mark.parametrize("where", list(places(raw_spec())))
def test_numbers_without_a_source_are_refused_wherever_they_stand(where: tuple[str, ...]) -> None:
    raw = raw_spec()
    del at(raw, where)["source"]
    with pytest.raises(SpecError, match=rf"^f\.yaml: {where[0]}\.source must say where "):
        require_sources(raw, "f.yaml")


@pytest.mark.parametrize("source", ["", "  ", "assumed", "assumed: "])
def test_an_empty_source_or_a_bare_assumed_is_refused(source: str) -> None:
    with pytest.raises(SpecError, match=r"array.source must say where the numbers come from"):
        SPEC.with_overrides({"array.source": source})


def test_a_band_takes_the_source_of_the_mapping_that_holds_it() -> None:
    require_sources({"a": {"low": 1, "nominal": 2, "high": 3}, "source": "x"}, "f")
    with pytest.raises(SpecError, match=r"b.source must say where a come from"):
        require_sources({"b": {"a": {"low": 1, "nominal": 2, "high": 3}}}, "f")
    with pytest.raises(SpecError, match=r"source must say where rows come from"):
        require_sources({"rows": [["x", 1]]}, "f")
    require_sources({"flag": True, "text": "5"}, "f")


def test_a_band_out_of_order_is_refused() -> None:
    with pytest.raises(SpecError, match=r"must be low <= nominal <= high, got 2.0, 1.0, 3.0"):
        parse_spec(Band, {"low": 2.0, "nominal": 1.0, "high": 3.0}, "f")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("array.rosw", 3, "unknown key 'array.rosw'; did you mean 'rows'?"),
        ("aray.rows", 3, "unknown key 'aray'; did you mean 'array'?"),
        ("overheads.clock_noc_share.mid", 1.0, "unknown key 'overheads.clock_noc_share.mid'"),
        ("name.x", 1, "key 'name.x' must end at 'name'"),
        ("array.rows", 0, "array.rows must be greater than 0, got 0"),
        ("array.rows", "64", "array.rows must be a valid integer, got '64'"),
        ("array.rows", True, "array.rows must be a valid integer, got True"),
        ("clock.clock_mhz", 0.0, "clock.clock_mhz must be greater than 0, got 0.0"),
        ("clock.clock_mhz", float("nan"), "clock.clock_mhz must be a finite number"),
        ("mmu.ways", 0, "mmu.ways must be greater than 0, got 0"),
        ("softmax.ways", 0, "softmax.ways must be greater than 0, got 0"),
        ("vector.ways", 0, "vector.ways must be greater than 0, got 0"),
        ("buffers.kv_kib", 0, "buffers.kv_kib must be greater than 0, got 0"),
        ("buffers.kv_kib", 100, "buffers.kv_kib must be a multiple of bank_kib = 32, got 100"),
        ("buffers.kv_port_bytes", 65, "buffers.kv_port_bytes must be at most 64"),
        ("buffers.port_bits", 512, "port_bits must be 32 .. 256, the range of the SRAM table"),
        ("process.vdd_v", 1.6, "vdd_v must lie in 0.7 .. 1.3 V"),
        ("process.vdd_v", 0.3, "vdd_v must lie in 0.7 .. 1.3 V"),
        ("process.node_nm", 40, "process.node_nm must be one of 28, 65"),
        ("process.sram_flavour", "hq", "process.sram_flavour must be 'hp', 'lop' or 'lstp'"),
        ("process.sram_read_cycles", 1, "process.sram_read_cycles must cover the 2.27 ns access"),
        ("clock.clock_mhz", 700.0, "clock.clock_mhz must leave a bank its 1.56 ns cycle"),
        ("mmu.granularity", "lane", "mmu.granularity must be 'layer' or 'head', got 'lane'"),
        ("mmu.store", "flash", "mmu.store must be 'sram' or 'dram', got 'flash'"),
        ("mmu.position_bits", 8, "mmu.position_bits must be greater than or equal to 16"),
        ("softmax.form", "flash", "softmax.form must be 'online', 'two_pass' or 'three_pass'"),
        ("layout", "tensor", "layout must be 'slot', 'split' or 'head', got 'tensor'"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(key: str, value: object, told: str) -> None:
    with pytest.raises(SpecError) as error:
        SPEC.with_overrides({key: value})
    assert told in str(error.value)
    assert str(error.value).startswith("jetcas65: ")
    assert "\n" not in str(error.value)


def test_overrides_change_what_they_name_and_are_told_in_the_source() -> None:
    changed = SPEC.with_overrides({"array.rows": 64, "dram": "hbm2", "bits.kv": 4})
    assert (changed.num_pes, changed.dram, changed.bits.kv) == (2048, "hbm2", 4)
    assert changed.array.source.endswith("; rows overridden")
    assert SPEC.num_pes == 1024
    assert SPEC.with_overrides({}) == SPEC


def test_a_clock_that_one_bank_cycle_allows_is_taken_and_the_next_is_refused() -> None:
    limit_mhz = 1e3 / SPEC.bank(32).cycle_ns  # access at two cycles allows more
    SPEC.with_overrides({"clock.clock_mhz": limit_mhz})
    with pytest.raises(SpecError, match=r"clock.clock_mhz must leave a bank"):
        SPEC.with_overrides({"clock.clock_mhz": limit_mhz * 1.001})


def test_an_access_that_just_fits_its_cycles_is_taken_and_the_next_is_refused() -> None:
    limit_mhz = 1e3 / SPEC.bank(32).access_ns
    once = {"process.sram_read_cycles": 1}
    SPEC.with_overrides(once | {"clock.clock_mhz": limit_mhz * 0.999})
    with pytest.raises(SpecError, match=r"sram_read_cycles must cover"):
        SPEC.with_overrides(once | {"clock.clock_mhz": limit_mhz * 1.001})


def test_energy_by_parts_and_all_in_together_are_refused() -> None:
    all_in = {"pj_per_mac": {"low": 1.0, "nominal": 1.5, "high": 12.0}, "source": "a paper"}
    with pytest.raises(SpecError, match=r"exactly one of them, got both; .*cross_check_pj_per_mac"):
        SPEC.with_overrides({"all_in": all_in})
    raw = raw_spec()
    del raw["overheads"]
    with pytest.raises(SpecError, match=r"exactly one of them, got neither"):
        parse_spec(AcceleratorSpec, raw, "f")
    alone = parse_spec(AcceleratorSpec, raw | {"all_in": all_in}, "f")
    assert alone.all_in is not None
    assert alone.all_in.pj_per_mac.nominal == 1.5


def test_a_whole_figure_that_is_not_named_a_cross_check_is_refused() -> None:
    with pytest.raises(SpecError, match=r"unknown key 'cross_checks.pj_per_mac'.*cross_check_pj"):
        SPEC.with_overrides({"cross_checks.pj_per_mac": 1.5})


def test_missing_sections_are_named() -> None:
    raw = raw_spec()
    del raw["softmax"]
    with pytest.raises(SpecError, match=r"^f: softmax must be given$"):
        parse_spec(AcceleratorSpec, raw, "f")


def test_a_third_party_file_is_loaded_by_its_path(tmp_path: Path) -> None:
    raw = copy.deepcopy(raw_spec()) | {"name": "mine"}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    assert load_accelerator(path).name == load_accelerator(str(path)).name == "mine"
    path.write_text(yaml.safe_dump(raw | {"colour": "red"}), encoding="utf-8")
    with pytest.raises(SpecError, match=r"^mine\.yaml: unknown key 'colour'"):
        load_accelerator(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\na: 2\n", "key 'a' must stand once"),
        ("a: {b: 1, b: 2}\n", "key 'b' must stand once"),
        ("- a\n", "must hold a mapping, got list"),
        ("a: [\n", "must be YAML"),
    ],
)
def test_files_that_are_no_specification_are_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=told) as error:
        load_accelerator(path)
    assert "bad.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_and_missing_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"unknown accelerator 'jetcas56'; did you mean 'jetcas65'?"
    ):
        load_accelerator("jetcas56")
    with pytest.raises(SpecError, match=r"must be a readable file"):
        load_accelerator(tmp_path / "none.yaml")
    assert load_accelerator("JETCAS65") == SPEC


def test_balance_is_pes_over_bandwidth_times_batch_over_clock() -> None:
    # 25.6e9 bytes/s x 16 lanes / 500e6 Hz = 819.2 PEs would be in balance.
    assert balance(SPEC, 25.6, 16) == pytest.approx(1024 / 819.2)
    assert balance(load_accelerator("hbm_server"), 256, 16) == pytest.approx(1.0)
    half = SPEC.with_overrides({"bits.weights": 4})
    assert balance(half, 25.6, 16) == pytest.approx(balance(SPEC, 25.6, 16) / 2)
    with pytest.raises(ValueError, match=r"must be positive, got bandwidth_gbps=0"):
        balance(SPEC, 0, 16)
