"""An evaluation's tables for a terminal of 80 columns."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from kvmmu.report.evaluation.names import at, family_name, percent
from kvmmu.report.evaluation.tables import (
    agreement_grid,
    headline_grid,
    published_grid,
    share,
)
from kvmmu.report.evaluation.words import verdicts

__all__ = ["terminal_tables"]

Row = dict[str, Any]
NUM_SHOWN = 6  # columns of the agreement's grid that fit 80; the page has them all


def terminal_tables(made: Row) -> list[Table]:
    """Lay out the headline, each task's best setting, published benchmarks and agreement.

    For 80 columns: long names are cut, and a table without rows is none.
    """
    tables = []
    grid = headline_grid(made)
    if grid.rows:
        table = _table(grid.title)
        table.add_column(grid.head[0], no_wrap=True, overflow="ellipsis", min_width=10)
        for title in grid.head[1:]:
            table.add_column(title, justify="right", no_wrap=True)
        for row in grid.rows:
            table.add_row(*row)
        tables.append(table)
    if made["focus"] is not None:
        tables.append(_best_table(made))
    if made["published"]:
        tables.append(_published_table(made))
    if "agreement" in made:
        tables.append(_agreement_table(made))
    return tables


def _agreement_table(made: Row) -> Table:
    """Show how often, and how nearly, fp32 scores chose the same; long names are folded."""
    grid = agreement_grid(made)
    table = _table(grid.title)
    for number in range(NUM_SHOWN):
        width = max(len(grid.head[number]), *(len(row[number]) for row in grid.rows))
        if number:
            table.add_column(grid.head[number], justify="right", no_wrap=True, min_width=width)
        else:
            table.add_column(grid.head[number], overflow="fold", min_width=8)
    for row in grid.rows:
        table.add_row(*row[:NUM_SHOWN])
    return table


def _published_table(made: Row) -> Table:
    grid = published_grid(made)
    table = _table(grid.title)
    for title in grid.head[:2]:
        table.add_column(title, no_wrap=True, overflow="ellipsis", min_width=8)
    for title in ("cache", "docs", "score, %", "ppl"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in grid.rows:
        table.add_row(*row[:-1])
    return table


def _best_table(made: Row) -> Table:
    table = _table(f"Best setting of each task at {at(made['focus'])}")
    table.add_column("task (mode)", no_wrap=True, overflow="ellipsis", min_width=12)
    table.add_column("full", justify="right", no_wrap=True)
    table.add_column("kept, %", justify="right", no_wrap=True, min_width=14)
    table.add_column("by", no_wrap=True, overflow="ellipsis", min_width=6)
    table.add_column("free?", no_wrap=True, min_width=6)
    said = {"free": "yes", "open": "open", "lost": "no"}
    for row in verdicts(made):
        by = row["name"]
        shares = percent(row["full_score"]), share(row)[0]
        table.add_row(family_name(row), *shares, by, said[row["verdict"]])
    return table


def _table(title: str) -> Table:
    return Table(
        box=SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1, 0, 0), pad_edge=False
    )
