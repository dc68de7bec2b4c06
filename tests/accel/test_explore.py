"""A search of designs: what it finds is feasible and real; same seed, same search; none lost."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache

import pytest
from typer.testing import CliRunner

pytest.importorskip("optuna", reason="needs optuna: pip install 'kvmmu[search]'")

from kvmmu.accel.dram.spec import load_dram
from kvmmu.accel.explore.explore import Exploration, explore
from kvmmu.accel.explore.journal import Journal
from kvmmu.accel.explore.missing import MissingExtraError
from kvmmu.accel.explore.objective import Evaluator, Refusal
from kvmmu.accel.explore.search import MAX_TRIES, search
from kvmmu.accel.explore.space import Axis, like_drams, make_space
from kvmmu.accel.request import Request
from kvmmu.accel.simulate import simulate
from kvmmu.accel.spec.load import load_accelerator
from kvmmu.cli import app
from kvmmu.errors import KVMMUError, SpecError

RUN = Request(model="opt_125m", batch=2, prompt=96, generate=32, num_slots=32)
SMALL = Exploration(RUN, drams=("lpddr4_3200_x64", "ddr4_2400_x64"), trials=12, seed=3)
ARGS = ("--model", "opt_125m", "--batch", 2, "--prompt", 96, "--generate", 32, "--slots", 32)


@cache
def found(**changes):
    """Search once for all tests that look at the same results."""
    return json.loads(json.dumps(explore(replace(SMALL, **changes))))


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def points_of(results, kind):
    return [entry["point"] for entry in (results[kind]["best"], *results[kind]["runners_up"])]


def tried(folder):
    """Read a journal's lines without its head."""
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()][1:]


# What is found ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rce", "full"])
def test_every_design_is_within_the_area_and_fits_its_dram(kind):
    results = found()
    budget = results["about"]["area_mm2"]
    assert results[kind]["num_priced"] >= 12
    assert all(area <= budget * (1 + 1e-4) for area, _ in results[kind]["points"])
    for entry in (results[kind]["best"], *results[kind]["runners_up"]):
        outcome = entry["outcome"]
        assert outcome["area_mm2"] <= budget
        assert outcome["capacity_bytes"] <= outcome["dram_capacity_bytes"]
        assert outcome["fits"]


@pytest.mark.parametrize("objective", ["edp", "delay", "energy"])
def test_the_best_is_the_least_of_all_and_no_worse_than_the_accelerator(objective):
    field = {"edp": "edp_js", "delay": "delay_s", "energy": "energy_j"}[objective]
    results = found(objective=objective, trials=6)
    for kind in ("rce", "full"):
        best = results[kind]["best"]["outcome"][field]
        assert best == pytest.approx(min(value for _, value in results[kind]["points"]), rel=1e-5)
        assert results[kind]["points"] == sorted(results[kind]["points"], key=lambda p: p[1])
    evaluator = _evaluator()
    own = evaluator.evaluate(evaluator.space.own_point("full"), "full")
    assert results["full"]["best"]["outcome"][field] <= getattr(own, field)


def test_the_best_design_costs_what_a_simulation_of_it_costs():
    best = found()["rce"]["best"]
    point, outcome = best["point"], best["outcome"]
    spec = _evaluator().space.specification(point)
    overrides = {
        "array.rows": point["rows"], "array.cols": point["cols"], "mmu.ways": point["mmu_ways"],
        "softmax.ways": point["softmax_ways"], "vector.ways": point["vector_ways"],
    }  # fmt: skip
    for name in ("weight", "kv", "activation", "logits"):
        for end in ("kib", "port_bytes"):
            overrides[f"buffers.{name}_{end}"] = getattr(spec.buffers, f"{name}_{end}")
    request = replace(
        RUN, dram=point["dram"], layout=point["layout"], softmax_form=point["softmax_form"],
        overrides=overrides,
    )  # fmt: skip
    made = simulate(request, names=("full_8bit",))
    assert made.ours.total.delay_s() == pytest.approx(outcome["delay_s"], rel=1e-12)
    assert made.ours.total.energy_j() == pytest.approx(outcome["energy_j"], rel=1e-12)
    chip = made.ours.total.machine.chip
    assert chip.total_area_mm2 == pytest.approx(outcome["area_mm2"], rel=1e-12)
    ratio = made.ratios["full_8bit"]["end_to_end"]["overlapped"]
    same = found()["ratios"]["equal_hardware"]
    assert same["delay"] == pytest.approx(ratio["delay"], rel=1e-12)
    assert same["energy"] == pytest.approx(ratio["energy"], rel=1e-12)


def test_the_full_caches_chip_has_no_kv_mmu():
    areas = {k: found()[k]["best"]["outcome"]["area_by_unit_mm2"] for k in ("rce", "full")}
    assert areas["full"]["mmu_logic"] == areas["full"]["mmu_score"] == 0
    assert areas["rce"]["mmu_logic"] > 0
    assert areas["rce"]["mmu_score"] > 0
    assert "mmu_ways" not in found()["full"]["best"]["point"]


def test_ratios_are_those_of_the_two_best_and_the_full_cache_may_have_rces_hardware():
    results = found()
    full, ours = (results[kind]["best"]["outcome"] for kind in ("full", "rce"))
    best, same = results["ratios"]["best_to_best"], results["ratios"]["equal_hardware"]
    for name in ("energy", "delay"):
        field = {"energy": "energy_j", "delay": "delay_s"}[name]
        assert best[name] == pytest.approx(full[field] / ours[field], rel=1e-12)
    assert best["edp"] <= same["edp"]  # without the KV-MMU's leakage it is a little better still


def test_no_design_beats_one_of_the_front_in_area_and_objective():
    for kind in ("rce", "full"):
        points = found()[kind]["points"]
        front = [tuple(point) for point in found()[kind]["front"]]
        assert front
        for area, value in front:
            beaten = [p for p in points if p[0] <= area and p[1] <= value and p != [area, value]]
            assert not beaten
        best = found()[kind]["points"][0]
        assert front[-1][1] == best[1]


def test_what_binds_is_said_of_the_best():
    results = found()
    told, best = results["rce"]["binding"], results["rce"]["best"]
    budget = results["about"]["area_mm2"]
    assert told["area_share"] == pytest.approx(best["outcome"]["area_mm2"] / budget)
    for name, end in told["at_an_end"].items():
        values = results["about"]["axes"][name]
        assert best["point"][name] == (values[0] if end == "least" else values[-1])


# Bits, slots, DRAMs -------------------------------------------------------------------------------


def _evaluator(**options):
    spec = load_accelerator("jetcas65")
    space = make_space(spec, **{"slots": (32,), "drams": SMALL.drams} | options)
    return Evaluator(RUN, space, 7.55)


def test_slots_and_bits_are_a_choice_only_where_listed():
    axes = {axis.name: axis for axis in _evaluator().space.axes}
    assert axes["num_slots"].values == (32,)
    assert axes["weight_bits"].values == axes["kv_bits"].values == (8,)
    axes = {axis.name: axis for axis in _evaluator(slots=(64, 32), bits=(4, 8)).space.axes}
    assert axes["num_slots"].values == (32, 64)
    assert axes["kv_bits"].values == (4, 8)
    assert axes["num_slots"].own == 64  # the most: the least change of accuracy


def test_fewer_bits_and_slots_cost_less_in_decode():
    evaluator = _evaluator(slots=(64, 32), bits=(4, 8))
    own = evaluator.space.own_point("rce")
    base = evaluator.evaluate(own, "rce")
    for change in ({"num_slots": 32}, {"weight_bits": 4, "kv_bits": 4}):
        less = evaluator.evaluate(own | change, "rce")
        assert less.decode_energy_j < base.decode_energy_j  # chunks are shorter with fewer slots
        assert less.decode_delay_s < base.decode_delay_s
        assert less.capacity_bytes < base.capacity_bytes


def test_a_dram_that_is_too_small_is_a_reason_and_as_if_is_said():
    request = Request(batch=16, num_slots=512)  # LLaMA-7B: the full cache needs 23.9 GB
    spec = load_accelerator("jetcas65")
    drams = ("lpddr4_3200_x64", "hbm2_256")
    evaluator = Evaluator(request, make_space(spec, slots=(512,), drams=drams), 7.55)
    own = evaluator.space.own_point("rce")
    assert evaluator.is_as_if
    assert not evaluator.evaluate(evaluator.space.own_point("full"), "full").fits
    for kind in ("rce", "full"):
        with pytest.raises(Refusal, match=r"8\.6 GB of the DRAM"):
            evaluator.evaluate(own | {"dram": "hbm2_256"}, kind)
    narrow = Evaluator(request, make_space(spec, slots=(512,), bits=(4, 8), drams=drams), 7.55)
    assert not narrow.is_as_if  # 4 bits fit: then what does not fit is refused
    with pytest.raises(Refusal, match=r"weights and KV over the 17\.2 GB"):
        narrow.evaluate(narrow.space.own_point("full"), "full")


def test_drams_of_a_faster_class_are_not_searched_unless_named():
    drams = like_drams("lpddr4_3200_x64")
    assert {"lpddr4_3200_x64", "ddr4_3200_x64", "ddr4_2400_x64"} <= set(drams)
    assert all(load_dram(name).peak_gbps <= 51.2 for name in drams)
    assert "hbm2_256" in like_drams("hbm2_256")


def test_an_impossible_design_is_refused_with_its_cause():
    evaluator = _evaluator()
    own = evaluator.space.own_point("rce")
    with pytest.raises(Refusal, match="area over the budget"):
        evaluator.evaluate(own | {"rows": 256, "cols": 256}, "rce")


def test_a_buffer_too_small_for_a_tile_is_refused_by_its_name():
    spec = load_accelerator("jetcas65").with_overrides({"buffers.bank_kib": 8})
    space = make_space(spec, slots=(32,), drams=SMALL.drams)
    small = Evaluator(replace(RUN, model="llama_7b"), space, 99.0)
    with pytest.raises(Refusal, match=r"^buffers\.kv_kib$"):
        small.evaluate(space.own_point("rce") | {"kv_banks": 1}, "rce")


# The search ---------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_search_and_another_another():
    first = explore(SMALL)
    assert json.loads(json.dumps(first)) == found()
    assert points_of(found(seed=4), "rce") != points_of(found(), "rce")


def test_all_that_was_tried_is_priced_or_counted_by_its_cause(tmp_path):
    results = explore(SMALL, folder=tmp_path)
    for kind in ("rce", "full"):
        lines = [line for line in tried(tmp_path) if line["cache"] == kind]
        assert [line["number"] for line in lines] == list(range(len(lines)))
        assert all(("outcome" in line) != ("refused" in line) for line in lines)
        count = results[kind]["num_priced"] + sum(results[kind]["refused"].values())
        assert count == len(lines)
        priced = [tuple(line["point"].items()) for line in lines if "outcome" in line]
        assert len(priced) == len(set(priced))


def test_a_search_without_designs_ends_and_says_so():
    spec = load_accelerator("jetcas65")
    space = make_space(spec, slots=(32,), drams=SMALL.drams)
    evaluator = Evaluator(RUN, space, 0.1)
    with Journal.opened(None, {}) as journal:
        assert search(evaluator, "rce", trials=2, journal=journal) == []
        lines = journal.lines("rce")
    assert len(lines) == 2 * MAX_TRIES
    assert {line["refused"] for line in lines} <= {"area over the budget", *_REPEATED}


_REPEATED = ("same as an earlier trial",)


def test_a_cut_search_goes_on_to_the_same_results(tmp_path):
    asked = replace(SMALL, trials=4, seed=11)  # both caches are given the other's hardware
    whole = explore(asked, folder=tmp_path)
    assert [line["cache"] for line in tried(tmp_path)[-3:]] == ["full", "rce", "full"]
    path = tmp_path / "trials.jsonl"
    data = path.read_bytes()
    ends = [n for n, byte in enumerate(data) if byte == 10]
    whole_lines = [end + 1 for end in (*ends[::8], *ends[-4:])]
    for cut in (0, 5, *whole_lines, ends[9] + 40, ends[-3] + 7, len(data) - 1):
        path.write_bytes(data[:cut])
        assert explore(asked, folder=tmp_path) == whole
        assert path.read_bytes() == data


def test_each_cache_is_priced_on_the_others_best_hardware(tmp_path):
    explore(replace(SMALL, trials=4), folder=tmp_path)
    lines = {kind: [x for x in tried(tmp_path) if x["cache"] == kind] for kind in ("rce", "full")}
    for kind, other in (("rce", "full"), ("full", "rce")):
        priced = [line for line in lines[kind] if "outcome" in line][:4]
        best = min(priced, key=lambda line: line["outcome"]["edp_js"])["point"]
        shared = [name for name in best if name in lines[other][0]["point"]]
        points = [tuple(line["point"][name] for name in shared) for line in lines[other]]
        assert tuple(best[name] for name in shared) in points


def test_score_tables_count_within_the_budget():
    spec = load_accelerator("jetcas65")
    space = make_space(spec, slots=(32,), drams=SMALL.drams)
    own = space.own_point("rce")
    whole = Evaluator(RUN, space, 99.0).evaluate(own, "rce")
    tables = whole.area_by_unit_mm2["mmu_score"]
    assert tables > 0
    for budget, fits in ((whole.area_mm2, True), (whole.area_mm2 - tables / 2, False)):
        evaluator = Evaluator(RUN, space, budget)
        if fits:
            assert evaluator.evaluate(own, "rce") == whole
            continue
        with pytest.raises(Refusal, match="area over the budget"):
            evaluator.evaluate(own, "rce")


def test_a_filled_array_is_the_largest_within_the_budget():
    evaluator = _evaluator()
    point = evaluator.space.own_point("rce") | {"rows": 8}
    for kind in ("rce", "full"):
        filled = evaluator.filled(point, kind, "cols")
        values = next(a.values for a in evaluator.space.axes if a.name == "cols")
        assert evaluator.evaluate(filled, kind).area_mm2 <= 7.55
        larger = values[values.index(filled["cols"]) + 1]
        with pytest.raises(Refusal, match="area over the budget"):
            evaluator.evaluate(filled | {"cols": larger}, kind)


def test_a_finished_search_prices_nothing_again(tmp_path, monkeypatch):
    whole = explore(SMALL, folder=tmp_path)
    monkeypatch.setattr(Evaluator, "evaluate", lambda *args: pytest.fail("priced again"))
    assert explore(SMALL, folder=tmp_path) == whole


def test_more_trials_go_on_from_those_there_are(tmp_path):
    explore(replace(SMALL, trials=4), folder=tmp_path)
    before = tried(tmp_path)
    results = explore(SMALL, folder=tmp_path)
    assert tried(tmp_path)[: len(before)] == before
    assert results["rce"]["num_priced"] >= 12


@pytest.mark.slow
def test_a_killed_search_loses_no_trial_and_doubles_none(tmp_path):
    args = ["explore", *ARGS, "--trials", 12, "--seed", 3, "--output"]
    command = [sys.executable, "-m", "kvmmu", *map(str, args)]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    folder = tmp_path / "killed"
    for wanted in (3, 9, 17):
        process = subprocess.Popen([*command, str(folder)], stderr=subprocess.DEVNULL)
        while not _num_lines(folder) > wanted and process.poll() is None:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([*command, str(folder)], check=True, capture_output=True)
    for name in ("trials.jsonl", "exploration.json"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def _num_lines(folder):
    path = folder / "trials.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


# The journal --------------------------------------------------------------------------------------


def test_a_journal_of_another_search_is_refused_by_what_differs(tmp_path):
    explore(replace(SMALL, trials=1), folder=tmp_path)
    for change, name in (
        ({"seed": 4}, "seed"),
        ({"objective": "delay"}, "objective"),
        ({"area_mm2": 6.0}, "area_mm2"),
        ({"request": replace(RUN, batch=3)}, "batch"),
        ({"fixed": {"rows": 32}}, "axes"),
    ):
        with pytest.raises(ValueError, match=f"holds a search with ({name}|area_mm2|axes) "):
            explore(replace(SMALL, trials=1, **change), folder=tmp_path)


def test_a_damaged_journal_is_refused(tmp_path):
    explore(replace(SMALL, trials=2), folder=tmp_path)
    path = tmp_path / "trials.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    for damaged, told in (
        (lines[:1] + lines[2:], "number its trials without a gap"),
        ([*lines[:2], lines[1], *lines[2:]], "number its trials without a gap"),
        ([*lines[:1], "[]\n"], "JSON object in every line"),
        (["not ours"], "must be the journal of a search"),
        (['{"kind": "about"}\n'], "must begin with what is searched"),
    ):
        path.write_text("".join(damaged))
        with pytest.raises(ValueError, match=told):
            explore(replace(SMALL, trials=2), folder=tmp_path)


def test_a_journal_in_use_is_refused(tmp_path):
    with (tmp_path / "trials.jsonl").open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="must not be in use by another search"):
            explore(replace(SMALL, trials=1), folder=tmp_path)


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"fixed": {"row": 32}}, "unknown choice 'row'; did you mean 'rows'?"),
        ({"fixed": {"rows": 33}}, "rows must be one of 8, 12, "),
        ({"objective": "speed"}, "objective must be one of edp, delay, energy, got 'speed'"),
        ({"trials": 0}, "trials must be at least 1"),
        ({"seed": -1}, "seed must lie in"),
        ({"area_mm2": 0.0}, "area_mm2 must be above 0"),
        ({"area_mm2": 0.5}, "area_mm2 must be at least .* the smallest design of jetcas65"),
        ({"slots": (5,)}, "num_slots must exceed num_sinks"),
        ({"drams": ("ddr9",)}, "ddr9"),
    ],
)
def test_what_cannot_be_searched_is_refused(changes, told):
    with pytest.raises((ValueError, KVMMUError), match=told):
        explore(replace(SMALL, **changes))


def test_an_accelerator_without_kv_mmu_or_area_model_is_refused():
    spec = load_accelerator("jetcas65")
    with pytest.raises(SpecError, match="mmu"):
        make_space(spec.model_copy(update={"mmu": None}), slots=(32,))


def test_values_that_alone_exceed_the_budget_are_left_out():
    spec = load_accelerator("jetcas65")
    space = make_space(spec, slots=(32,), drams=SMALL.drams, area_mm2=4.0)
    banks = next(axis for axis in space.axes if axis.name == "weight_banks")
    assert max(banks.values) * 0.2504 < 4.0  # mm2 of a 32 KiB bank
    assert isinstance(banks, Axis)
    assert banks.own in banks.values


def test_without_optuna_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "kvmmu.accel.explore.search")
    with pytest.raises(MissingExtraError, match=r"pip install 'kvmmu\[search\]'"):
        importlib.import_module("kvmmu.accel.explore.search")


# The command --------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", ["80", "100"])
def test_the_command_prints_the_answer_first_and_writes_its_files(tmp_path, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    result = run("explore", *ARGS, "--trials", 3, "--output", tmp_path)
    assert result.exit_code == 0, result.stderr
    text = " ".join(result.stdout.split())
    assert text.startswith("At 7.")
    for told in ("simulated", "accuracy not measured", "each on its best design", "of the area"):
        assert told in text
    assert "…" not in result.stdout  # no cell is cut
    assert max(map(len, result.stdout.splitlines())) <= int(columns)
    results = json.loads((tmp_path / "exploration.json").read_text())
    assert results["trials"] == 3
    assert (tmp_path / "designs.png").read_bytes()[:4] == b"\x89PNG"
    assert len(tried(tmp_path)) >= 6
    again = run("explore", *ARGS, "--trials", 3, "--output", tmp_path, "--json")
    assert json.loads(again.stdout.splitlines()[-1]) == results


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--fix", "row=32"], "unknown choice 'row'; did you mean 'rows'?"),
        (["--fix", "rows"], "--fix must be name=value"),
        (["--fix", "rows=32", "--fix", "rows=64"], "got 'rows' twice"),
        (["--bits", "8,5"], "--bits must be among 4, 8 and 16"),
        (["--slots", "many"], "--slots must be whole numbers"),
        (["--area-mm2", "0.5"], "area_mm2 must be at least"),
        (["--objective", "speed"], "objective must be one of"),
        (["--accelerator", "jetcas"], "did you mean 'jetcas65'?"),
    ],
)
def test_the_command_refuses_in_one_line(args, told):
    result = run("explore", *ARGS, *args)
    assert result.exit_code == 2
    assert told in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("text", ["", " , "])
def test_no_dram_by_name_is_not_every_dram(text):
    from kvmmu.cli.explore import _names

    with pytest.raises(ValueError, match="--drams must name at least one DRAM"):
        _names(text)
