"""kvmmu report: draw the tables, pictures and page of an evaluation anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from kvmmu.cli.lists import AsJson

__all__ = ["print_summary", "report"]

Folder = Annotated[Path, typer.Argument(help="The --output of kvmmu eval, finished or not.")]


def report(folder: Folder, *, as_json: AsJson = False) -> None:
    """Write summary.json, table.md, plots and index.html from a folder's results.jsonl.

    Works while the evaluation is still running, or after it was interrupted.
    """
    from kvmmu.report.evaluation import write_report

    summary = write_report(folder)
    if not as_json:
        print_summary(summary)
    typer.echo(f"wrote {folder / 'index.html'}", err=True)
    if as_json:
        typer.echo(json.dumps(summary))


def print_summary(summary: dict[str, Any]) -> None:
    """Print an evaluation's tables and what they say."""
    from rich.console import Console

    from kvmmu.report.evaluation import headline_words, terminal_tables
    from kvmmu.report.tables import bullets

    console = Console(highlight=False, markup=False)
    for part in terminal_tables(summary):
        console.print(part)
        console.print()
    console.print(bullets(headline_words(summary)))
