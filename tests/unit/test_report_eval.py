"""The report of an evaluation: figures, intervals, tables, pictures and the page."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from fake_evaluation import FEW, answers, as_text, fake_lines, summary_of
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmmu.report.evaluation import (
    parse_results,
    summarise,
)
from kvmmu.report.evaluation.bootstrap import unseen
from kvmmu.report.evaluation.tables import markdown


def only(rows, **wanted):
    """Return the one row that has these fields."""
    (found,) = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return found


@pytest.fixture(scope="module")
def lines():
    return fake_lines(**FEW)


@pytest.fixture(scope="module")
def made(lines):
    return summary_of(lines)


# ------------------------------------------------------------------------------- the figures
def test_full_cache_keeps_all(made):
    for table in ("cells", "families", "headline"):
        full = [row for row in made[table] if row["label"] == "full"]
        assert full
        assert all(row["kept"] == 1 and row["kept_interval"] == [1, 1] for row in full)


def test_chance_keeps_nothing():
    rows = [[1.0, 4]] * 20
    made = summary_of([answers("full", [[4.0, 4]] * 20, chance=0.25),
                       answers("rce", rows, chance=0.25)])  # fmt: skip
    assert only(made["families"], name="rce")["kept"] == pytest.approx(0, abs=1e-9)


rows_of = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=30).filter(
    lambda pairs: sum(full for full, _ in pairs) > len(pairs)
)


@given(rows_of)
@settings(max_examples=40)
def test_intervals_hold_their_estimates(pairs):
    made = summary_of([answers("full", [[float(full), 4] for full, _ in pairs]),
                       answers("rce", [[float(own), 4] for _, own in pairs])])  # fmt: skip
    row = only(made["cells"], name="rce")
    for value in ("score", "kept"):
        low, high = row[f"{value}_interval"]
        assert low <= row[value] <= high
    assert 0 <= row["score_interval"][0] <= row["score_interval"][1] <= 1


def test_every_interval_of_an_evaluation_holds_its_estimate(made):
    for row in made["headline"] + made["families"] + made["cells"]:
        assert row["kept_interval"][0] <= row["kept"] <= row["kept_interval"][1]
    for row in made["perplexity"]:
        assert row["ratio_interval"][0] <= row["ratio"] <= row["ratio_interval"][1]


def test_interval_is_paired(rng):
    """The same hard contexts on both sides: what both lose widens no interval of what is kept."""
    hard = rng.integers(0, 5, size=40).astype(float) * 2
    made = summary_of([answers("full", [[v, 8] for v in hard]),
                       answers("rce", [[v / 2, 8] for v in hard])])  # fmt: skip
    row = only(made["cells"], name="rce")
    assert row["kept"] == pytest.approx(0.5)
    low, high = row["score_interval"]
    assert row["kept_interval"][1] - row["kept_interval"][0] < (high - low) / 2


def test_contexts_alike_are_no_certainty():
    one = [[1.0, 1]] * 20
    row = only(summary_of([answers("full", one), answers("rce", one)])["cells"], name="rce")
    assert row["kept"] == 1
    assert row["kept_interval"][0] == pytest.approx(0.025 ** (1 / 20))  # Clopper and Pearson
    assert unseen(20, 80) == pytest.approx(unseen(20, 20) / 4)


def test_interval_of_a_share_has_the_width_of_theory(rng):
    right = (rng.random(400) < 0.5).astype(float)
    made = summary_of([answers("full", [[1.0, 1]] * 400), answers("rce", [[v, 1] for v in right])])
    low, high = only(made["cells"], name="rce")["kept_interval"]
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 400), rel=0.1)


def test_lengths_divide_sums_and_tasks_weigh_the_same():
    lines = []
    for task, num_tokens, full, own in (("a", 64, 4, 4), ("a", 128, 2, 0), ("b", 64, 4, 0)):
        given = {"task": task, "num_tokens": num_tokens}
        lines += [answers("full", [[float(full), 4]] * 5, **given),
                  answers("rce", [[float(own), 4]] * 5, **given)]  # fmt: skip
    made = summary_of(lines)
    assert only(made["families"], name="rce", task="a")["kept"] == pytest.approx(4 / 6, abs=1e-6)
    assert only(made["headline"], name="rce")["kept"] == pytest.approx(4 / 12, abs=1e-6)


def test_interval_of_the_mean_stays_within_what_can_be_kept():
    """Two contexts leave much open, but no more than all answers right, or none."""
    tasks = ("a", "b")
    lines = [answers(p, [[1.0, 1]] * 2, task=t) for p in ("full", "rce") for t in tasks]
    lines += [answers("h2o", [[0.0, 1]] * 2, task=t) for t in tasks]
    made = summary_of(lines)
    assert only(made["headline"], name="rce")["kept_interval"][1] == 1
    assert only(made["headline"], name="rce")["by_mode"]["late"]["kept_interval"][1] == 1
    assert only(made["headline"], name="h2o")["kept_interval"][0] == 0
    assert only(made["leaders"], compression=8)["gap_interval"][1] == 1


def test_rows_tell_what_their_setting_costs():
    costs = {"num_slots": 8, "chunk_size": 4, "peak_tokens": 12, "kv_bytes": 4096,
             "ops_per_slot": 3}  # fmt: skip
    lines = []
    for n in (64, 1024):
        own = {name: value * n // 64 for name, value in costs.items()}
        lines += [answers("full", [[1.0, 1]] * 4, num_tokens=n),
                  answers("rce", [[1.0, 1]] * 4, num_tokens=n) | own]  # fmt: skip
    lines += [{"kind": "speed", "label": "rce", "granularity": "head", "compression": 8.0,
               "num_tokens": n, "batch": 8, "ratio_to_static": n / 1000}
              for n in (100, 2000)]  # fmt: skip
    made = summary_of(lines)
    short = only(made["cells"], name="rce", num_tokens=64)
    assert {name: short[name] for name in costs} == costs
    assert (short["ratio_to_static"], short["speed_num_tokens"]) == (0.1, 100)
    row = only(made["families"], name="rce")  # of the longest
    assert (row["num_tokens"], row["kv_bytes"], row["speed_num_tokens"]) == (1024, 65536, 2000)
    assert "| 2.00 | – | 8 x 2,000 |" in markdown(made)  # what was timed is not the row's text


def test_seeds_are_pooled():
    lines = [answers("full", [[1.0, 1]] * 10), answers("rce", [[1.0, 1]] * 10),
             answers("full", [[1.0, 1]] * 10, seed=1), answers("rce", [[0.0, 1]] * 10, seed=1),
             answers("rce", [[0.0, 1]] * 10, seed=2)]  # fmt: skip
    made = summary_of(lines)
    row = only(made["cells"], name="rce")
    assert (row["seeds"], row["num_contexts"], row["kept"]) == ([0, 1], 20, 0.5)
    assert made["method"]["num_unpaired_lines"] == 1  # seed 2 has no full cache


def test_perplexity_ratio_is_paired(made):
    row = only(made["perplexity"], text="frankenstein", name="rce", compression=8)
    full = only(made["perplexity"], text="frankenstein", name="full")
    assert row["ratio"] == pytest.approx(row["perplexity"] / full["perplexity"], abs=1e-4)
    (low, high), (bottom, top) = row["ratio_interval"], row["interval"]
    assert high - low < (top - bottom) / row["perplexity"]


# --------------------------------------------------------------------------------- the lines
def test_order_of_lines_does_not_matter(lines, made, rng):
    assert summary_of([lines[i] for i in rng.permutation(len(lines))]) == made


def test_first_of_a_key_counts_once(lines, made):
    false = copy.deepcopy([line for line in lines if line["kind"] == "answers"])
    for line in false:
        line["rows"] = [[0.0, 4]]
    assert summary_of(lines + false) == made


def test_cut_off_last_line_is_counted(lines, made):
    text = as_text([*lines, lines[1]])[:-40]
    cut = summarise(parse_results(text.splitlines()))
    assert cut["method"].pop("num_broken_lines") == 1
    assert cut == {**made, "method": {k: v for k, v in made["method"].items() if "broken" not in k}}


def test_missing_field_is_named():
    line = answers("rce", [])
    del line["rows"]
    with pytest.raises(
        ValueError, match=r"kind 'answers' in line 2 of .* must have a field 'rows'"
    ):
        summary_of([line])


def test_two_models_are_refused():
    with pytest.raises(ValueError, match="must come from one model, got a, b"):
        summary_of([{"kind": "about", "model": name} for name in "ab"])


def test_skipped_task_enters_no_table(lines):
    name = {"task": "niah_single", "mode": "seen"}
    skip = [
        {"kind": "skipped", **name, "num_tokens": n, "params": {"depth": d},
         "reason": "r", "full_score": 0.5, "floor": 0.8}
        for n in (256, 512, 1024) for d in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]  # fmt: skip
    poor = [{**line, "rows": [[2.0, 4]] * 12} if name.items() <= line.items() else line
            for line in lines]  # fmt: skip
    made = summary_of(poor + skip)
    assert not [r for r in made["families"] if (r["task"], r["mode"]) == tuple(name.values())]
    assert sum(row["reason"] == "r" for row in made["not_measurable"]) == 15


def test_floor_is_held_against_all_seeds():
    """A later seed lifts the pooled score over the floor, or pulls it below."""
    skip = {"kind": "skipped", "task": "a_task", "mode": "late", "num_tokens": 64,
            "params": {}, "reason": "r", "full_score": 0.7, "floor": 0.8}  # fmt: skip
    first = [answers("full", [[7.0, 10]] * 4), skip]
    for score, is_skipped in ((9.0, False), (8.0, True)):
        later = [answers(policy, [[score, 10]] * 4, seed=1) for policy in ("full", "rce")]
        made = summary_of([*first, *later])
        assert bool(made["families"]) != is_skipped
        told = [(row["full_score"], row["reason"]) for row in made["not_measurable"]]
        assert told == ([(0.75, "r")] if is_skipped else [])


def test_what_could_not_be_drawn_counts_only_without_scores():
    skip = {"kind": "skipped", "task": "a_task", "mode": "late", "num_tokens": 64,
            "params": {}, "reason": "cannot be drawn: no", "floor": None}  # fmt: skip
    lines = [answers(policy, [[9.0, 10]] * 4) for policy in ("full", "rce")]
    assert summary_of([*lines, skip])["not_measurable"] == []
    assert only(summary_of([skip])["not_measurable"], task="a_task")["reason"] == skip["reason"]


def sized(policy, num_contexts, *, size, score=1.0, key=""):
    """Make one line of answers of a case that was asked for `size` of them."""
    made = answers(policy, [[score, 1]] * num_contexts)
    made |= {"key": key or f"{made['key']}/{size}"}
    return made if size is None else made | {"size": size}


def test_largest_size_of_the_full_cache_wins_for_every_setting():
    lines = [sized("full", 24, size=24), sized("full", 200, size=200),
             sized("rce", 24, size=24, score=0.0), sized("rce", 200, size=200),
             sized("h2o", 24, size=24), sized("tova", 400, size=400)]  # fmt: skip
    made = summary_of(lines)
    assert {row["name"] for row in made["cells"]} == {"full", "rce"}
    assert {row["num_contexts"] for row in made["cells"]} == {200}
    assert only(made["cells"], name="rce")["kept"] == 1
    assert made["method"]["num_unpaired_lines"] == 4


@pytest.mark.parametrize(("size", "prefix"), [(None, "a_task/late/64/24|"), (24, "new")])
def test_older_lines_tell_their_size_in_their_key(size, prefix):
    lines = [sized("full", 24, size=None, key="a_task/late/64/24|full|0"),
             sized("full", 200, size=None, key="a_task/late/64/200|full|0"),
             sized("rce", 24, size=size, score=0.0, key=prefix + "rce|0"),
             sized("rce", 200, size=200, key="a_task/late/64/200|rce|0")]  # fmt: skip
    assert only(summary_of(lines)["cells"], name="rce")["kept"] == 1


def test_lines_that_tell_no_size_are_paired_as_they_stand():
    lines = [sized("full", 24, size=None), sized("rce", 24, size=24)]
    assert only(summary_of(lines)["cells"], name="rce")["num_contexts"] == 24


def test_full_cache_at_chance_is_not_measurable():
    made = summary_of(
        [answers("full", [[1.0, 4]] * 4, chance=0.25), answers("rce", [[4.0, 4]] * 4, chance=0.25)]
    )
    assert made["families"] == []
    assert "no better than chance" in made["not_measurable"][0]["reason"]


def test_granularity_is_told_where_a_label_has_several(lines):
    more = [{**line, "key": line["key"] + "/l", "granularity": "layer"}
            for line in lines if line.get("label") == "rce" and "rows" in line]  # fmt: skip
    names = {s["name"] for s in summary_of(lines + more)["settings"]}
    assert {"rce per head", "rce per layer", "snapkv"} <= names
