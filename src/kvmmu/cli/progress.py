"""Progress on stderr, on a terminal only; where there is none, nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["Bar", "bar"]


class Bar:
    """A bar that counts up to a total; `advance` takes the units done since the last call."""

    def __init__(self, progress: Progress, label: str, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(label, total=total)

    def advance(self, count: int) -> None:
        """Count more units."""
        self._progress.advance(self._task, count)

    def say(self, label: str) -> None:
        """Change the label."""
        self._progress.update(self._task, description=label)

    def restart(self, label: str, total: int) -> None:
        """Begin anew with another label and total."""
        self._progress.reset(self._task, total=total, description=label)

    def hide(self) -> None:
        """Take the bar away, so that text can follow."""
        self._progress.stop()


@contextmanager
def bar(label: str, total: int, *, has_count: bool = True) -> Iterator[Bar]:
    """Show a bar with the time left while the with statement lasts."""
    console = Console(stderr=True)
    columns = [TextColumn("{task.description}", table_column=None), BarColumn(bar_width=None)]
    columns.append(MofNCompleteColumn() if has_count else TaskProgressColumn())
    columns += [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
    shown = Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal, expand=True
    )
    with shown:
        yield Bar(shown, label, total)
