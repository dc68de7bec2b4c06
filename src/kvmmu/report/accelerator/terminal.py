"""A study in a terminal of 80 columns: the answer first, then tables, then the configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kvmmu.report.accelerator.grids import grids
from kvmmu.report.accelerator.words import answer, configuration, notes, setting
from kvmmu.report.evaluation.tables import Grid
from kvmmu.report.tables import bullets

__all__ = ["grid_table", "terminal_parts"]

_CORNER_COLUMNS = tuple(f"tables, {corner}" for corner in ("low", "high"))
_PAGE_ONLY = {"units", "layouts"}
_DROPPED = {"delay": ("steps", "MACs of peak"), "variants": _CORNER_COLUMNS}
"""Tables and columns that only a page has room for."""


def terminal_parts(study: Mapping[str, Any]) -> list[RenderableType]:
    """Return what to print, in order."""
    made = grids(study)
    parts: list[RenderableType] = [Text(setting(study)), Text()]
    if "answer" in made:
        parts += grid_table(made.pop("answer"))
    parts += [pairs(answer(study)), Text()]
    for name, grid in made.items():
        if name not in _PAGE_ONLY:
            parts += grid_table(grid, dropped=_DROPPED.get(name, ()))
    parts += [Text("Resolved configuration", style="italic")]
    parts += [Padding(pairs(configuration(study), style="dim"), (0, 0, 1, 0))]
    parts.append(bullets(notes(study), style="dim"))
    return parts


def pairs(lines: Sequence[tuple[str, str]], *, style: str = "") -> Table:
    """Lay out labels with texts that wrap behind them."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(style=style, overflow="fold")
    for label, text in lines:
        table.add_row(label, text)
    return table


def grid_table(grid: Grid, *, dropped: Sequence[str] = ()) -> list[RenderableType]:
    """Lay out a grid under its title; heads wrap to their cells, "x: energy", "x: delay" join."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    columns = [column for column in _joined(grid) if column[0] not in dropped]
    table.add_column(columns[0][0], overflow="fold", min_width=12)
    for head, *texts in columns[1:]:
        width = max(map(len, [*re.split(r"\s+|(?<=_)", head), *texts]))
        table.add_column(
            "\n".join(_wrapped(line, width) for line in head.splitlines()),
            justify="right",
            no_wrap=True,
        )
    for row in zip(*(texts for _, *texts in columns), strict=True):
        if row[0] == "all":
            table.add_section()
        table.add_row(*row)
    return [Text(grid.title, style="italic"), table, Text()]


def _wrapped(line: str, width: int) -> str:
    """Break a line between words and behind "_", where a name is longer than its column."""
    lines = [""]
    for part in re.findall(r"\s*[^\s_]*_|\s*[^\s_]+", line):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append(part.lstrip())
        else:
            lines[-1] += part
    return "\n".join(lines)


def _joined(grid: Grid) -> list[list[str]]:
    """Return the columns, head first; neighbours that differ behind a colon alone share one."""
    columns = [[head, *texts] for head, texts in zip(grid.head, zip(*grid.rows))]
    joined: list[list[str]] = []
    while columns:
        head, *texts = columns.pop(0)
        stem, colon, what = head.partition(": ")
        if colon and columns and columns[0][0].startswith(f"{stem}: "):
            other, *more = columns.pop(0)
            wide = max(map(len, [what, *texts])), max(map(len, [other[len(stem) + 2 :], *more]))
            pair = [f"{a:>{wide[0]}} {b:>{wide[1]}}" for a, b in zip(texts, more)]
            heads = f"{what:>{wide[0]}} {other[len(stem) + 2 :]:>{wide[1]}}"
            joined.append([f"{stem}\n{heads}", *pair])
        else:
            joined.append([head, *texts])
    return joined
