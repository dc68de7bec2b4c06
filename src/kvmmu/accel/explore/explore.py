"""Explore: search one budget for RCE and for the full cache, and sum both up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvmmu import __version__
from kvmmu.accel.chip.chip import build_chip
from kvmmu.accel.explore.journal import Journal
from kvmmu.accel.explore.objective import OBJECTIVES, Evaluator
from kvmmu.accel.explore.search import MAX_TRIES, Found, search
from kvmmu.accel.explore.space import CACHES, Space, make_space
from kvmmu.accel.explore.summary import summary
from kvmmu.accel.request import Request
from kvmmu.accel.spec.load import load_accelerator

__all__ = ["Exploration", "explore"]


@dataclass(frozen=True)
class Exploration:
    """What to search. area_mm2 None: the accelerator's own, with its score tables.

    request: the run; its num_slots or compression where `slots` names none. bits, drams and fixed
    as in make_space.
    """

    request: Request
    area_mm2: float | None = None
    slots: tuple[int, ...] = ()
    bits: tuple[int, ...] = ()
    drams: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    trials: int = 100
    objective: str = "edp"
    seed: int = 0


def explore(
    asked: Exploration,
    *,
    folder: Path | None = None,
    advance: Callable[[int], None] = lambda count: None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Search and return the results as plain JSON values; with a folder, go on where it ended.

    In the end each cache is priced on the other's best hardware too, so that neither is behind
    for want of luck.

    Raises ValueError, SpecError or CapacityError for what cannot be searched.
    """
    evaluator = _evaluator(asked)
    about = _about(asked, evaluator)
    found: dict[str, list[Found]] = {}
    options: dict[str, Any] = {"trials": asked.trials, "objective": asked.objective}
    options |= {"seed": asked.seed}
    with Journal.opened(folder, about) as journal:
        options["journal"] = journal
        for kind in CACHES:
            say("RCE" if kind == "rce" else "full cache")
            found[kind] = search(evaluator, kind, advance=advance, **options)
        if all(found.values()):
            best = [_best(found[kind], asked) for kind in CACHES]
            for kind, extra in zip(CACHES, (best[0] | best[1], best[0]), strict=True):
                found[kind] = search(evaluator, kind, extra=extra, **options)
        refused = {
            kind: [x["refused"] for x in journal.lines(kind) if "refused" in x] for kind in CACHES
        }
    say("summary")
    made = summary(evaluator, found, refused, objective=asked.objective)
    return {"label": "simulated", "accuracy": None, "about": about, "trials": asked.trials} | made


def _best(found: list[Found], asked: Exploration) -> dict[str, Any]:
    """Return the best point of the search itself, what came after it in the journal left out."""
    field = OBJECTIVES[asked.objective]
    own = [f for f in found if f.number < MAX_TRIES * asked.trials][: asked.trials]
    return min(own, key=lambda f: (getattr(f.outcome, field), f.number)).point


def _evaluator(asked: Exploration) -> Evaluator:
    request = asked.request
    spec = load_accelerator(request.accelerator).with_overrides(dict(request.overrides))
    total = request.prompt + request.generate
    own = request.num_slots or int(-(-total // request.compression))
    options: dict[str, Any] = {"slots": asked.slots or (own,), "bits": asked.bits}
    options |= {"drams": asked.drams, "fixed": asked.fixed}
    area_mm2 = asked.area_mm2
    if area_mm2 is None:
        area_mm2 = Evaluator(request, make_space(spec, **options), 1.0).original("rce").area_mm2
    if not area_mm2 > 0:
        raise ValueError(f"area_mm2 must be above 0, got {area_mm2}")
    space = make_space(spec, **options, area_mm2=area_mm2)
    _check_budget(space, area_mm2)
    return Evaluator(request, space, area_mm2)


def _check_budget(space: Space, area_mm2: float) -> None:
    """Raise ValueError where not even the least of everything fits the budget."""
    least = {axis.name: axis.values[0] for axis in space.axes}
    needed = build_chip(space.specification(least)).total_area_mm2
    if needed > area_mm2:
        raise ValueError(
            f"area_mm2 must be at least {needed:.2f}, what the smallest design of "
            f"{space.spec.name} takes, got {area_mm2:g}"
        )


def _about(asked: Exploration, evaluator: Evaluator) -> dict[str, Any]:
    """Return what is searched: a journal of anything else is refused."""
    request, spec = evaluator.request, evaluator.space.spec
    return {
        "kvmmu_version": __version__,
        "accelerator": spec.name,
        "specification": spec.model_dump(mode="json", exclude_none=True),
        "model": evaluator.model.name,
        "num_parameters": evaluator.model.num_parameters,
        "batch": request.batch,
        "prompt": request.prompt,
        "generate": request.generate,
        "corner": request.corner,
        "area_mm2": evaluator.area_mm2,
        "objective": asked.objective,
        "seed": asked.seed,
        "axes": {axis.name: list(axis.values) for axis in evaluator.space.axes},
    }
