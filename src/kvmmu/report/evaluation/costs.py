"""What a setting costs, what it does to perplexity, and which ages it holds."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from typing import Any

from kvmmu.report.evaluation.bootstrap import Draws, draw_ratios, draw_weights, interval
from kvmmu.report.evaluation.pairs import Pair
from kvmmu.report.evaluation.results import FULL, Results, Setting

__all__ = ["Costs", "cost_rows", "page_rows", "survivor_rows"]

COSTS = ("policy", "num_tokens", "num_slots", "chunk_size", "peak_tokens", "kv_bytes",
         "ops_per_slot")  # fmt: skip
LONGEST = 2**50  # nearest to it is the longest that was timed
SPEEDS = ("batch", "tokens_per_s", "ratio_to_static", "ratio_quartiles")


def page_rows(pairs: list[Pair]) -> list[dict[str, Any]]:
    """Lay out perplexity and its ratio to the full cache's, one row a text, length and setting.

    A ratio's interval is paired: the same pages are drawn on both sides. One page has none.
    """
    rows = []
    for pair in pairs:
        K = len(pair.rows)
        weights = draw_weights(json.dumps(pair.cell.__dict__, sort_keys=True), K)
        draws, full_draws = draw_ratios(pair.rows, weights), draw_ratios(pair.full_rows, weights)
        nll, full_nll = (float(r[:, 0].sum() / r[:, 1].sum()) for r in (pair.rows, pair.full_rows))
        ratio = math.exp(nll - full_nll)
        rows.append(
            {
                "text": pair.cell.task,
                "num_tokens": pair.cell.num_tokens,
                "label": pair.setting.label,
                "granularity": pair.setting.granularity,
                "compression": pair.compression,
                "num_contexts": K,
                "num_scored": int(pair.rows[:, 1].sum()),
                "perplexity": math.exp(nll),
                "interval": _exp(interval(draws, nll)) if K > 1 else None,
                "ratio": ratio,
                "ratio_interval": _ratio_interval(draws - full_draws, nll - full_nll, K),
            }
        )
    return rows


def _ratio_interval(draws: Draws, estimate: float, K: int) -> list[float] | None:
    return _exp(interval(draws, estimate)) if K > 1 else None


def _exp(span: list[float]) -> list[float]:
    return [math.exp(end) for end in span]


def cost_rows(results: Results, costs: Costs) -> list[dict[str, Any]]:
    """Merge costs, one row a setting and compression: of its longest text, and of its speed run."""
    groups: dict[tuple[Setting, float], list[dict[str, Any]]] = defaultdict(list)
    for line in results.of("answers") + results.of("pages"):
        groups[Setting.of(line), float(line["compression"])].append(line)
    full = {
        line["num_tokens"]: line["kv_bytes"]
        for (setting, _), lines in groups.items()
        for line in lines
        if setting.label == FULL and line.get("kv_bytes")
    }
    rows = []
    for (setting, compression), lines in sorted(groups.items(), key=lambda item: item[0]):
        costly = max(lines, key=lambda line: (line["num_tokens"], line.get("peak_tokens") or 0))
        row: dict[str, Any] = {"label": setting.label, "granularity": setting.granularity}
        row |= {"compression": compression} | {name: costly.get(name) for name in COSTS}
        whole, own = full.get(costly["num_tokens"]), costly.get("kv_bytes")
        row["kv_ratio"] = own / whole if own and whole else None
        speed = costs.speed(setting, compression, LONGEST)
        row |= {name: speed.get(name) for name in SPEEDS}
        row["speed_num_tokens"] = speed.get("num_tokens")
        rows.append(row)
    return rows


class Costs:
    """What a line's setting costs: the line's own figures, and a decode speed beside them."""

    def __init__(self, results: Results) -> None:
        """Group the speeds by setting and compression."""
        self._speeds: dict[tuple[Setting, float], list[dict[str, Any]]] = defaultdict(list)
        for line in results.of("speed"):
            self._speeds[Setting.of(line), float(line["compression"])].append(line)

    def speed(self, setting: Setting, compression: float, num_tokens: int) -> dict[str, Any]:
        """Return the speed line nearest in length, of the largest batch; empty if there is none."""
        own = self._speeds.get((setting, compression))
        own = own or self._speeds.get((Setting(setting.label), compression), [])

        def rank(line: dict[str, Any]) -> tuple[float, int, int]:
            far = abs(math.log(max(line["num_tokens"], 1) / max(num_tokens, 1)))
            return -far, line["num_tokens"], line.get("batch") or 0

        return max(own, key=rank, default={})

    def of(self, line: dict[str, Any]) -> dict[str, Any]:
        """Lay out the costs of a line of answers; speed_num_tokens is its speed's length."""
        speed = self.speed(Setting.of(line), float(line["compression"]), line["num_tokens"])
        names = ("num_slots", "chunk_size", "peak_tokens", "kv_bytes", "ops_per_slot")
        return {
            **{name: line.get(name) for name in names},
            "ratio_to_static": speed.get("ratio_to_static"),
            "speed_num_tokens": speed.get("num_tokens"),
        }


def survivor_rows(results: Results) -> list[dict[str, Any]]:
    """List the shares still held by age, of the longest text of each setting and compression."""
    chosen: dict[tuple[Setting, float], dict[str, Any]] = {}
    for line in results.of("survivors"):
        name = (Setting.of(line), float(line["compression"]))
        if name not in chosen or line["num_tokens"] > chosen[name]["num_tokens"]:
            chosen[name] = line
    return [
        {
            "label": setting.label,
            "granularity": setting.granularity,
            "compression": compression,
            **{name: line[name] for name in ("num_tokens", "edges", "kept")},
        }
        for (setting, compression), line in sorted(chosen.items(), key=lambda item: item[0])
    ]
