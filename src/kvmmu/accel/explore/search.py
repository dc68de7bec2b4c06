"""Search a space with optuna's TPE (Bergstra et al., NeurIPS 2011), one trial after another.

The first trial is the accelerator's own point. TPE draws the first half; the second half are steps
from the best so far, which a model of densities is too coarse for: one or two axes move, and the
array takes or gives the area that is left.

Every trial has a generator of its own, seeded by (seed, number of the trial), and sees the trials
before it alone. So the same seed gives the same trials, and a search that was killed and goes on
ends as one that was not. A trial that cannot be built or exceeds a limit is told as pruned: TPE
then avoids its neighbourhood. It does not count among the trials asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvmmu.accel.explore.journal import Journal
from kvmmu.accel.explore.objective import OBJECTIVES, Evaluator, Outcome, Refusal
from kvmmu.accel.explore.space import Axis, Point
from kvmmu.errors import KVMMUError

try:
    import optuna
    from optuna.distributions import CategoricalDistribution, IntDistribution
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState
except ImportError as error:
    from kvmmu.accel.explore.missing import MissingExtraError

    raise MissingExtraError(
        f"the search needs optuna; pip install 'kvmmu[search]' ({error})"
    ) from error

__all__ = ["MAX_TRIES", "Found", "search"]

MAX_TRIES = 20
"""Points tried for each trial asked for, before a search ends with fewer."""

_STARTUP = 16
"""Trials drawn at random before TPE has something to learn from (optuna's default is 10)."""

_STEPS_SHARE, _MOST_MOVED = 0.5, 2
"""Share of the trials that are steps from the best, and most axes that one step moves: of the
shares .35 to .8 and 2 to 5 axes, the best mean of five seeds of LLaMA-7B on jetcas65."""

_FILLED = ("rows", "cols", None)
"""After a step, the side of the array that takes or gives the area that is left, if any."""

_REPEATED = "same as an earlier trial"


@dataclass(frozen=True)
class Found:
    """One point that was priced; number counts all that were tried."""

    number: int
    point: dict[str, Any]
    outcome: Outcome


def search(
    evaluator: Evaluator,
    kind: str,
    *,
    trials: int,
    objective: str = "edp",
    seed: int = 0,
    journal: Journal,
    extra: Point | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Found]:
    """Price `trials` different points for "rce" or "full", and at the end one that is given.

    What the journal holds is not priced again. Raises ValueError for an unknown objective.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}")
    if trials < 1:
        raise ValueError(f"trials must be at least 1, got {trials}")
    if not 0 <= seed < 2**31:
        raise ValueError(f"seed must lie in [0, 2**31), got {seed}")
    with _quiet():
        made = _Search(evaluator, kind, objective, seed, journal)
        made.run(trials, advance)
        if extra is not None:
            made.price(extra)
        return made.found


class _Search:
    """One study: what was tried, in optuna's words and in ours."""

    def __init__(
        self,
        evaluator: Evaluator,
        kind: str,
        objective: str,
        seed: int,
        journal: Journal,
    ) -> None:
        self.evaluator, self.kind, self.seed = evaluator, kind, seed
        self.field = OBJECTIVES[objective]
        self.journal = journal
        self.axes = evaluator.space.axes_of(kind)
        self.study = optuna.create_study(direction="minimize")
        self.found: list[Found] = []
        self.count = 0  # optuna copies all trials to say how many there are
        self.tried: set[tuple[Any, ...]] = set()

    def run(self, trials: int, advance: Callable[[int], None]) -> None:
        """Go on until `trials` points are priced, or too many were tried."""
        for line in self.journal.lines(self.kind):
            self._learn(line)
        advance(min(len(self.found), trials))
        drawn = int(trials * (1 - _STEPS_SHARE))
        while len(self.found) < trials and self.count < MAX_TRIES * trials:
            before = len(self.found)
            if 0 < drawn <= before:
                self._learn(self._tried(self._step()))
            else:
                self._draw_and_tell()
            advance(len(self.found) - before)

    def price(self, point: Point) -> None:
        """Price a point that is given, unless it was tried."""
        own = {axis.name: point[axis.name] for axis in self.axes}
        if self._key(own) not in self.tried:
            self._learn(self._tried(own))

    def _tried(self, point: dict[str, Any]) -> dict[str, Any]:
        """Price a point and write it down; return its line."""
        line: dict[str, Any] = {"point": point}
        try:
            if self._key(point) in self.tried:
                raise Refusal(_REPEATED)
            line["outcome"] = self.evaluator.evaluate(point, self.kind).to_json()
        except Refusal as refusal:
            line["refused"] = str(refusal)
        self.journal.append(self.kind, line)
        return line

    def _draw_and_tell(self) -> None:
        trial, point = self._draw()
        line = self._tried(point)
        if trial is None:
            self._learn(line)
            return
        if "outcome" in line:
            self.study.tell(trial, line["outcome"][self.field])
        else:
            self.study.tell(trial, state=TrialState.PRUNED)
        self._keep(line)

    def _draw(self) -> tuple[optuna.Trial | None, dict[str, Any]]:
        """Return the accelerator's own point first, then what TPE suggests."""
        if self.count == 0:
            return None, self.evaluator.space.own_point(self.kind)
        salt = (self.seed * 1_000_003 + self.count) % 2**32
        self.study.sampler = TPESampler(seed=salt, n_startup_trials=_STARTUP, multivariate=True)
        trial = self.study.ask()
        return trial, {axis.name: _suggested(trial, axis) for axis in self.axes}

    def _step(self) -> dict[str, Any]:
        """Return the best point with a few axes moved by one or two ranks, and the area filled."""
        generator = np.random.default_rng((self.seed, self.count))
        best = min(self.found, key=lambda f: (getattr(f.outcome, self.field), f.number))
        point, free = dict(best.point), [axis for axis in self.axes if len(axis.values) > 1]
        most = min(_MOST_MOVED, len(free))
        size = int(generator.integers(1, most + 1)) if most else 0
        for idx in generator.choice(len(free), size=size, replace=False) if size else ():
            axis = free[int(idx)]
            rank = int(generator.integers(len(axis.values)))
            if axis.is_ordered:
                rank = axis.values.index(point[axis.name]) + int(generator.choice((-2, -1, 1, 2)))
            point[axis.name] = axis.values[min(max(rank, 0), len(axis.values) - 1)]
        side = _FILLED[int(generator.integers(len(_FILLED)))]
        return point if side is None else self.evaluator.filled(point, self.kind, side)

    def _learn(self, line: dict[str, Any]) -> None:
        """Take a line of the journal into the study."""
        point, outcome = line["point"], line.get("outcome")
        params = {a.name: _code(a, point[a.name]) for a in self.axes}
        made = optuna.trial.create_trial(
            state=TrialState.PRUNED if outcome is None else TrialState.COMPLETE,
            value=None if outcome is None else outcome[self.field],
            params=params,
            distributions={axis.name: _distribution(axis) for axis in self.axes},
        )
        self.study.add_trial(made)
        self._keep(line)

    def _keep(self, line: dict[str, Any]) -> None:
        self.tried.add(self._key(line["point"]))
        if "outcome" in line:
            outcome = Outcome.from_json(line["outcome"])
            self.found.append(Found(self.count, line["point"], outcome))
        self.count += 1

    def _key(self, point: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(point[axis.name] for axis in self.axes)


def _distribution(axis: Axis) -> IntDistribution | CategoricalDistribution:
    """Ordered values are searched by their rank, so that neighbours are alike."""
    if axis.is_ordered:
        return IntDistribution(0, len(axis.values) - 1)
    return CategoricalDistribution(axis.values)


def _suggested(trial: optuna.Trial, axis: Axis) -> Any:
    if axis.is_ordered:
        return axis.values[trial.suggest_int(axis.name, 0, len(axis.values) - 1)]
    return trial.suggest_categorical(axis.name, axis.values)


def _code(axis: Axis, value: Any) -> Any:
    """Return optuna's value of ours. Raises KVMMUError for one that the axis has not."""
    if value not in axis.values:
        raise KVMMUError(f"{axis.name} of the journal must be one of {axis.values}, got {value!r}")
    return axis.values.index(value) if axis.is_ordered else value


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep optuna's messages off the terminal while the with statement lasts."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():  # multivariate=True is "experimental" in optuna 4
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
