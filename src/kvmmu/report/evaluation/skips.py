"""What cannot be measured: cases that the full cache fails, by all that is known of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from kvmmu.report.evaluation.pairs import Pair, share_of
from kvmmu.report.evaluation.results import FULL, Cell

__all__ = ["skip_rows", "skips_in_force"]

Line = dict[str, Any]


def skips_in_force(pairs: Iterable[Pair], skipped: Iterable[Line]) -> dict[Cell, Line]:
    """Choose the skipped lines that hold, with the full cache's score as it is by now.

    A floor is held against the scores of all seeds, which may have come after the line; where
    there are scores no other reason holds.
    """
    scores = {p.cell: share_of(p.rows) for p in pairs if p.setting.label == FULL}
    found = {}
    for line in skipped:
        cell = Cell.of(line)
        if cell not in scores:
            found[cell] = line
            continue
        score, floor = round(scores[cell], 4), line.get("floor")
        if floor is not None and score < floor:
            found[cell] = line | {"full_score": score}
    return found


def skip_rows(pairs: Iterable[Pair], skips: dict[Cell, Line]) -> list[dict[str, Any]]:
    """List the cells that cannot be measured, with the reason, in order."""
    rows = {
        cell: {
            "task": cell.task,
            "mode": cell.mode,
            "num_tokens": line["num_tokens"],
            "params": json.loads(cell.params),
            "reason": line["reason"],
            "full_score": line.get("full_score"),
            "floor": line.get("floor"),
        }
        for cell, line in skips.items()
    }
    for pair in pairs:
        score, chance = share_of(pair.full_rows), float(pair.line.get("chance") or 0.0)
        if pair.setting.label == FULL and score - chance <= 1e-9:
            reason = "the full cache scores no better than chance"
            more = {"reason": reason, "full_score": score, "floor": chance}
            rows.setdefault(pair.cell, {**pair.named, **more})
    return [row for _, row in sorted(rows.items(), key=lambda item: item[0])]
