"""An evaluation in figures: what each setting keeps, with intervals, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from kvmmu.report.evaluation.agreement import agreement_rows
from kvmmu.report.evaluation.bootstrap import CONFIDENCE, NUM_DRAWS, Draws, interval, unseen
from kvmmu.report.evaluation.cells import Kept, Place, cell_rows, family_rows, measure
from kvmmu.report.evaluation.costs import Costs, cost_rows, page_rows, survivor_rows
from kvmmu.report.evaluation.pairs import Pair, pair
from kvmmu.report.evaluation.published import published_rows
from kvmmu.report.evaluation.results import FULL, Results
from kvmmu.report.evaluation.skips import skip_rows, skips_in_force

__all__ = ["FREE_AT", "FOCUS", "summarise"]

FREE_AT = 0.95
"""A setting is called nearly free where its interval of kept accuracy lies above this."""
FOCUS = 8.0
"""The compression that the words and the one-compression pictures are about, if measured."""

Families = dict[tuple[str, str], Kept]


def summarise(results: Results) -> dict[str, Any]:
    """Reckon the summary, a plain dict: the same for the same lines in any order.

    Keys: about, method, settings, compressions, focus, headline, leaders, families, cells,
    published, perplexity, costs, survivors, not_measurable. Shares lie around [0, 1], intervals are
    [low, high]; a row names its setting by `name`. Where scores were integers, `agreement` says
    how many of their victims fp32 scores would have chosen.
    """
    pairs, num_left_out = pair(results.of("answers"))
    skips = skips_in_force(pairs, results.of("skipped"))
    pairs = [p for p in pairs if p.cell not in skips]
    taken, costs = measure(pairs), Costs(results)
    families, kept = family_rows(taken, costs)
    capability = {(r["task"], r["mode"]): r["capability"] for r in families}
    pages, num_pages_left_out = pair(results.of("pages"))
    answered = {place[1] for place in kept if place[0].label != FULL}
    compressions = answered or {p.compression for p in pages if p.setting.label != FULL}
    focus = min(answered, key=lambda c: (abs(math.log(c / FOCUS)), c), default=None)
    made = {
        "about": results.about,
        "method": {
            "confidence": CONFIDENCE,
            "num_draws": NUM_DRAWS,
            "free_at": FREE_AT,
            "num_broken_lines": results.num_broken,
            "num_unpaired_lines": num_left_out + num_pages_left_out,
        },
        "compressions": sorted(compressions),
        "focus": focus,
        "headline": [_headline(place, made, kept, capability) for place, made in kept.items()],
        "leaders": [row for c in sorted(answered) if (row := _leaders(kept, c))],
        "families": families,
        "cells": cell_rows(taken, costs),
        "published": published_rows(results),
        "perplexity": page_rows(pages),
        "costs": cost_rows(results, costs),
        "survivors": survivor_rows(results),
        "not_measurable": skip_rows(pairs, skips),
    }
    if agreements := agreement_rows(results):
        made["agreement"] = agreements
    _name_settings(made, pairs + pages)
    rounded: dict[str, Any] = _rounded(made)
    return rounded


def _headline(
    place: Place,
    families: Families,
    kept: dict[Place, Families],
    capability: dict[tuple[str, str], str],
) -> dict[str, Any]:
    """Average what a setting keeps over families: all, those of a mode, those of a capability.

    num_families counts those that were measured on every cell, of num_of_families.
    """
    cells = _num_cells(kept.values())
    row = {
        "label": place[0].label,
        "granularity": place[0].granularity,
        "compression": place[1],
        **_mean(families.values()),
        "num_families": sum(k.num_cells == cells[family] for family, k in families.items()),
        "num_of_families": len(cells),
    }
    row["by_mode"] = _grouped(families, lambda family: family[1])
    row["by_capability"] = _grouped(families, lambda family: capability[family])
    return row


def _num_cells(every: Iterable[Families]) -> dict[tuple[str, str], int]:
    """Count the cells of each family that any setting was measured on."""
    cells: dict[tuple[str, str], int] = {}
    for families in every:
        for family, kept in families.items():
            cells[family] = max(cells.get(family, 0), kept.num_cells)
    return cells


def _grouped(
    families: Families, name_of: Callable[[tuple[str, str]], str]
) -> dict[str, dict[str, Any]]:
    names = sorted({name_of(family) for family in families})
    return {
        name: {
            **_mean(made := [kept for family, kept in families.items() if name_of(family) == name]),
            "num_families": len(made),
        }
        for name in names
    }


def _mean(kept: Iterable[Kept]) -> dict[str, Any]:
    """Average kept accuracy: every family weighs the same."""
    kept = list(kept)
    share = float(np.mean([k.share for k in kept]))
    if all(k.is_full for k in kept):
        return {"kept": share, "kept_interval": [1.0, 1.0]}
    low, high = _ends(kept)
    span = interval(_mean_draws(kept), share, reach=_reach(kept), low=low, high=high)
    return {"kept": share, "kept_interval": span}


def _ends(kept: list[Kept]) -> tuple[float, float]:
    """Return the mean's least and most: nothing or all answered in every family."""
    ends = [k.ends for k in kept]
    return float(np.mean([low for low, _ in ends])), float(np.mean([high for _, high in ends]))


def _reach(kept: Iterable[Kept]) -> float:
    counts = [(k.num_contexts, k.num_answers) for k in kept]
    return unseen(sum(n for n, _ in counts), sum(m for _, m in counts))


def _mean_draws(kept: list[Kept]) -> Draws:
    return np.asarray(np.mean([k.share_draws for k in kept], axis=0))


def _leaders(kept: dict[Place, Families], compression: float) -> dict[str, Any] | None:
    """Say which two settings keep most, and by how much the first leads, paired.

    Settings that were not measured on every cell are left out.
    """
    of = {place: made for place, made in kept.items() if place[1] == compression}
    cells = _num_cells(of.values())
    mean = {
        place: float(np.mean([k.share for k in made.values()]))
        for place, made in of.items()
        if {family: k.num_cells for family, k in made.items()} == cells
    }
    if len(mean) < 2:
        return None
    first, second = sorted(mean, key=lambda place: (-mean[place], place))[:2]
    draws = [
        _mean_draws([of[place][family] for family in sorted(cells)]) for place in (first, second)
    ]
    gap = mean[first] - mean[second]
    ends, others = (_ends(list(of[place].values())) for place in (first, second))
    span = interval(
        draws[0] - draws[1],
        gap,
        reach=_reach(of[first].values()),
        low=ends[0] - others[1],
        high=ends[1] - others[0],
    )
    return {
        "compression": compression,
        "first": {"label": first[0].label, "granularity": first[0].granularity},
        "second": {"label": second[0].label, "granularity": second[0].granularity},
        "gap": gap,
        "gap_interval": span,
    }


def _name_settings(made: dict[str, Any], pairs: list[Pair]) -> None:
    """Give every row its setting's name: the granularity is told where a label has several."""
    tables = ["headline", "families", "cells", "published", "perplexity", "costs", "survivors"]
    tables += ["agreement"] if "agreement" in made else []
    rows = [row for table in tables for row in made[table]]
    rows += [row[which] for row in made["leaders"] for which in ("first", "second")]
    grains: dict[str, set[str]] = {}
    for row in rows:
        grains.setdefault(row["label"], set()).add(row["granularity"])
    for row in rows:
        several = len(grains[row["label"]] - {""}) > 1 and row["granularity"]
        row["name"] = f"{row['label']} per {row['granularity']}" if several else row["label"]
    made["settings"] = _settings(made, pairs)
    place = {setting["name"]: n for n, setting in enumerate(made["settings"])}
    for table in tables:
        made[table].sort(key=lambda row: (place.get(row["name"], len(place)), row["compression"]))


def _settings(made: dict[str, Any], pairs: list[Pair]) -> list[dict[str, Any]]:
    """List the settings: the full cache, then by what they keep at the focus, the best first."""
    tables = ("headline", "families", "published", "perplexity", "costs")
    policies = {p.setting.label: str(p.line["policy"]) for p in pairs}
    kept = {
        row["name"]: row["kept"] for row in made["headline"] if row["compression"] == made["focus"]
    }
    found: dict[str, dict[str, Any]] = {}
    for row in (row for table in tables for row in made[table]):
        found.setdefault(
            row["name"],
            {
                "name": row["name"],
                "label": row["label"],
                "granularity": row["granularity"],
                "policy": policies.get(row["label"], row["label"].partition(":")[0]),
            },
        )
    return sorted(
        found.values(), key=lambda s: (s["label"] != FULL, -kept.get(s["name"], -1.0), s["name"])
    )


def _rounded(value: Any) -> Any:
    """Round floats to 6 digits after the point, and make what JSON lacks None."""
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
