"""The agreement of integer scores with fp32: read, pooled, laid out, refused where it is wrong."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
from fake_evaluation import FEW, as_text, fake_lines, summary_of
from rich.console import Console

from kvmmu.report.evaluation import markdown, method_notes, terminal_tables, write_report
from kvmmu.report.evaluation.tables import grids

LABEL = "rce:decay=1.0,fixed_point=True,statistic=mass"
VICTIMS = {
    "weights": "float32", "evictions": 200, "same_slot": 190, "same_or_tied": 198,
    "num_ties": 12, "ranks": [191, 5, 0, 4], "lost_mass": 101.0, "least_mass": 100.0,
    "chunk_evictions": 50, "chunk_same": 49,
}  # fmt: skip


def line(seed: int = 0, compression: float = 8.0, **changes: Any) -> dict[str, Any]:
    """Make a line as kvmmu eval writes it."""
    return {
        "kind": "agreement", "key": f"{compression} {seed}", "policy": "rce", "label": LABEL,
        "granularity": "head", "compression": compression, "num_tokens": 2048,
        "num_slots": 256, "text": "frankenstein", "victims": VICTIMS | changes,
    }  # fmt: skip


def test_seeds_are_pooled_and_rates_reckoned_anew():
    other = {"same_slot": 170, "ranks": [180, 10, 10], "same_or_tied": 180, "rate": 0.5}
    (row,) = summary_of([line(), line(1, **other)])["agreement"]
    assert (row["evictions"], row["same_slot"], row["rate"]) == (400, 360, 0.9)
    assert (row["rate_or_tied"], row["tie_share"]) == (0.945, 0.06)
    assert (row["mean_rank"], row["p99_rank"]) == (0.1175, 2)
    assert (row["lost_more"], row["chunk_rate"]) == (0.01, 0.98)
    assert row["name"] == LABEL
    assert "ranks" not in row


def test_every_size_has_its_row_in_table_and_page(tmp_path):
    lines = [*fake_lines(**FEW), line(), line(compression=4.0)]
    (tmp_path / "results.jsonl").write_text(as_text(lines), encoding="utf-8")
    made = write_report(tmp_path)
    grid = grids(made)["agreement"]
    assert [row[1:7] for row in grid.rows] == [
        ["1/4", "Frankenstein 2,048", "200", "95.00", "99.00", "6.00"],
        ["1/8", "Frankenstein 2,048", "200", "95.00", "99.00", "6.00"],
    ]
    assert grid.rows[0][7:] == ["0.085", "3", "1.0000", "50", "98.00"]
    assert grid.title in (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "Integer scores against fp32" in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert any("Same victim: " in note for note in method_notes(made))


def test_terminal_shows_the_rate_in_80_columns():
    made = summary_of([line(), line(compression=4.0)])
    console = Console(width=80, record=True, file=io.StringIO())
    for table in terminal_tables(made):
        console.print(table)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for shown in ("same, %", "95.00", "or tied, %", "99.00"):
        assert shown in text


def test_evaluation_without_integers_says_nothing_of_them():
    made = summary_of(fake_lines(**FEW))
    assert "agreement" not in made
    assert "agreement" not in grids(made)
    assert "fp32" not in markdown(made)


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": "float16"},
        {"evictions": 201},
        {"same_slot": 199},
        {"same_or_tied": 201},
        {"num_ties": -1},
        {"ranks": [200.0]},
        {"ranks": None},
        {"lost_mass": "much"},
        {"least_mass": float("nan")},
        {"chunk_same": 51},
    ],
)
def test_counts_that_contradict_themselves_are_refused(changes):
    with pytest.raises(ValueError, match=r"field 'victims' in line 2 of .* must be the counts"):
        summary_of([line(**changes)])


def test_missing_counts_are_refused():
    wrong = copy.deepcopy(line())
    del wrong["victims"]["ranks"]
    with pytest.raises(ValueError, match="field 'victims' in line 2"):
        summary_of([wrong])
