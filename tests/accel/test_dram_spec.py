"""DRAM specifications: every preset is whole and sourced; what is wrong is refused by name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmmu.accel.dram.mapping import FIELDS, AddressMapping
from kvmmu.accel.dram.spec import CONFIGS, DramSpec, list_drams, load_dram
from kvmmu.errors import SpecError

PEAK_GBPS = {
    "lpddr4_3200_x64": 25.6,
    "ddr4_2400_x64": 19.2,
    "ddr4_3200_x64": 25.6,
    "hbm2_256": 256.0,
    "hbm3e_6stack": 4800.0,
}


@pytest.fixture
def data() -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / "lpddr4_3200_x64.yaml").read_text(encoding="utf-8"))


def load(data: dict[str, Any], folder: Path) -> DramSpec:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return load_dram(path)


def test_presets_are_those_listed() -> None:
    assert list_drams() == sorted(PEAK_GBPS)


@pytest.mark.parametrize("name", PEAK_GBPS)
def test_preset_has_its_peak_bandwidth_and_sources(name: str) -> None:
    spec = load_dram(name)
    assert spec.name == name
    assert spec.peak_gbps == pytest.approx(PEAK_GBPS[name], rel=1e-3)
    assert spec.cross_checked
    assert spec.scheduler_window == 32
    assert len(spec.sources()) >= 6
    assert all(spec.sources().values())
    org = spec.organization
    rows = org.channels * org.ranks * org.bank_groups * org.banks_per_group * org.rows
    assert spec.capacity_bytes == rows * org.row_bytes


def _groups(node: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    if not isinstance(node, dict):
        return []
    numeric = any(isinstance(v, int | float) and not isinstance(v, bool) for v in node.values())
    found = [(path, node)] if numeric else []
    return found + [g for key, value in node.items() for g in _groups(value, (*path, key))]


@pytest.mark.parametrize("name", PEAK_GBPS)
def test_every_group_of_numbers_in_the_file_has_a_source(name: str) -> None:
    tree = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    for path, _ in _groups(tree):
        parents = [tree]
        for key in path:
            parents.append(parents[-1][key])
        # a band low/nominal/high stands under the source of the group that holds it
        assert any("source" in parent for parent in parents[-2:]), path


@pytest.mark.parametrize(
    "group", ["organization", "timings", "address", "controller", "energy.core", "energy.io"]
)
def test_group_without_a_source_is_refused(
    group: str, data: dict[str, Any], tmp_path: Path
) -> None:
    node = data
    for key in group.split("."):
        node = node[key]
    del node["source"]
    with pytest.raises(SpecError, match=rf"{group}\.source must be given"):
        load(data, tmp_path)


def test_unknown_dram_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(SpecError, match=r"unknown DRAM 'ddr4_3200'; did you mean 'ddr4_3200_x64'"):
        load_dram("ddr4_3200")


@pytest.mark.parametrize(
    ("group", "key", "near"),
    [("timings", "t_faw_cycle", "t_faw_cycles"), ("organization", "rank", "ranks")],
)
def test_unknown_key_is_refused_with_the_nearest_one(
    group: str, key: str, near: str, data: dict[str, Any], tmp_path: Path
) -> None:
    data[group][key] = 1
    with pytest.raises(SpecError, match=f"unknown key '{group}.{key}'; did you mean '{near}'"):
        load(data, tmp_path)


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("timings", "clock_mhz", 0.0),
        ("timings", "transfers_per_cycle", 0),
        ("organization", "channels", 0),
        ("organization", "channel_bits", -16),
        ("organization", "rows", 0),
        ("controller", "read_entries", 0),
        ("timings", "t_rc_cycles", 10),
        ("timings", "t_refi_cycles", 100),
        ("organization", "row_bytes", 100),
        ("controller", "write_high_entries", 40.0),
    ],
)
def test_impossible_value_is_refused_by_name(
    group: str, key: str, value: float, data: dict[str, Any], tmp_path: Path
) -> None:
    data[group][key] = value
    named = "write_high" if key == "write_high_entries" else key
    with pytest.raises(SpecError, match=named):
        load(data, tmp_path)


def test_all_in_figure_beside_a_split_is_refused(data: dict[str, Any], tmp_path: Path) -> None:
    data["energy"]["all_in_pj_per_bit"] = 8.0
    with pytest.raises(SpecError, match=r"must be a split.*all_in_pj_per_bit.*never added"):
        load(data, tmp_path)


def test_band_out_of_order_is_refused(data: dict[str, Any], tmp_path: Path) -> None:
    data["energy"]["io"]["read_pj_per_bit"] = {"low": 5.0, "nominal": 4.0, "high": 6.0}
    with pytest.raises(SpecError, match="low <= nominal <= high"):
        load(data, tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["colum", "channel", "bank", "rank", "row"], "one of .*column"),
        (["channel", "bank", "rank", "row"], "place every bit of column"),
        (["column:9", "channel", "column", "bank", "rank", "row"], "64 columns"),
    ],
)
def test_mapping_that_leaves_out_or_repeats_bits_is_refused(
    fields: list[str], message: str, data: dict[str, Any], tmp_path: Path
) -> None:
    data["address"]["fields_lsb_to_msb"] = fields
    with pytest.raises(SpecError, match=message):
        load(data, tmp_path)


@pytest.mark.parametrize("text", ["a: b: c", "- 1", ""])
def test_file_that_is_no_mapping_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=r"mine\.yaml must be"):
        load_dram(path)


def test_missing_file_is_refused() -> None:
    with pytest.raises(SpecError, match="must be a file"):
        load_dram("nowhere.yaml")


def test_another_mapping_changes_nothing_else() -> None:
    spec = load_dram("ddr4_3200_x64")
    other = spec.with_address(("column", "bankgroup", "bank", "rank", "row"))
    assert other.gaps == spec.gaps
    assert other.capacity_bytes == spec.capacity_bytes
    assert other.mapping.order != spec.mapping.order


def test_gaps_follow_from_jedec_timings() -> None:
    gaps = load_dram("ddr4_3200_x64").gaps
    assert gaps.rd_wr == 22 + 4 + 2 - 16
    assert gaps.wr_rd_l == 16 + 4 + 12
    assert gaps.wr_pre == 16 + 4 + 24


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(FIELDS), fold=st.booleans(), channels=st.sampled_from([1, 3, 4]))
def test_mapping_is_one_to_one(order: list[str], fold: bool, channels: int) -> None:
    sizes = {"channel": channels, "rank": 2, "bankgroup": 2, "bank": 4, "row": 16, "column": 8}
    xor = ("bank ^= row[1:0]", "bankgroup ^= column[0:0]") if fold else ()
    mapping = AddressMapping(tuple(order), sizes=sizes, burst_bytes=64, xor=xor)
    addresses = np.arange(mapping.capacity_bytes // 64) * 64
    place = np.stack(mapping.decode(addresses))
    for name, values in zip(FIELDS, place):
        assert values.min() == 0
        assert values.max() == sizes[name] - 1
    assert len(np.unique(place, axis=1).T) == len(addresses)


def test_split_field_keeps_its_bit_order(data: dict[str, Any]) -> None:
    mapping = DramSpec.model_validate(copy.deepcopy(data)).mapping
    place = mapping.decode(np.array([0, 32, 64, 256, 288]))
    assert place.channel.tolist() == [0, 0, 1, 0, 0]
    assert place.column.tolist() == [0, 1, 0, 2, 3]
