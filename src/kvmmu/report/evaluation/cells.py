"""Accuracy kept: a setting's score above chance over the full cache's, on the same contexts."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvmmu.report.evaluation.bootstrap import Draws, draw_ratios, draw_weights, interval, unseen
from kvmmu.report.evaluation.costs import Costs
from kvmmu.report.evaluation.pairs import Pair, Rows, share_of
from kvmmu.report.evaluation.results import FULL, Cell, Setting

__all__ = ["Kept", "Place", "Taken", "cell_rows", "family_rows", "measure", "score_interval"]

Place = tuple[Setting, float]
"""A setting at a compression."""
Family = tuple[str, str]
"""A task and a mode."""


@dataclass(frozen=True)
class Kept:
    """Scores above chance, the setting's and the full cache's, as estimates and as draws.

    Sums of scores add up over cells, so the kept share of a family is a ratio of means.
    """

    gain: float
    full_gain: float
    draws: Draws
    full_draws: Draws
    chance: float
    num_contexts: int
    num_answers: int
    num_cells: int = 1
    is_full: bool = False

    def __add__(self, other: Kept) -> Kept:
        return Kept(
            self.gain + other.gain,
            self.full_gain + other.full_gain,
            self.draws + other.draws,
            self.full_draws + other.full_draws,
            self.chance + other.chance,
            self.num_contexts + other.num_contexts,
            self.num_answers + other.num_answers,
            self.num_cells + other.num_cells,
            self.is_full and other.is_full,
        )

    @property
    def share(self) -> float:
        """Return the kept accuracy: 1 as good as the full cache, 0 no better than chance."""
        return self.gain / self.full_gain

    @property
    def share_draws(self) -> Draws:
        """Return the kept accuracy in each draw; nan where the full cache is at chance."""
        safe = np.where(self.full_draws > 1e-9, self.full_draws, np.nan)
        return np.asarray(self.draws / safe)

    @property
    def interval(self) -> list[float]:
        """Return the interval of the kept accuracy."""
        if self.is_full:
            return [1.0, 1.0]
        reach = unseen(self.num_contexts, self.num_answers) * self.num_cells / self.full_gain
        low, high = self.ends
        return interval(self.share_draws, self.share, reach=reach, low=low, high=high)

    @property
    def ends(self) -> tuple[float, float]:
        """Return the kept accuracy of answering nothing and of answering all."""
        chance, full_gain = self.chance, self.full_gain
        return -chance / full_gain, (self.num_cells - chance) / full_gain


@dataclass(frozen=True)
class Taken:
    """One pair, measured: scores with their intervals and what was kept."""

    pair: Pair
    kept: Kept
    score: float
    score_interval: list[float]
    full_score: float
    chance: float

    @property
    def place(self) -> Place:
        """Return its setting and compression."""
        return self.pair.setting, self.pair.compression

    @property
    def family(self) -> Family:
        """Return its task and mode."""
        return self.pair.cell.task, self.pair.cell.mode


def measure(pairs: list[Pair]) -> list[Taken]:
    """Score every pair whose full cache is above chance."""
    weights: dict[tuple[Cell, int], Draws] = {}
    taken = []
    for pair in pairs:
        K = len(pair.rows)
        name = (pair.cell, K)
        if name not in weights:
            weights[name] = draw_weights(json.dumps(pair.cell.__dict__, sort_keys=True), K)
        made = _take(pair, weights[name])
        if made.kept.full_gain > 1e-9:
            taken.append(made)
    return taken


def _take(pair: Pair, weights: Draws) -> Taken:
    chance = float(pair.line.get("chance") or 0.0)
    score, full_score = share_of(pair.rows), share_of(pair.full_rows)
    draws, full_draws = draw_ratios(pair.rows, weights), draw_ratios(pair.full_rows, weights)
    num_answers = int(pair.rows[:, 1].sum())
    kept = Kept(
        score - chance,
        full_score - chance,
        draws - chance,
        full_draws - chance,
        chance,
        len(pair.rows),
        num_answers,
        is_full=pair.setting.label == FULL,
    )
    span = score_interval(pair.rows, draws)
    return Taken(pair, kept, score, span, full_score, chance)


def score_interval(rows: Rows, draws: Draws) -> list[float]:
    """Return the interval of a score. rows [K,2], draws [NUM_DRAWS] of their share"""
    reach = unseen(len(rows), int(rows[:, 1].sum()))
    return interval(draws, share_of(rows), reach=reach, low=0.0, high=1.0)


def cell_rows(taken: list[Taken], costs: Costs) -> list[dict[str, Any]]:
    """Lay out one row a cell, setting and compression, with its costs."""
    return [
        {
            **t.pair.named,
            "capability": t.pair.capability,
            **place_of(t),
            **costs.of(t.pair.line),
            "seeds": list(t.pair.seeds),
            "num_contexts": len(t.pair.rows),
            "num_answers": int(t.pair.rows[:, 1].sum()),
            "score": t.score,
            "score_interval": t.score_interval,
            "full_score": t.full_score,
            "chance": t.chance,
            "kept": t.kept.share,
            "kept_interval": t.kept.interval,
        }
        for t in taken
    ]


def place_of(taken: Taken) -> dict[str, Any]:
    """Name the setting and compression of a row."""
    setting, compression = taken.place
    return {
        "label": setting.label,
        "granularity": setting.granularity,
        "compression": compression,
    }


def family_rows(
    taken: list[Taken], costs: Costs
) -> tuple[list[dict[str, Any]], dict[Place, dict[Family, Kept]]]:
    """Lay out one row a family (task and mode), setting and compression; cells weigh the same.

    num_of_cells says how many of the family's cells the setting was measured on; the costs are
    those of the longest, of num_tokens.
    """
    groups: dict[tuple[Family, Place], list[Taken]] = defaultdict(list)
    cells: dict[Family, set[Cell]] = defaultdict(set)
    for t in taken:
        groups[t.family, t.place].append(t)
        cells[t.family].add(t.pair.cell)
    rows = []
    kept: dict[Place, dict[Family, Kept]] = defaultdict(dict)
    for (family, place), made in sorted(groups.items(), key=lambda item: item[0]):
        total = sum((t.kept for t in made[1:]), made[0].kept)
        kept[place][family] = total
        longest = max((t.pair.line for t in made), key=lambda line: int(line["num_tokens"]))
        rows.append(
            {
                "task": family[0],
                "mode": family[1],
                "capability": made[0].pair.capability,
                **place_of(made[0]),
                "num_tokens": longest["num_tokens"],
                **costs.of(longest),
                "num_cells": len(made),
                "num_of_cells": len(cells[family]),
                "num_contexts": total.num_contexts,
                "score": float(np.mean([t.score for t in made])),
                "full_score": float(np.mean([t.full_score for t in made])),
                "chance": float(np.mean([t.chance for t in made])),
                "kept": total.share,
                "kept_interval": total.interval,
            }
        )
    return rows, kept
