"""What an evaluation wrote, one JSON object a line: read, checked, named."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvmmu.report.evaluation.fields import NEEDED, check

__all__ = ["FULL", "PUBLISHED", "Cell", "Results", "Setting", "parse_results", "read_results"]

FULL = "full"
"""The policy's name of a line that was measured with the full cache."""
PUBLISHED = "published"
"""The mode of a published benchmark's documents."""

Line = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """The lines of an evaluation by kind, in an order that does not depend on the file's.

    num_broken counts the last line that a run which was cut off leaves.
    """

    about: Line = field(default_factory=dict)
    lines: dict[str, list[Line]] = field(default_factory=dict)
    num_broken: int = 0

    def of(self, kind: str) -> list[Line]:
        """List the lines of one kind."""
        return self.lines.get(kind, [])


@dataclass(frozen=True, order=True)
class Cell:
    """One question set: a task (or a text), its mode, its length, its parameters as JSON.

    A published benchmark is a data set: its documents have no one length, which is 0 here.
    """

    task: str
    mode: str
    num_tokens: int
    params: str = "{}"

    @staticmethod
    def of(line: Line) -> Cell:
        """Name the cell a line was measured on."""
        task = line["text"] if line["kind"] == "pages" else line["task"]
        mode, num_tokens = line.get("mode") or "", int(line["num_tokens"])
        params = line.get("params") or {}
        if mode == PUBLISHED:
            num_tokens, params = 0, {k: v for k, v in params.items() if k == "data_set" and v}
        return Cell(task, mode, num_tokens, json.dumps(params, sort_keys=True))


@dataclass(frozen=True, order=True)
class Setting:
    """One cache as it is compared: a label (the policy with its parameters) and a granularity."""

    label: str
    granularity: str = ""

    @staticmethod
    def of(line: Line) -> Setting:
        """Name the setting a line was measured with."""
        if (line.get("policy") or line["label"]) == FULL:
            return Setting(FULL)
        return Setting(str(line["label"]), str(line.get("granularity") or ""))


def read_results(path: Path) -> Results:
    """Read results.jsonl. Raises ValueError if the file is missing, or as parse_results does."""
    if not path.is_file():
        raise ValueError(f"an evaluation's folder must hold {path.name}, got {str(path.parent)!r}")
    with path.open(encoding="utf-8", errors="replace") as lines:
        return parse_results(lines, path=str(path))


def parse_results(lines: Iterable[str], *, path: str = "results.jsonl") -> Results:
    """Read lines: the first of a key wins, unknown kinds are passed over.

    A last line without an end is what a kill left: it counts as broken unless it can be read.
    Raises ValueError, naming the path, if another line is no JSON object, a field is missing or
    wrong, no line tells what the results are of, or the models differ.
    """
    found: dict[str, dict[str, Line]] = {kind: {} for kind in NEEDED}
    broken = None
    for number, text in enumerate(lines, start=1):
        if broken is not None:
            raise broken
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict):
            broken = ValueError(
                f"{path} must hold a JSON object in every line, got {text[:40]!r} in line {number}"
            )
            if text.endswith("\n"):
                raise broken
            continue
        check(line, number, path)
        if line["kind"] in NEEDED:
            key = line.get("key") or json.dumps(line, sort_keys=True)
            found[line["kind"]].setdefault(key, line)
    if not found["about"]:
        raise ValueError(f"{path} must have a line of kind 'about', got none; is it of kvmmu eval?")
    ordered = {kind: [made[key] for key in sorted(made)] for kind, made in found.items()}
    return Results(_merge_about(ordered.pop("about")), ordered, int(broken is not None))


def _merge_about(lines: list[Line]) -> Line:
    """Merge what several runs say of themselves; seeds and texts are united."""
    models = sorted({str(line["model"]) for line in lines if "model" in line})
    if len(models) > 1:
        raise ValueError(f"results must come from one model, got {', '.join(models)}")
    merged: Line = {}
    for line in lines:
        for name, value in line.items():
            if name in ("seeds", "texts") and value is not None:
                merged[name] = sorted({*merged.get(name, []), *value})
            else:
                merged.setdefault(name, value)
    merged.pop("kind", None)
    return merged
