"""What an evaluation wrote, one JSON object a line: read, checked, pooled, paired."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FULL", "Cell", "Pair", "Results", "Setting", "pair", "parse_results", "read_results"]

FULL = "full"
"""The policy's name of a line that was measured with the full cache."""

Line = dict[str, Any]
Rows = NDArray[np.float64]

NEEDED: dict[str, tuple[str, ...]] = {
    "about": (),
    "answers": ("key", "task", "mode", "num_tokens", "policy", "label", "compression", "rows"),
    "pages": ("key", "text", "num_tokens", "policy", "label", "compression", "rows"),
    "speed": ("label", "compression", "num_tokens", "ratio_to_static"),
    "survivors": ("label", "compression", "num_tokens", "edges", "kept"),
    "skipped": ("task", "mode", "num_tokens", "reason"),
}


@dataclass(frozen=True)
class Results:
    """The lines of an evaluation by kind, in an order that does not depend on the file's.

    num_broken counts the lines that are no JSON object: a run that was cut off leaves one.
    """

    about: Line = field(default_factory=dict)
    lines: dict[str, list[Line]] = field(default_factory=dict)
    num_broken: int = 0

    def of(self, kind: str) -> list[Line]:
        """List the lines of one kind."""
        return self.lines.get(kind, [])


@dataclass(frozen=True, order=True)
class Cell:
    """One question set: a task (or a text), its mode, its length, its parameters as JSON."""

    task: str
    mode: str
    num_tokens: int
    params: str = "{}"

    @staticmethod
    def of(line: Line) -> Cell:
        """Name the cell a line was measured on."""
        params = json.dumps(line.get("params") or {}, sort_keys=True)
        task = line["text"] if line["kind"] == "pages" else line["task"]
        return Cell(task, line.get("mode", ""), int(line["num_tokens"]), params)


@dataclass(frozen=True, order=True)
class Setting:
    """One cache as it is compared: a label (the policy with its parameters) and a granularity."""

    label: str
    granularity: str = ""

    @staticmethod
    def of(line: Line) -> Setting:
        """Name the setting a line was measured with."""
        if line.get("policy", line["label"]) == FULL:
            return Setting(FULL)
        return Setting(str(line["label"]), str(line.get("granularity") or ""))


@dataclass(frozen=True)
class Pair:
    """One setting on one cell beside the full cache: rows [K,2] of the same K contexts.

    A row is (sum of scores, answers) or (sum of negative log likelihoods, tokens).
    """

    cell: Cell
    setting: Setting
    compression: float
    line: Line
    seeds: tuple[int, ...]
    rows: Rows
    full_rows: Rows


def read_results(path: Path) -> Results:
    """Read results.jsonl.

    Raises ValueError if the file is missing, a line lacks a field or the models differ.
    """
    if not path.is_file():
        raise ValueError(f"an evaluation's folder must hold {path.name}, got {str(path.parent)!r}")
    with path.open(encoding="utf-8", errors="replace") as lines:
        return parse_results(lines)


def parse_results(lines: Iterable[str]) -> Results:
    """Read lines: the first of a key wins, unknown kinds are passed over, broken lines counted.

    Raises ValueError if a line lacks a field or the models differ.
    """
    found: dict[str, dict[str, Line]] = {kind: {} for kind in NEEDED}
    num_broken = 0
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            line = None
        if not isinstance(line, dict):
            num_broken += 1
        elif line.get("kind") in NEEDED:
            _check(line, number)
            key = line.get("key") or json.dumps(line, sort_keys=True)
            found[line["kind"]].setdefault(key, line)
    ordered = {kind: [made[key] for key in sorted(made)] for kind, made in found.items()}
    return Results(_merge_about(ordered.pop("about")), ordered, num_broken)


def _check(line: Line, number: int) -> None:
    for name in NEEDED[line["kind"]]:
        if name not in line:
            raise ValueError(
                f"line {number} of kind {line['kind']!r} must have a field {name!r}, "
                f"got {', '.join(sorted(line))}"
            )


def _merge_about(lines: list[Line]) -> Line:
    """Merge what several runs say of themselves; seeds and texts are united."""
    models = sorted({str(line["model"]) for line in lines if "model" in line})
    if len(models) > 1:
        raise ValueError(f"results must come from one model, got {', '.join(models)}")
    merged: Line = {}
    for line in lines:
        for name, value in line.items():
            if isinstance(value, list):
                merged[name] = sorted({*merged.get(name, []), *value})
            else:
                merged.setdefault(name, value)
    merged.pop("kind", None)
    return merged


def pair(lines: list[Line]) -> tuple[list[Pair], int]:
    """Pool the seeds of each setting and cell, and pair them with the full cache's.

    Returns the pairs, the full cache's own included, and how many lines had no partner or
    repeated a seed. Rows of one seed are paired only if there are as many on both sides.
    """
    groups: dict[tuple[Cell, Setting, float], dict[int, Line]] = {}
    num_left_out = 0
    for line in lines:
        name = (Cell.of(line), Setting.of(line), float(line["compression"]))
        by_seed = groups.setdefault(name, {})
        num_left_out += int(line.get("seed", 0)) in by_seed
        by_seed.setdefault(int(line.get("seed", 0)), line)
    full = {cell: made for (cell, setting, _), made in groups.items() if setting.label == FULL}
    pairs = []
    for (cell, setting, compression), made in sorted(groups.items(), key=lambda item: item[0]):
        partner = full.get(cell, {})
        seeds = tuple(
            seed
            for seed, line in sorted(made.items())
            if line["rows"] and seed in partner and len(line["rows"]) == len(partner[seed]["rows"])
        )
        num_left_out += len(made) - len(seeds)
        if seeds:
            first = made[seeds[0]]
            rows, full_rows = _pooled(made, seeds), _pooled(partner, seeds)
            pairs.append(Pair(cell, setting, compression, first, seeds, rows, full_rows))
    return pairs, num_left_out


def _pooled(by_seed: dict[int, Line], seeds: tuple[int, ...]) -> Rows:
    rows = [np.asarray(by_seed[seed]["rows"], dtype=np.float64).reshape(-1, 2) for seed in seeds]
    return np.concatenate(rows)  # [K,2]
