"""A study's report: every figure is the study's own, wherever it is shown, and says what it is."""

from __future__ import annotations

import io
import json
import math
import re
from itertools import pairwise

import pytest
from matplotlib.axes import Axes
from rich.console import Console
from small_study import small_study, unfitting

from kvmmu.report.accelerator.grids import grids
from kvmmu.report.accelerator.names import (
    by_group,
    bytes_text,
    energy_text,
    share_text,
    three_digits,
    time_text,
    times,
)
from kvmmu.report.accelerator.page import render_body
from kvmmu.report.accelerator.plots import PICTURES
from kvmmu.report.accelerator.study import read_study
from kvmmu.report.accelerator.terminal import terminal_parts
from kvmmu.report.accelerator.words import answer, configuration, notes, setting
from kvmmu.report.accelerator.write import draw, write_study


@pytest.fixture(scope="module")
def study():
    return small_study()


def printed(study, width=80):
    """Print a study as a terminal of this width shows it."""
    console = Console(width=width, file=io.StringIO(), record=True, highlight=False, markup=False)
    for part in terminal_parts(study):
        console.print(part)
    return console.export_text()


def row_of(grid, name):
    (found,) = [row for row in grid.rows if row[0] == name]
    return dict(zip(grid.head, found, strict=True))


# ------------------------------------------------------------------------------------- figures
@pytest.mark.parametrize(
    ("made", "text"),
    [
        (three_digits(1234.4), "1,234"),
        (three_digits(99.96), "100"),
        (three_digits(9.999), "10.0"),
        (three_digits(0.0123), "0.012"),
        (bytes_text(0), "0 B"),
        (bytes_text(999.7e6), "1.00 GB"),
        (bytes_text(17_179_869_184), "17.2 GB"),
        (energy_text(0.0687), "68.7 mJ"),
        (time_text(1252.0), "1,252 s"),
        (time_text(3e-6), "3.00 us"),
        (share_text(0.0111), "1.11 %"),
        (share_text(0.00034), "0.034 %"),
        (share_text(3e-6), "< 0.001 %"),
        (share_text(0), "0 %"),
        (share_text(1), "100.0 %"),
        (times(1.995), "2.00x"),
        (times(347.2), "347x"),
    ],
)
def test_figures_keep_three_digits_and_their_unit(made, text):
    assert made == text


def test_groups_of_units_hold_all_energy(study):
    for made in (study["simulation"]["ours"], *study["simulation"]["baselines"]):
        units = made["total"]["energy_by_unit_j"]["overlapped"]
        assert math.isclose(sum(by_group(units).values()), sum(units.values()), rel_tol=1e-12)
        assert "other" not in by_group(units)


def test_unknown_unit_is_not_lost():
    assert by_group({"array": 1.0, "antenna": 2.0}) == {"PE array": 1.0, "other": 2.0}


# -------------------------------------------------------------------------------------- tables
def test_ratios_are_those_of_the_study_for_every_baseline(study):
    made = grids(study)
    for scope in ("decode", "end_to_end"):
        grid = made[f"ratios_{scope}"]
        assert len(grid.rows) == len(study["simulation"]["baselines"]) >= 7
        for other in study["simulation"]["baselines"]:
            ratios = study["simulation"]["ratios"][other["name"]][scope]
            row = row_of(grid, other["title"])
            assert row["both overlapped: energy"] == times(ratios["overlapped"]["energy"])
            assert row["baseline serial: delay"] == times(ratios["baseline_serial"]["delay"])
            assert row["both serial: delay"] == times(ratios["serial"]["delay"])


def test_answer_is_the_2_by_2_of_pipelines_and_measures(study):
    grid = grids(study)["answer"]
    ratios = study["simulation"]["ratios"]["full_8bit"]
    assert [row[0] for row in grid.rows] == ["both overlapped", "baseline serial", "both serial"]
    row = row_of(grid, "baseline serial")
    assert row["decode: energy"] == times(ratios["decode"]["baseline_serial"]["energy"])
    assert row["whole run: delay"] == times(ratios["end_to_end"]["baseline_serial"]["delay"])


@pytest.mark.parametrize("name", ["energy", "bytes", "units", "area"])
def test_last_row_is_the_sum_of_the_others(study, name):
    grid = grids(study)[name]
    assert grid.rows[-1][0] == "all"
    *parts, whole = grid.values
    for column in range(1, len(grid.head)):
        values = [row[column] for row in parts if row[column] is not None]
        assert sum(values) == pytest.approx(whole[column], rel=1e-9)


def test_every_table_with_ratios_says_which_accuracy_belongs_to_them(study):
    names = ("answer", "ratios_decode", "ratios_end_to_end", "drams", "sensitivity", "iso")
    for name in names:
        assert "accuracy not measured" in grids(study)[name].title
    study = small_study() | {"accuracy": {"what": "95 % kept at int8"}}
    for name in names:
        assert "accuracy: 95 % kept at int8" in grids(study)[name].title
    assert ("accuracy", "95 % kept at int8") in answer(study)


def test_every_table_says_that_it_is_simulated(study):
    assert all("simulated" in grid.title for grid in grids(study).values())


def test_two_drams_are_compared_and_a_refused_one_says_why(study):
    names = {row[0].partition(",")[0] for row in grids(study)["drams"].rows}
    assert len(names) >= 2
    refused = small_study()
    (other,) = refused["other_drams"]
    refused["other_drams"][other] = {"refused": "it has 3 GB"}
    assert f"{other}: it has 3 GB" in [row[0] for row in grids(refused)["drams"].rows]


def test_traffic_stands_beside_its_lower_bound_and_never_below_it(study):
    grid = grids(study)["bounds"]
    ours = row_of(grid, study["simulation"]["ours"]["title"])
    assert ours["decode, moved"] != "–"
    for row in grid.values[:1]:  # ours
        assert row[1] >= row[2] * 0.999
        assert row[3] >= row[4] * 0.999


def test_traffic_of_mixed_steps_has_its_own_bound():
    study = small_study()
    bound = study["bounds"]["rce"]
    bound["moved_bytes"] = {"prefill": 1e9, "mixed": 5e9, "decode": 2e9}
    bound["compulsory_bytes"] = {"prefill": 0.5e9, "mixed": 4e9, "decode": 1e9}
    row = row_of(grids(study)["bounds"], study["simulation"]["ours"]["title"])
    assert (row["mixed, moved"], row["mixed, least"]) == ("5.00 GB", "4.00 GB")
    assert (row["decode, moved"], row["decode, least"]) == ("2.00 GB", "1.00 GB")
    assert "K and V mixed 5.00 GB, least 4.00 GB" in dict(answer(study))["DRAM"]


def test_share_of_the_kv_mmu_has_corners_terms_and_the_papers_figure(study):
    grid = grids(study)["mmu"]
    assert "1.11 %" in grid.title
    assert [head for head in grid.head if head.startswith("whole run")] == [
        "whole run, low", "whole run, nominal", "whole run, high",
    ]  # fmt: skip
    names = [row[0].strip() for row in grid.rows]
    assert names[:2] == ["all tables, logic included", "with score collection"]
    nominal = [row[grid.head.index("whole run, nominal")] for row in grid.values]
    assert nominal[2:] == sorted(nominal[2:], reverse=True)
    assert nominal[0] == study["simulation"]["mmu_share"]["end_to_end"]["tables"]
    stores = grids(study)["variants"].rows
    assert {row[0].split(", ")[1] for row in stores} == {"DRAM", "SRAM"}


def test_layout_in_use_is_marked_and_the_short_table_keeps_best_and_worst(study):
    made = grids(study)
    marked = [row[0] for row in made["layouts"].rows if row[0].endswith("*")]
    assert marked == ["slot on preset *"]
    short = [row[0] for row in made["layouts_short"].rows]
    assert short[0] == made["layouts"].rows[0][0]
    assert short[-1] == made["layouts"].rows[-1][0]
    assert marked[0] in short


@pytest.mark.parametrize("name", ["streaming_llm", "RCE"])
def test_every_figure_is_called_by_the_policys_own_name(tmp_path, monkeypatch, name):
    study = small_study()
    study["simulation"]["ours"]["title"] = f"{name}, 32 slots"
    labels: list[str] = []
    monkeypatch.setattr(Axes, "set_xlabel", lambda ax, text, **_: labels.append(text))
    page = render_body(study, draw(study, tmp_path))
    made = grids(study)
    assert f"full KV, 8 bit / {name}, 32 slots, on the same chip" in made["answer"].title
    for table in ("drams", "sensitivity"):
        assert f"full KV, 8 bit / {name}" in made[table].title
    assert made["ratios_decode"].title.startswith(f"Baseline / {name}, decode")
    assert f"above 1x {name} gains" in made["ratios_decode"].title
    assert made["drams"].head[-1] == f"{name} bound by"
    assert f"{name}, whole run" in made["energy"].head
    assert f"{name}, decode" in made["bytes"].head
    assert f"{name}, decode" in [row[0] for row in made["delay"].rows]
    assert f"energy of full KV, 8 bit / {name}, whole run" in labels
    for text in (page, printed(study), " ".join(labels)):
        assert name == "RCE" or re.search(r"\bRCE\b", text) is None
    lines = printed(study).splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)


# --------------------------------------------------------------------------------------- words
def test_answer_holds_what_an_architect_asks_first(study):
    lines = dict(answer(study))
    assert lines["paper"].startswith("1.52x energy, 3.62x delay")
    assert "not measured" in lines["accuracy"]
    assert "mm2" in lines["cost"]
    assert re.search(r"decode by (memory|compute) \(DRAM [\d.]+ %, PEs", lines["bound by"])
    assert "(P+G)/C = 8.0x" in lines["DRAM"]
    assert "fewer" in lines["DRAM"]  # the reduction by bytes beside it
    assert "with score collection" in lines["KV-MMU"]
    assert "1.11 %" in lines["KV-MMU"]


def test_baseline_that_does_not_fit_is_named_with_its_size_wherever_it_stands():
    study = unfitting()
    lines = dict(answer(study))
    assert lines["fits not"].startswith("full KV, 8 bit needs 23.9 GB of 17.2 GB")
    assert "full KV, 16 bit, which fits" in lines["fits not"]
    made = grids(study)
    assert "full KV, 8 bit (23.9 GB > DRAM)" in made["answer"].title
    assert made["ratios_decode"].rows[0][0] == "full KV, 8 bit (23.9 GB > DRAM)"


def test_configuration_holds_mapping_window_and_balance_with_units(study):
    lines = dict(configuration(study))
    assert "channel" in lines["dram mapping"]
    assert int(lines["scheduler window"]) > 0
    assert lines["clock"] == "500 MHz"
    assert lines["dram peak"] == "25.6 GB/s"
    assert "kv 128 KiB" in lines["buffers"]
    assert float(lines["PEs / (BW x B / f)"]) == pytest.approx(
        1024 * 500e6 / (25.6e9 * 4), rel=1e-3
    )


def test_recorded_run_is_named_as_one():
    study = small_study()
    study["labels"]["workload"] = "trace run.trace"
    study["simulation"]["is_trace"] = True
    assert "trace run.trace, 192 prefill and 64 decode tokens" in setting(study)


def test_notes_of_the_run_come_first():
    study = small_study()
    study["simulation"]["notes"] = ["a note of this run"]
    assert notes(study)[0] == "a note of this run"


# ------------------------------------------------------------------------------------ terminal
@pytest.mark.parametrize("make", [small_study, unfitting])
def test_terminal_output_fits_80_columns_uncut_and_answers_first(make):
    text = printed(make())
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in text
    first = "\n".join(lines[:26])
    assert "both overlapped" in first
    assert "KV-MMU" in first
    assert text.index("cost") < text.index("Resolved configuration")


def test_run_without_decode_has_no_decode_figures():
    study = small_study()
    made = study["simulation"]
    for table in (made["ratios"].values(), [made["mmu_share"]]):
        for row in table:
            row.pop("decode", None)
    for result in (made["ours"], *made["baselines"]):
        result["phases"].pop("decode")
    made["reduction"].pop("decode_kv_bytes")
    for other in study["other_drams"].values():
        for ratios in other["ratios"].values():
            ratios.pop("decode")
    for bound in study["bounds"].values():
        bound["moved_bytes"].pop("decode")
        bound["compulsory_bytes"].pop("decode")
    text = printed(study)
    assert "both overlapped" in text
    assert "ratios_decode" not in grids(study)


# --------------------------------------------------------------------------- pictures and page
def test_pictures_are_drawn_and_repeat_byte_for_byte(tmp_path, study):
    files = draw(study, tmp_path)
    assert set(files) == set(PICTURES)
    first = {name: path.read_bytes() for name, path in files.items()}
    assert all(data[:8] == b"\x89PNG\r\n\x1a\n" for data in first.values())
    draw(study, tmp_path)
    assert {name: path.read_bytes() for name, path in files.items()} == first


def test_cost_of_a_step_is_flat_for_rce_and_grows_for_the_full_cache(study):
    by_design = {
        name: [row for row in study["context"] if row["design"] == name] for name in ("rce", "full")
    }
    beyond = [row for row in by_design["rce"] if row["context"] > 32]
    for key in ("delay_s", "energy_j", "kv_read_bytes"):
        assert len({round(row[key], 12) for row in beyond}) == 1
    full = by_design["full"]
    steps = {
        (b["kv_read_bytes"] - a["kv_read_bytes"]) / (b["context"] - a["context"])
        for a, b in pairwise(full)
    }
    assert max(steps) == pytest.approx(min(steps), rel=1e-9)
    assert all(a["energy_j"] < b["energy_j"] for a, b in pairwise(full))


def test_page_escapes_names_and_embeds_its_pictures(tmp_path):
    study = small_study()
    study["simulation"]["configuration"]["model"] = "<b>model"
    html = render_body(study, draw(study, tmp_path))
    assert "<b>model" not in html
    assert "&lt;b&gt;model" in html
    assert html.count("data:image/png;base64,") == len(PICTURES)


# ---------------------------------------------------------------------------------------- files
def test_written_study_is_read_back(tmp_path, study):
    write_study(study, tmp_path)
    assert read_study(tmp_path / "simulation.json") == study


@pytest.mark.parametrize("text", ["", "[", "[]", "{}", '{"simulation": {}}'])
def test_file_that_is_no_study_is_refused(tmp_path, text):
    file = tmp_path / "simulation.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"simulation\.json must be a"):
        read_study(file)


def test_study_has_no_figure_that_json_lacks(study):
    json.dumps(study, allow_nan=False)
