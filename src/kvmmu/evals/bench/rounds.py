"""Alternated rounds: every candidate once a round, in turn; which rounds count.

What the machine does besides falls on all candidates alike, unless it comes and goes. A round is
void if, in any of its turns, other processes took more than a fifth of what the threads allow:
where /proc/stat tells, busy time less the child's own; elsewhere, CPU time of the child below
four fifths of its threads' while the turn lasted.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["MOST_TAKEN", "Clock", "Rounds", "Turn", "alternate", "quartiles"]

MOST_TAKEN = 0.2
_STAT = Path("/proc/stat")


@dataclass(frozen=True)
class Turn:
    """One turn: milliseconds a step, and what share of the threads' time others took."""

    step_ms: float
    taken: float
    tokens: list[list[int]] = field(default_factory=list)


class Clock:
    """Say what others took while a child worked."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._tick_s = 1 / os.sysconf("SC_CLK_TCK")

    def busy_s(self) -> float | None:
        """Return seconds of CPU time that all processes have had, stolen ones included."""
        if not _STAT.exists():
            return None
        values = [int(x) for x in _STAT.read_text().split("\n", 1)[0].split()[1:9]]
        user, nice, system, _, _, irq, softirq, steal = values
        return (user + nice + system + irq + softirq + steal) * self._tick_s

    def watch(self, ask: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], float]:
        """Ask a child for something timed; returns its answer and the share that others took."""
        before, start = self.busy_s(), time.perf_counter()
        made = ask()
        after, wall = self.busy_s(), time.perf_counter() - start
        if before is None or after is None:
            return made, max(0.0, 1 - made["cpu_s"] / (made["wall_s"] * self.threads))
        taken = max(0.0, after - before - made["all_cpu_s"] - self._tick_s)  # stat counts in ticks
        return made, taken / (wall * (os.cpu_count() or 1))


@dataclass(frozen=True)
class Rounds:
    """All turns by candidate, and the rounds that count."""

    turns: dict[str, list[Turn]]
    valid: list[int]
    num_rounds: int

    @property
    def is_void(self) -> bool:
        """Say whether no round counts; figures are then of all rounds and worth little."""
        return not self.valid

    def times_ms(self, name: str) -> list[float]:
        """Return a step's time in each round that counts."""
        counted = self.valid or range(self.num_rounds)
        return [self.turns[name][i].step_ms for i in counted]

    def median_ms(self, name: str) -> float:
        """Return the median time of a step."""
        return statistics.median(self.times_ms(name))

    def speedups(self, name: str, other: str) -> list[float]:
        """Return, round by round, how many times faster `name` is than `other`."""
        pairs = zip(self.times_ms(name), self.times_ms(other), strict=True)
        return [theirs / mine for mine, theirs in pairs]


def alternate(
    steps: dict[str, Callable[[], Turn]], *, rounds: int, most_rounds: int | None = None
) -> Rounds:
    """Run rounds until `rounds` of them count, twice as many at most; the order alternates."""
    turns: dict[str, list[Turn]] = {name: [] for name in steps}
    names: Sequence[str] = list(steps)
    done = 0
    valid: list[int] = []
    while done < (most_rounds or 2 * rounds) and len(valid) < rounds:
        for name in names if done % 2 == 0 else reversed(names):
            turns[name].append(steps[name]())
        if all(made[done].taken <= MOST_TAKEN for made in turns.values()):
            valid.append(done)
        done += 1
    return Rounds(turns, valid, done)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the first and third quartile; the value itself twice if there is one only."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high
