"""What an evaluation asks: cases, and the suites that name them.

A case is a task in a mode at a length, or perplexity of a text; a setting (a policy at a
compression) answers it. `--tasks` chooses among a suite's cases by "task" or "task/mode".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kvmmu.evals.tasks.base import TASKS, Task
from kvmmu.registry import unknown_name

__all__ = [
    "PERPLEXITY",
    "PUBLISHED",
    "SUITES",
    "TEXTS",
    "Case",
    "Suite",
    "floor",
    "pick",
    "resized",
]

PERPLEXITY = "perplexity"
PUBLISHED = "published"
"""The mode of a published benchmark, read from a folder of the user's (see published.py)."""
TEXTS = ("frankenstein", "wikitext2_test")
"""The shipped texts, held out of the training of the shipped models; rows take them in turn."""

_LEAST = 0.8
_ABOVE_CHANCE = 0.5
_HAS_CHANCE = 0.15


def floor(chance: float) -> float:
    """Return the score that the full cache must reach for a task to be measurable.

    0.8; where guessing scores, chance + 0.5 if that is less.
    """
    return min(_LEAST, chance + _ABOVE_CHANCE) if chance >= _HAS_CHANCE else _LEAST


@dataclass(frozen=True)
class Case:
    """One question to all caches: a task in a mode, or the perplexity of `text`.

    size counts answers (perplexity: tokens scored), spread over as many contexts as it takes.
    """

    task: str
    mode: str
    num_tokens: int
    size: int
    params: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None

    @property
    def key(self) -> str:
        """Name the case in a results file."""
        params = json.dumps(dict(self.params), sort_keys=True) if self.params else ""
        return f"{self.task}/{self.mode}/{self.num_tokens}{params}{self.text or ''}/{self.size}"

    @property
    def label(self) -> str:
        """Name the case on a progress bar."""
        return f"{self.task} {self.mode} {self.num_tokens}"

    def make(self) -> Task:
        """Make the task. Raises ValueError for an unknown one."""
        return TASKS.get(self.task)(**self.params)


@dataclass(frozen=True)
class Suite:
    """A named list of cases, and what it is run with unless told otherwise."""

    cases: tuple[Case, ...]
    compressions: tuple[float, ...]
    seeds: tuple[int, ...]
    about: str


def _tasks(num_tokens: int, size: int, *, kinds: Sequence[str]) -> Iterator[Case]:
    """Yield every task in every mode of `kinds` that it has."""
    for name in TASKS.names():
        task = TASKS.get(name)
        modes = [mode for mode in task.modes if mode in kinds]
        if "shared" in kinds and name in _SHARED:
            modes.append("shared")  # type: ignore[arg-type]
        for mode in modes:
            if mode == "online" and name not in _ONLINE:
                continue
            for params in _PARAMS.get(name, ({},)):
                yield Case(name, mode, num_tokens, size, params)


_SHARED = ("niah_multikey", "niah_multivalue", "niah_multiquery", "variable_tracking")
_ONLINE = ("hold", "hot_set", "mixed", "niah_multikey", "recite", "variable_tracking")
"""Tasks asked in the text, or many times, in the suites; every task has its online mode."""
_PARAMS: dict[str, tuple[dict[str, Any], ...]] = {"key_value": ({}, {"num_hex": 8})}


def _grid(lengths: Sequence[int], size: int) -> Iterator[Case]:
    for num_tokens in lengths:
        for depth in (0.0, 0.25, 0.5, 0.75, 1.0):
            yield Case("niah_single", "late", num_tokens, size, {"depth": depth})


def _perplexity(num_tokens: int, size: int) -> Iterator[Case]:
    for text in TEXTS:
        yield Case(PERPLEXITY, "online", num_tokens, size, text=text)


_ALL = ("late", "shared", "seen", "online")


def _quick() -> Iterator[Case]:
    for name, mode in (
        ("niah_multikey", "late"),
        ("niah_multikey", "shared"),
        ("niah_multikey", "seen"),
        ("niah_single", "late"),
        ("hot_set", "online"),
    ):
        yield Case(name, mode, 256, 24)
    yield Case(PERPLEXITY, "online", 256, 512, text="frankenstein")


def _full() -> Iterator[Case]:
    for num_tokens in (512, 1024, 2048, 4096):
        yield from _tasks(num_tokens, 200, kinds=_ALL)
    yield from _grid((256, 512, 1024, 2048, 4096), 20)
    for num_tokens in (2048, 4096, 8192):
        yield from _perplexity(num_tokens, 4096)


def _suites() -> dict[str, Suite]:
    standard = (*_tasks(1024, 200, kinds=_ALL), *_perplexity(2048, 4096))
    return {
        "quick": Suite(tuple(_quick()), (4.0, 8.0), (0,), "a look, under three minutes"),
        "standard": Suite(standard, (4.0, 8.0), (0,), "every task, 200 answers a cell"),
        "full": Suite(
            tuple(_full()), (2.0, 4.0, 8.0, 16.0), (0, 1, 2), "every length, the needle grid"
        ),
        "grid": Suite(
            tuple(_grid((256, 512, 1024, 2048), 20)), (8.0,), (0,), "the needle grid alone"
        ),
    }


class _Lazy(dict[str, Suite]):
    """The suites by name, made when first asked for: they read the registry of tasks."""

    def __missing__(self, name: str) -> Suite:
        made = _suites()
        if name not in made:
            raise ValueError(unknown_name("suite", name, sorted(made)))
        self.update(made)
        return made[name]

    def names(self) -> list[str]:
        """List the suites' names."""
        return sorted(_suites())


SUITES = _Lazy()


def pick(suite: Suite, tasks: Sequence[str]) -> tuple[Case, ...]:
    """Choose the cases of some tasks ("name" or "name/mode"). Raises ValueError for no match."""
    if not tasks:
        return suite.cases
    known = sorted({case.task for case in suite.cases})
    chosen: list[Case] = []
    for text in tasks:
        name, _, mode = text.partition("/")
        found = [c for c in suite.cases if c.task == name and mode in ("", c.mode)]
        if not found and name in known:
            modes = sorted({c.mode for c in suite.cases if c.task == name})
            raise ValueError(f"mode of task {name} must be one of {', '.join(modes)}, got {mode!r}")
        if not found:
            raise ValueError(unknown_name("task of the suite", name, known))
        chosen += [case for case in found if case not in chosen]
    return tuple(chosen)


def resized(case: Case, size: int) -> Case:
    """Ask for another number of answers; the tokens of perplexity stay as they are."""
    return case if case.task == PERPLEXITY else replace(case, size=size)
