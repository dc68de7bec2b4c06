"""Sum a search up: best, runners-up, ratios best to best and on equal hardware, what binds.

Ratios are full / RCE, above 1 = gained by RCE. Everything is plain JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from kvmmu.accel.explore.objective import OBJECTIVES, Evaluator, Outcome
from kvmmu.accel.explore.search import Found
from kvmmu.accel.explore.space import CACHES

__all__ = ["NUM_RUNNERS_UP", "front", "ratios", "summary"]

NUM_RUNNERS_UP = 5
_FULL_SHARE = 0.97  # assumed: a budget used to 97 % is used up, as one bank is 1 to 4 % of it


def summary(
    evaluator: Evaluator,
    found: dict[str, list[Found]],
    refused: Mapping[str, Sequence[str]],
    *,
    objective: str,
) -> dict[str, Any]:
    """Return what was found for each cache and how they compare. refused: a cause a refusal."""
    field = OBJECTIVES[objective]
    made: dict[str, Any] = {"objective": objective, "is_as_if": evaluator.is_as_if}
    own = {kind: _original(evaluator, kind) for kind in CACHES}
    made["original"] = {kind: o.to_json() for kind, o in own.items() if o is not None}
    best: dict[str, Found] = {}
    for kind in CACHES:
        ranked = sorted(found[kind], key=lambda f: (getattr(f.outcome, field), f.number))
        made[kind] = _told(evaluator, kind, ranked, refused[kind], field)
        if ranked:
            best[kind] = ranked[0]
    made["ratios"] = _compared(evaluator, best, own)
    return made


def ratios(full: Outcome, ours: Outcome) -> dict[str, float]:
    """Return full / ours of the whole run, and of decode alone."""
    return {
        "energy": full.energy_j / ours.energy_j,
        "delay": full.delay_s / ours.delay_s,
        "edp": full.edp_js / ours.edp_js,
        "decode_energy": full.decode_energy_j / ours.decode_energy_j,
        "decode_delay": full.decode_delay_s / ours.decode_delay_s,
    }


def _compared(
    evaluator: Evaluator, best: dict[str, Found], own: dict[str, Outcome | None]
) -> dict[str, Any]:
    """Compare best with best, both on RCE's best hardware, and both on the accelerator's own."""
    made: dict[str, Any] = {}
    if set(best) == set(CACHES):
        made["best_to_best"] = ratios(best["full"].outcome, best["rce"].outcome)
    if "rce" in best:
        same = evaluator.full_on(best["rce"].point)
        made["equal_hardware"] = ratios(same, best["rce"].outcome) | {"fits": same.fits}
    if own["rce"] and own["full"]:
        made["original"] = ratios(own["full"], own["rce"])
    for kind, found in best.items():
        before = own[kind]
        if before is not None:
            made[f"{kind}_over_original"] = ratios(before, found.outcome)
    return made


def _original(evaluator: Evaluator, kind: str) -> Outcome | None:
    """Return the accelerator as it is; None where it cannot run this at all."""
    try:
        return evaluator.original(kind)
    except ValueError:
        return None


def _told(
    evaluator: Evaluator, kind: str, ranked: list[Found], refused: Sequence[str], field: str
) -> dict[str, Any]:
    made: dict[str, Any] = {
        "num_priced": len(ranked),
        "refused": dict(Counter(refused).most_common()),
        "points": [_place(f, field) for f in ranked],
        "front": [_place(f, field) for f in front(ranked, field)],
    }
    if ranked:
        made["best"] = _entry(ranked[0])
        made["runners_up"] = [_entry(f) for f in ranked[1 : 1 + NUM_RUNNERS_UP]]
        made["binding"] = binding(evaluator, kind, ranked[0])
        for name in ("dram", "layout", "softmax_form", "num_slots", "weight_bits", "kv_bits"):
            made[f"best_by_{name}"] = _best_by(ranked, name, field)
    return made


def _place(found: Found, field: str) -> list[float]:
    """Return area and objective, rounded as a picture needs them."""
    value = getattr(found.outcome, field)
    return [float(f"{found.outcome.area_mm2:.5g}"), float(f"{value:.6g}")]


def _entry(found: Found) -> dict[str, Any]:
    return {"number": found.number, "point": found.point, "outcome": found.outcome.to_json()}


def _best_by(ranked: list[Found], name: str, field: str) -> dict[str, float]:
    """Return the least objective of each value of an axis that was tried."""
    made: dict[str, float] = {}
    for found in ranked:
        if name in found.point:
            made.setdefault(str(found.point[name]), getattr(found.outcome, field))
    return made


def front(found: list[Found], field: str) -> list[Found]:
    """Return the points that no other beats in both area and objective, by area."""
    kept: list[Found] = []
    least = float("inf")
    for one in sorted(found, key=lambda f: (f.outcome.area_mm2, getattr(f.outcome, field))):
        if getattr(one.outcome, field) < least:
            least = getattr(one.outcome, field)
            kept.append(one)
    return kept


def binding(evaluator: Evaluator, kind: str, best: Found) -> dict[str, Any]:
    """Say what holds the best design back: area, DRAM, ends of axes, the busiest unit."""
    o = best.outcome
    area_share = o.area_mm2 / evaluator.area_mm2
    units = {name: value for name, value in o.utilisation.items() if name != "macs"}
    return {
        "area_share": area_share,
        "area_binds": area_share >= _FULL_SHARE,
        "dram_share": o.capacity_bytes / o.dram_capacity_bytes,
        "bound": o.bound,
        "busiest": max(units, key=lambda name: units[name]),
        "utilisation": o.utilisation,
        "at_an_end": {
            axis.name: "least" if best.point[axis.name] == axis.values[0] else "most"
            for axis in evaluator.space.axes_of(kind)
            if axis.is_ordered
            and len(axis.values) > 1
            and best.point[axis.name] in (axis.values[0], axis.values[-1])
        },
    }
