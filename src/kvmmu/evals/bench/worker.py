"""A candidate's process at one point: its prefill, its first tokens, its turns."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvmmu.evals.bench.candidates import Candidate, python_of
from kvmmu.evals.bench.model import BenchModel
from kvmmu.evals.bench.process import Child, ChildError
from kvmmu.evals.bench.rounds import Clock, Turn
from kvmmu.evals.policy_text import parse_policy

__all__ = ["PARITY", "Point", "Timing", "Worker", "prompt_ids"]

PARITY = 16
"""Greedy tokens that are compared."""


@dataclass(frozen=True)
class Point:
    """A batch of prompts of `context` tokens, C slots."""

    batch: int
    context: int
    num_slots: int

    @property
    def room(self) -> int:
        """Count the tokens that may be decoded: an eighth of the context, 64 at least."""
        return max(64, self.context // 8)


@dataclass(frozen=True)
class Timing:
    """How long and how often: rounds that count, seconds a turn and of one prefill."""

    rounds: int = 7
    turn_s: float = 0.3
    max_prefill_s: float = 300.0
    threads: int = 2
    policy: str = "rce"
    pythons: dict[str, str] = field(default_factory=dict)
    convert_dir: Path = Path()
    log_dir: Path = Path()


class Worker:
    """A candidate's child at a point, with what it has measured so far."""

    def __init__(self, candidate: Candidate, point: Point, model: BenchModel, how: Timing) -> None:
        """Start the child and let it load the model. Raises ChildError or ConversionError."""
        self.candidate, self.point, self.how = candidate, point, how
        python = python_of(candidate, how.pythons)
        path = model.converted(candidate.source, how.convert_dir, python)
        log = how.log_dir / f"{candidate.name.replace(' ', '-')}.log"
        self.child = Child(python, candidate.file, log, threads=how.threads)
        self.clock = Clock(how.threads)
        self.figures: dict[str, Any] = {}
        self.tokens: list[int] = []
        self.left = point.room
        try:
            facts = self.child.ask("open", settings=self._settings(path))["facts"]
        except ChildError:
            self.child.close()
            raise
        self.fans_out = bool(facts["fans_out"])
        self.figures |= {"version": facts["version"], "weight_bytes": facts["weight_bytes"]}

    def _settings(self, path: Path) -> dict[str, Any]:
        point = self.point
        made: dict[str, Any] = {
            "model": str(path),
            "threads": self.how.threads,
            "num_slots": point.num_slots,
            "context": point.context + point.room,
            "max_batch": point.batch,
            "policy": self.how.policy,
            **self.candidate.settings,
        }
        made["policy"] = _policy_settings(made["policy"])
        made["evict_tokens"] = point.num_slots if made.pop("is_evicting", False) else None
        return made

    def prefill(self, prompt: list[int]) -> None:
        """Read the prompt, after a short one that warms up; more than once where that is quick."""
        self.child.ask("prefill", prompts=[prompt[: min(len(prompt), 320)]])
        self.child.ask("decode", count=4)
        batch = self.point.batch
        prompts = [prompt] * (1 if self.fans_out else batch)
        seconds: list[float] = []
        while not seconds or (len(seconds) < 3 and sum(seconds) < 4):
            self.child.ask("clear")
            made, taken = self.clock.watch(lambda: self.child.ask("prefill", prompts=prompts))
            seconds.append(made["wall_s"])
            if len(seconds) == 1:
                growth = made["peak_bytes"] - made["before_bytes"]
                self.figures |= {"prefill_growth_bytes": growth}
            self.figures["prefill_taken"] = min(taken, self.figures.get("prefill_taken", 1.0))
        if self.fans_out:
            self.child.ask("spread", count=batch)
        best = min(seconds)  # of a long computation, the least disturbed run
        self.figures |= {"prefill_s": seconds, "prefill_tokens": len(prompts) * len(prompt)}
        self.figures |= {"prefill_tokens_per_s": len(prompts) * len(prompt) / best}
        self.figures["ttft_s"] = best
        self.figures["is_batch_prefill"] = len(prompts) > 1
        self.tokens = [made["value"][0]]
        self.figures["kv_bytes"] = self.child.ask("kv_bytes")["value"]

    def first_tokens(self) -> None:
        """Decode what is compared, and set how many steps a turn has."""
        made = self.child.ask("decode", count=PARITY - 1)
        self.tokens += made["value"][0] if made["value"] else []
        step_s = made["wall_s"] / (PARITY - 1)
        self.left -= PARITY - 1
        most = max(2, self.left // (2 * self.how.rounds))
        self.steps = max(2, min(most, int(self.how.turn_s / step_s)))

    def turn(self) -> Turn:
        """Take one turn."""
        made, taken = self.clock.watch(lambda: self.child.ask("decode", count=self.steps))
        return Turn(made["wall_s"] * 1e3 / self.steps, taken)


def _policy_settings(text: str) -> dict[str, Any]:
    """Read a policy -> its name and the parameters that are not defaults, as JSON values."""
    policy = parse_policy(text)
    plain = type(policy)()
    names = [f.name for f in dataclasses.fields(policy)]
    values = {n: getattr(policy, n) for n in names if getattr(policy, n) != getattr(plain, n)}
    return {"name": text.partition(":")[0], "params": values}


def prompt_ids(model: BenchModel, length: int) -> list[int]:
    """Draw a prompt of ids that are no bytes and not the end."""
    draw = random.Random(length)
    low = min(256, model.vocab // 2)
    return [draw.randrange(low, model.vocab - 1) for _ in range(length)]
