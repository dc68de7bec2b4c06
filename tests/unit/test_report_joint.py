"""One page of a run: what its folder holds stands on it, and what is missing is said."""

from __future__ import annotations

import json
import re
from itertools import chain, combinations

import pytest
from fake_evaluation import FEW, as_text, fake_lines
from small_study import small_study
from typer.testing import CliRunner

from kvmmu.cli import app
from kvmmu.report.accelerator.write import write_study
from kvmmu.report.joint import write_joint
from kvmmu.report.joint.overview import overview_grids
from kvmmu.report.joint.read import read_run
from kvmmu.report.replay import replay_grid, replay_words

ROW = {"delay_s": 0.008, "energy_j": 0.016, "dram_bytes": 1.5e8, "kv_bytes_read": 3e6}
FULL_ROW = {"delay_s": 0.012, "energy_j": 0.024, "dram_bytes": 1.8e8, "kv_bytes_read": 9e6}
RATIOS = {"overlapped": {"energy": 1.5, "delay": 1.5}}
BLOCK = {
    "kind": "simulated",
    "accelerator": "jetcas65",
    "trace": "rce.trace",
    "label": "rce 1/8",
    "dram": "lpddr4_3200_x64",
    "model": "a-model",
    "batch": 1,
    "num_slots": 64,
    "num_tokens": 512,
    "granularity": "head",
    "bits": {"weights": 8, "kv": 8, "activations": 8},
    "accuracy": "answers were measured with float32, not with the simulated int8",
    "rows": [
        {"name": "rce", "title": "RCE, 64 slots", "end_to_end": ROW},
        {"name": "full_8bit", "title": "full KV, 8 bit", "end_to_end": FULL_ROW},
    ],
    "ratios": {"end_to_end": RATIOS},
    "mmu_share": {"with_collection": 0.02},
}


def cache(label, policy, compression):
    return {
        "label": label,
        "policy": policy,
        "compression": compression,
        "num_slots": 512 // compression,
        "answers": {"hot_set": {"right": 9, "total": 10}},
        "perplexity": 47.3,
        "kv_bytes": 2**21 // compression,
        "peak_bytes": 2**20,
        "tokens_per_s": 1234.0,
    }


DEMO = {
    "model": "a-model",
    "dtype": "float32",
    "tasks": ["hot_set"],
    "caches": [
        cache("full StaticCache", None, 1),
        cache("rce 1/4", "rce", 4),
        cache("rce 1/8", "rce", 8),
        cache("snapkv 1/8", "snapkv", 8),
    ],
    "words": ["What the demonstration says."],
    "notes": ["How it was taken."],
    "accelerator": BLOCK,
}
PARTS = ("results.jsonl", "results.json", "simulation.json")


@pytest.fixture(scope="module")
def evaluation():
    return as_text(fake_lines(**FEW))


def fill(folder, parts, evaluation):
    """Write the parts of a run into a folder."""
    if "results.jsonl" in parts:
        (folder / "results.jsonl").write_text(evaluation, encoding="utf-8")
    if "results.json" in parts:
        (folder / "results.json").write_text(json.dumps(DEMO), encoding="utf-8")
    if "simulation.json" in parts:
        write_study(small_study(), folder)


def without_pictures(monkeypatch):
    """Leave out what takes longest: pictures have tests of their own."""
    for name in ("draw_evaluation", "draw_study"):
        monkeypatch.setattr(f"kvmmu.report.joint.write.{name}", lambda made, folder: {})


SUBSETS = list(chain.from_iterable(combinations(PARTS, n) for n in (1, 2, 3)))


@pytest.mark.parametrize("parts", SUBSETS, ids="+".join)
def test_page_holds_what_is_there_and_says_what_is_missing(
    tmp_path, parts, evaluation, monkeypatch
):
    without_pictures(monkeypatch)
    fill(tmp_path, parts, evaluation)
    run = write_joint(tmp_path)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert run.parts == [name for name in PARTS if name in parts]
    own = {
        "results.jsonl": "accuracy kept",
        "results.json": "What the demonstration says.",
        "simulation.json": "opt_125m on jetcas65",
    }
    for name, text in own.items():
        assert (text.lower() in page.lower()) == (name in parts)
        assert (f"<li>{name}: " in page) == (name not in parts)
    assert ("Accuracy, memory, speed and accelerator of this run" in page) == (len(parts) > 1)


def test_same_folder_gives_the_same_bytes(tmp_path, evaluation):
    fill(tmp_path, ("results.json", "simulation.json"), evaluation)
    write_joint(tmp_path)
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert len([p for p in files if p.suffix == ".png"]) == 6
    write_joint(tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files


def test_overview_joins_measured_and_simulated_figures(tmp_path, evaluation, monkeypatch):
    without_pictures(monkeypatch)
    fill(tmp_path, PARTS, evaluation)
    write_joint(tmp_path)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    overview = page[: page.index("<h1>Demonstration")]
    for text in ("9/10 answers", "256 KiB a row", "1,234 tokens/s", "16.0 mJ (simulated, int8;",
                 "24.0 mJ (", "8.00 ms (", "accuracy kept", "accuracy not measured",
                 "no measured accuracy stands for these ratios"):  # fmt: skip
        assert text in overview
    (snapkv,) = [line for line in overview.splitlines() if "snapkv 1/8" in line]
    assert "mJ" not in snapkv  # its trace was not simulated


def test_no_column_of_the_overview_mixes_units(tmp_path, evaluation, monkeypatch):
    without_pictures(monkeypatch)
    fill(tmp_path, PARTS, evaluation)
    grids = overview_grids(read_run(tmp_path))
    assert list(grids) == ["overview_demo", "overview_evaluation", "overview_study"]
    for grid in grids.values():
        for texts in zip(*(row[1:] for row in grid.rows), strict=True):
            units = {re.sub(r"[-\d.,–]+", "#", text) for text in texts} - {"#"}
            assert len(units) <= 1, units
    assert not re.search(r"\d+\.\d+x", str(grids["overview_demo"].rows))
    assert not re.search(r"\d (mJ|ms|s|J)\b", str(grids["overview_study"].rows))


def test_every_simulated_cell_beside_a_measured_one_is_marked(tmp_path):
    demo = json.loads(json.dumps(DEMO))
    demo["caches"].insert(0, cache("full DynamicCache", None, 1))
    (tmp_path / "results.json").write_text(json.dumps(demo), encoding="utf-8")
    grid = overview_grids(read_run(tmp_path))["overview_demo"]
    rows = {row[0]: row[-2:] for row in grid.rows}
    assert all("(simulated, int8; accuracy not measured with it)" in t for t in rows["rce 1/8"])
    shared = "(simulated, int8, one figure for all 2 full caches; accuracy not measured with it)"
    assert rows["full DynamicCache"] == [f"24.0 mJ {shared}", f"12.0 ms {shared}"]
    assert rows["full StaticCache"] == rows["full DynamicCache"]


def test_demonstration_of_an_older_version_has_no_simulated_part(tmp_path):
    old = {key: value for key, value in DEMO.items() if key != "accelerator"}
    (tmp_path / "results.json").write_text(json.dumps(old), encoding="utf-8")
    write_joint(tmp_path)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "What the demonstration says." in page
    assert "replayed" not in page.split("<body>")[1].replace("and replayed in simulation", "")


def test_replay_table_divides_the_full_cache_by_rce():
    grid = replay_grid(BLOCK)
    assert "simulated" in grid.title
    assert grid.rows[-1] == ["full / RCE", "1.50x", "1.50x", "1.20x", "3.00x"]
    words = " ".join(replay_words(BLOCK))
    assert "Simulated: the same trace (1 row, 512 tokens in 64 slots)" in words
    assert "1.50x the energy and 1.50x the time" in words
    assert "not with the simulated int8" in words


def test_replay_that_was_refused_says_why():
    block = {"accelerator": "jetcas65", "label": "rce 1/8", "refused": "no such model"}
    assert replay_words(block) == ["Not simulated on jetcas65: no such model."]
    assert replay_grid(block).rows == []


# --------------------------------------------------------------------------------------- command
def report(folder, *args):
    return CliRunner().invoke(app, ["report", str(folder), *args])


def test_command_prints_one_object_and_names_what_is_missing(tmp_path, evaluation, monkeypatch):
    without_pictures(monkeypatch)
    fill(tmp_path, ("results.jsonl", "results.json"), evaluation)
    result = report(tmp_path, "--json")
    assert result.exit_code == 0, result.stderr
    made = json.loads(result.stdout)
    assert made["parts"] == ["results.jsonl", "results.json"]
    assert made["simulation"] is None
    assert made["demo"] == DEMO
    assert made["headline"]  # an evaluation's own keys stay where they were
    assert "simulation.json: energy, delay and DRAM traffic (kvmmu simulate" in result.stderr


def test_command_prints_every_part(tmp_path, evaluation, monkeypatch):
    without_pictures(monkeypatch)
    fill(tmp_path, PARTS, evaluation)
    result = report(tmp_path)
    assert result.exit_code == 0, result.stderr
    for text in ("rce 1/8", "replayed on jetcas65 (simulated)", "Accuracy kept",
                 "Resolved configuration"):  # fmt: skip
        assert text in result.stdout


@pytest.mark.parametrize("make", ["nothing", "empty", "file"])
def test_folder_without_anything_to_report_is_refused_by_name(tmp_path, make):
    folder = tmp_path / "folder"
    if make == "empty":
        folder.mkdir()
    if make == "file":
        folder.write_text("")
    result = report(folder)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    for text in ("results.jsonl (kvmmu eval)", "simulation.json (kvmmu simulate)", str(folder)):
        assert text in result.stderr
    assert not (tmp_path / "folder" / "index.html").exists()


def test_search_of_designs_alone_is_refused_and_told_where_it_is_shown(tmp_path):
    (tmp_path / "exploration.json").write_text("{}", encoding="utf-8")
    result = report(tmp_path)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    for text in ("results.json (kvmmu demo)", "got only exploration.json", "designs.png"):
        assert text in result.stderr
    assert not (tmp_path / "index.html").exists()


def test_search_of_designs_beside_a_part_is_named_as_not_joined(tmp_path):
    fill(tmp_path, ("results.json",), "")
    assert "not joined" not in report(tmp_path).stderr
    (tmp_path / "exploration.json").write_text("{}", encoding="utf-8")
    result = report(tmp_path, "--json")
    assert result.exit_code == 0, result.stderr
    assert "not joined: exploration.json" in result.stderr
    assert json.loads(result.stdout)["parts"] == ["results.json"]
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<li>exploration.json: a search of designs" in page


@pytest.mark.parametrize("name", ["results.json", "simulation.json"])
@pytest.mark.parametrize("text", ["", "[1]", "{}", "{"])
def test_part_that_cannot_be_read_is_refused_by_name(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    result = report(tmp_path)
    assert result.exit_code == 2
    assert name in result.stderr
    assert not (tmp_path / "index.html").exists()
