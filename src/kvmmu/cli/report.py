"""kvmmu report: one page of whatever a folder holds of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvmmu.cli.lists import AsJson

if TYPE_CHECKING:
    from kvmmu.report.joint.read import Run

__all__ = ["print_summary", "report"]

Folder = Annotated[
    Path, typer.Argument(help="The --output of kvmmu eval, demo or simulate, or of several.")
]


def report(folder: Folder, *, as_json: AsJson = False) -> None:
    """Write one page of a run's accuracy, memory, speed and accelerator figures: index.html.

    Joins results.jsonl (kvmmu eval, finished or not; its summary.json, table.md and plots are
    written too), results.json (kvmmu demo) and simulation.json (kvmmu simulate), in any
    combination. What is missing is said, not made up. exploration.json (kvmmu explore) is not
    joined: explore draws its own picture.
    """
    from kvmmu.report.joint import write_joint

    run = write_joint(folder)
    if not as_json:
        _print(run)
    for text in run.apart:
        typer.echo(f"in {folder}, not joined: {text}", err=True)
    for text in run.missing:
        typer.echo(f"not in {folder}: {text}", err=True)
    typer.echo(f"wrote {folder / 'index.html'}", err=True)
    if as_json:
        joined: dict[str, Any] = {"parts": run.parts, "missing": run.missing}
        joined |= {"apart": run.apart}
        joined |= {"demo": run.demo, "simulation": run.study}
        typer.echo(json.dumps({**(run.evaluation or {}), **joined}))


def _print(run: Run) -> None:
    """Print the parts of a run, one below the other."""
    from kvmmu.cli.demo import print_results
    from kvmmu.cli.simulate import print_study

    if run.demo is not None:
        print_results(run.demo)
    if run.evaluation is not None:
        print_summary(run.evaluation)
    if run.study is not None:
        print_study(run.study)


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
