"""Cells of tables: a text, and the number by which a page sorts it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvmmu.report.evaluation.tables import Grid

__all__ = ["NONE", "Cell", "make_grid", "number"]

Cell = tuple[str, float | None]
NONE: Cell = ("–", None)


def make_grid(title: str, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Grid:
    """Make a table of cells."""
    texts = [[text for text, _ in row] for row in rows]
    return Grid(title, list(head), texts, [[value for _, value in row] for row in rows])


def number(value: float | None, write: Callable[[float], str]) -> Cell:
    """Write a number; None is a dash."""
    return NONE if value is None else (write(value), float(value))
