"""Lines of answers or pages pooled over seeds, and paired with the full cache's."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmmu.report.evaluation.results import FULL, PUBLISHED, Cell, Setting

__all__ = ["Pair", "Rows", "choose_sizes", "pair", "share_of"]

Line = dict[str, Any]
Rows = NDArray[np.float64]


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

    @property
    def named(self) -> dict[str, Any]:
        """Name the cell in a row; num_tokens are those of the longest text."""
        return {
            "task": self.cell.task,
            "mode": self.cell.mode,
            "num_tokens": self.line["num_tokens"],
            "params": json.loads(self.cell.params),
        }

    @property
    def capability(self) -> str:
        """Return what the task asks for."""
        return self.line.get("capability") or ""


def share_of(rows: Rows) -> float:
    """Return the score: points over answers. rows [K,2]"""
    return float(rows[:, 0].sum() / max(rows[:, 1].sum(), 1e-12))


def choose_sizes(lines: Sequence[Line]) -> list[Line]:
    """Keep the lines of one size a cell: the largest that the full cache was measured at.

    A line whose size is not known stays, behind those that tell it.
    """
    largest: dict[Cell, int] = {}
    for line in lines:
        if Setting.of(line).label == FULL:
            cell = Cell.of(line)
            largest[cell] = max(largest.get(cell, 0), _size(line) or 0)
    kept = []
    for line in lines:
        size = largest.get(Cell.of(line), 0)
        if not size or _size(line) in (None, size):
            kept.append(line)
    return sorted(kept, key=lambda line: _size(line) is None)


def _size(line: Line) -> int | None:
    """Return how many answers were asked of the case; older lines tell it in their key alone."""
    if line.get("size") is not None:
        return int(line["size"])
    told = re.match(r"[^|]*/(\d+)\|", line["key"])
    return int(told[1]) if told else None


def pair(lines: Sequence[Line]) -> tuple[list[Pair], int]:
    """Pool the seeds of each setting and cell, and pair them with the full cache's.

    Returns the pairs, the full cache's own included, and how many lines had no partner, repeated
    a seed or were of a smaller size. Rows of one seed are paired only if there are as many on
    both sides. A published benchmark has the same documents at every seed: one counts, and none
    is left out for want of a partner, as all are listed by their scores.
    """
    chosen = choose_sizes(lines)
    num_left_out = len(lines) - len(chosen)
    groups: dict[tuple[Cell, Setting, float], dict[int, Line]] = {}
    for line in chosen:
        name = (Cell.of(line), Setting.of(line), float(line["compression"]))
        by_seed, seed = groups.setdefault(name, {}), _seed(line)
        num_left_out += seed in by_seed and not _is_published(line)
        by_seed.setdefault(seed, line)
    full = {cell: made for (cell, setting, _), made in groups.items() if setting.label == FULL}
    pairs = []
    for (cell, setting, compression), made in sorted(groups.items(), key=lambda item: item[0]):
        partner = full.get(cell, {})
        seeds = _shared_seeds(made, partner)
        num_left_out += (len(made) - len(seeds)) * (cell.mode != PUBLISHED)
        if seeds:
            first = made[seeds[0]]
            rows, full_rows = _pooled(made, seeds), _pooled(partner, seeds)
            pairs.append(Pair(cell, setting, compression, first, seeds, rows, full_rows))
    return pairs, num_left_out


def _is_published(line: Line) -> bool:
    return line.get("mode") == PUBLISHED


def _seed(line: Line) -> int:
    return 0 if _is_published(line) else int(line.get("seed") or 0)


def _shared_seeds(made: dict[int, Line], partner: dict[int, Line]) -> tuple[int, ...]:
    """List the seeds that both sides were measured on, with as many contexts."""
    return tuple(
        seed
        for seed, line in sorted(made.items())
        if line["rows"] and seed in partner and len(line["rows"]) == len(partner[seed]["rows"])
    )


def _pooled(by_seed: dict[int, Line], seeds: tuple[int, ...]) -> Rows:
    rows = [np.asarray(by_seed[seed]["rows"], dtype=np.float64).reshape(-1, 2) for seed in seeds]
    return np.concatenate(rows)  # [K,2]
