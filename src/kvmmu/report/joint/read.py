"""What a folder holds of a run, and what is missing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvmmu.report.accelerator.study import FILE as STUDY
from kvmmu.report.accelerator.study import read_study
from kvmmu.report.evaluation import read_results
from kvmmu.report.evaluation.summary import summarise
from kvmmu.report.explore import EXPLORATION

__all__ = ["EVALUATION", "DEMO", "STUDY", "Run", "read_run"]

EVALUATION, DEMO = "results.jsonl", "results.json"
Row = dict[str, Any]

_MAKERS = {
    EVALUATION: "accuracy on a suite of tasks (kvmmu eval --output)",
    DEMO: "the demonstration's answers, memory and speed (kvmmu demo --output)",
    STUDY: "energy, delay and DRAM traffic (kvmmu simulate --output)",
}
_APART = "a search of designs; kvmmu explore prints its tables and draws its picture, designs.png"


@dataclass(frozen=True)
class Run:
    """A folder's parts; None where a part is missing."""

    folder: Path
    evaluation: Row | None
    demo: Row | None
    study: Row | None

    @property
    def missing(self) -> list[str]:
        """Name what is missing, and which command would write it."""
        own = {EVALUATION: self.evaluation, DEMO: self.demo, STUDY: self.study}
        return [f"{name}: {_MAKERS[name]}" for name, part in own.items() if part is None]

    @property
    def apart(self) -> list[str]:
        """Name the files of a run that the page leaves out, and why."""
        is_there = (self.folder / EXPLORATION).is_file()
        return [f"{EXPLORATION}: {_APART}"] if is_there else []

    @property
    def parts(self) -> list[str]:
        """Name the files that were found."""
        own = {EVALUATION: self.evaluation, DEMO: self.demo, STUDY: self.study}
        return [name for name, part in own.items() if part is not None]


def read_run(folder: Path) -> Run:
    """Read what is there. Raises ValueError if that is nothing, or cannot be read."""
    if folder.is_file() or not any((folder / name).is_file() for name in _MAKERS):
        known = f"{EVALUATION} (kvmmu eval), {DEMO} (kvmmu demo) or {STUDY} (kvmmu simulate)"
        got = "none"
        if (folder / EXPLORATION).is_file():
            got = f"only {EXPLORATION}, which kvmmu explore shows itself and draws as designs.png,"
        raise ValueError(f"the folder must hold {known}, got {got} in {str(folder)!r}")

    def part(name: str, read: Any) -> Row | None:
        path = folder / name
        return read(path) if path.is_file() else None

    return Run(
        folder,
        part(EVALUATION, lambda path: summarise(read_results(path))),
        part(DEMO, _demo),
        part(STUDY, read_study),
    )


def _demo(path: Path) -> Row:
    """Read a demonstration. Raises ValueError where the file is none."""
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} must be a JSON file of kvmmu demo, got {error}") from error
    needed = ("model", "caches", "tasks", "words", "notes")
    missing = [name for name in needed if not isinstance(made, dict) or name not in made]
    if missing:
        raise ValueError(
            f"{path} must be the results of kvmmu demo, got one without {missing[0]!r}"
        )
    return dict(made)
