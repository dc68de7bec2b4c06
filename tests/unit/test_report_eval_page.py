"""The report of an evaluation: its words, tables, pictures and page."""

from __future__ import annotations

import copy
import io
import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from fake_evaluation import FEW, answers, as_text, fake_lines, published, summary_of
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kvmmu.report.evaluation import (
    headline_words,
    markdown,
    terminal_tables,
    write_report,
)
from kvmmu.report.evaluation.names import percent, span
from kvmmu.report.evaluation.style import looks, part


@pytest.fixture(scope="module")
def lines():
    return fake_lines(**FEW)


@pytest.fixture(scope="module")
def made(lines):
    return summary_of(lines)


# --------------------------------------------------------------------- words, tables, pictures
def test_words_say_where_it_is_free_and_where_not():
    full = {task: answers("full", [[4.0, 4]] * 60, task=task) for task in ("easy", "hard")}
    lines = [*full.values(), answers("rce", [[4.0, 4]] * 60, task="easy"),
             answers("rce", [[1.0, 4]] * 60, task="hard")]  # fmt: skip
    text = " ".join(headline_words(summary_of(lines)))
    assert "Nearly free at 8× (at least 95 % kept): easy (late) with rce." in text
    assert "Not free with any setting, the hardest first: hard (late), at best 25 % (rce)." in text


@pytest.mark.parametrize("missing", [{"mode": "seen"}, {"params": {"depth": 0.5}}])
def test_words_mark_what_was_not_measured_on_every_cell(lines, missing):
    few = [
        line
        for line in lines
        if line.get("label") != "rce" or any(line.get(k) != v for k, v in missing.items())
    ]
    made = summary_of(few)
    text = " ".join(headline_words(made))
    assert "Not yet measured on every task, so not to be compared: rce (marked *)." in text
    assert r"\*" in markdown(made)
    assert {"rce"}.isdisjoint(
        {row[which]["name"] for row in made["leaders"] for which in ("first", "second")}
    )


@pytest.mark.parametrize("width", [60, 80])
def test_terminal_tables_fit(made, width):
    console = Console(width=width, record=True, file=io.StringIO())
    for table in terminal_tables(made):
        console.print(table)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "rce" in text


def test_nothing_measured_prints_words_and_no_empty_table():
    skip = {"kind": "skipped", "mode": "late", "num_tokens": 64, "params": {},
            "reason": "the full cache scores below the floor"}  # fmt: skip
    made = summary_of([skip | {"task": f"task_{n}"} for n in range(7)])
    assert terminal_tables(made) == []
    assert headline_words(made) == [
        "No task can be measured with a smaller cache.",
        "Not measurable: task 0 (late), task 1 (late), task 2 (late), task 3 (late) and 3 more "
        "(the full cache scores below the floor).",
    ]


def test_terminal_lists_published_benchmarks():
    made = summary_of([published("full", [[0.0, 1]] * 4), published("rce", [[0.0, 1]] * 4)])
    console = Console(width=60, record=True, file=io.StringIO())
    for table in terminal_tables(made):
        console.print(table)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 60
    assert "Published benchmarks" in text
    assert "gsm8k" in text


def test_markdown_rows_have_equal_cells(made):
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", markdown(made), flags=re.MULTILINE)
    assert len(blocks) >= 6
    for block in blocks:
        assert len({row.count(" | ") for row in block.splitlines()}) == 1


def test_policy_looks_the_same_whatever_stands_beside_it(made):
    every = looks(made["settings"])
    one = looks([s for s in made["settings"] if s["policy"] == "snapkv"])
    assert one["snapkv"] == every["snapkv"]
    assert every["rce"].colour == every["rce:decay=0.9"].colour
    assert every["rce"].dash != every["rce:decay=0.9"].dash


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_labels_are_parted_and_stay_in_order(places):
    out = part(sorted(places), 0.08, 0.0, 1.0)
    assert all(b - a > 0.08 - 1e-9 for a, b in pairwise(out))
    assert min(out) > -1e-9
    assert max(out) < 1 + 1e-9


def test_less_than_all_never_reads_as_all():
    assert [percent(v) for v in (1.0, 0.997, 0.994)] == ["100", "99.7", "99"]
    assert span([0.9491, 1.0]) == "94–100"


# ------------------------------------------------------------------------------------ the page
class Page(HTMLParser):
    """Collect what a page would load, and check that tags are closed."""

    def __init__(self):
        super().__init__()
        self.sources, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_report_is_whole_and_written_twice_is_the_same(tmp_path, lines):
    odd = copy.deepcopy(lines)
    odd[0]["model"] = "<b>model</b>"
    (tmp_path / "results.jsonl").write_text(as_text(odd), encoding="utf-8")
    made = write_report(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == made
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert {p.name for p in files} >= {"index.html", "table.md", "headline.png", "overview.png",
        "families.png", "modes.png", "perplexity.png", "survivors.png", "price.png",
        "needle_niah_single_late.png"}  # fmt: skip
    write_report(tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files
    page = Page()
    page.feed(text := (tmp_path / "index.html").read_text(encoding="utf-8"))
    assert not page.open
    assert len(page.sources) >= 9
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "<b>model" not in text
    assert "&lt;b&gt;model" in text


@pytest.mark.parametrize("kinds", [(), ("pages",), ("answers",), ("speed", "skipped")])
def test_part_of_an_evaluation_has_a_report_too(tmp_path, lines, kinds):
    kinds = ("about", *kinds)
    some = [line for line in lines if line["kind"] in kinds and line.get("mode") != "seen"]
    (tmp_path / "results.jsonl").write_text(as_text(some), encoding="utf-8")
    write_report(tmp_path)
    assert "How to read this" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_folder_without_results_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"folder must hold results\.jsonl"):
        write_report(tmp_path)
