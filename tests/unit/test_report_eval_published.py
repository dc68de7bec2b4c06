"""The report of published benchmarks: listed by their scores, whatever the full cache's is."""

from __future__ import annotations

import math

from fake_evaluation import answers, as_text, published, summary_of

from kvmmu.cli.eval import write_samples
from kvmmu.report.evaluation import headline_words, markdown, write_report


def row_of(made, **wanted):
    """Return the one published row that has these fields."""
    rows = made["published"]
    (found,) = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return found


def test_scores_are_listed_though_the_full_cache_has_none():
    lines = [published("full", [[0.0, 1]] * 20), published("rce", [[1.0, 1]] + [[0.0, 1]] * 19)]
    made = summary_of(lines)
    full, own = row_of(made, name="full"), row_of(made, name="rce")
    assert (full["num_documents"], full["score"]) == (20, 0)
    assert (full["score_interval"][0], full["score_interval"][1] < 0.25) == (0, True)
    assert own["score"] == 0.05
    assert own["score_interval"][0] <= 0.05 <= own["score_interval"][1]
    assert made["families"] == []
    assert "| gsm8k | rce | 1/8 | 20 | 5 (0–" in markdown(made)
    assert "the published benchmarks are listed by their scores" in headline_words(made)[0]


def test_what_another_tool_judges_is_listed_with_its_file(tmp_path):
    samples = [["HumanEval/0", "return 1"], ["HumanEval/1", "return 2"]]
    lines = [published(policy, [], task="humaneval", samples=samples) | {"label": label}
             for policy, label in (("full", "full"), ("rce", "rce:decay=0.9"))]  # fmt: skip
    made = summary_of(lines)
    write_samples(tmp_path, lines)
    for row in made["published"]:
        assert (row["num_documents"], row["score"]) == (2, None)
        assert (tmp_path / row["samples"]).is_file()
    assert made["method"]["num_unpaired_lines"] == 0
    assert "must judge lie in samples/: humaneval." in " ".join(headline_words(made))
    assert "to be judged" in markdown(made)


def test_answers_of_another_size_do_not_overwrite_each_other(tmp_path):
    samples = [[f"HumanEval/{i}", "return 1"] for i in range(3)]
    lines = [published("rce", [], task="humaneval", samples=samples[:num]) for num in (3, 1, 2)]
    write_samples(tmp_path, lines)
    sizes = sorted(len(f.read_text().splitlines()) for f in tmp_path.glob("samples/*.jsonl"))
    assert sizes == [1, 2, 3]


def test_perplexity_is_that_of_the_documents():
    nats = [-1.0, -3.0]
    lines = [published(policy, [[1.0, 1], [0.0, 1]], task="lambada", log_likelihoods=nats)
             for policy in ("full", "rce")]  # fmt: skip
    assert abs(row_of(summary_of(lines), name="rce")["perplexity"] - math.exp(2)) < 1e-5
    lines[1]["log_likelihoods"] = [-1e6]
    assert row_of(summary_of(lines), name="rce")["perplexity"] is None


def test_data_sets_are_paired_whatever_their_longest_text():
    lines = [published("full", [[1.0, 1]] * 4, data_set="qasper", num_tokens=900),
             published("rce", [[0.5, 1]] * 4, data_set="qasper", num_tokens=950),
             published("full", [[1.0, 1]] * 4, data_set="narrativeqa", num_tokens=950)]  # fmt: skip
    made = summary_of(lines)
    (cell,) = [row for row in made["cells"] if row["name"] == "rce"]
    assert (cell["kept"], cell["params"], cell["num_tokens"]) == (0.5, {"data_set": "qasper"}, 950)


def test_documents_count_once_for_all_seeds():
    lines = [published(policy, [[1.0, 1]] * 4) | {"seed": seed, "key": f"{policy}|{seed}"}
             for policy in ("full", "rce") for seed in (0, 1)]  # fmt: skip
    made = summary_of(lines)
    assert [row["num_documents"] for row in made["published"]] == [4, 4]
    assert {row["num_contexts"] for row in made["cells"]} == {4}
    assert made["method"]["num_unpaired_lines"] == 0


def test_page_has_their_table(tmp_path):
    lines = [{"kind": "about"}, published("full", [[0.0, 1]] * 4), published("rce", [[0.0, 1]] * 4)]
    lines += [answers("full", [[1.0, 1]] * 4), answers("rce", [[1.0, 1]] * 4)]
    (tmp_path / "results.jsonl").write_text(as_text(lines), encoding="utf-8")
    made = write_report(tmp_path)
    assert [row["task"] for row in made["families"]] == ["a_task", "a_task"]
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<h2>Published benchmarks</h2>" in page
    assert "documents of a published benchmark" in page
