"""The whole benchmark: every point of the grid, then the memory caps; resumable.

DIR/points.jsonl holds a line for what was measured with whom; a line is appended as each point
ends. A point whose rounds were all void is measured again by the next run.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from kvmmu import __version__
from kvmmu.evals.bench.candidates import Candidate, absent_reason
from kvmmu.evals.bench.capped import Capped, measure_capped
from kvmmu.evals.bench.model import BenchModel
from kvmmu.evals.bench.point import measure_point
from kvmmu.evals.bench.worker import Point, Timing

__all__ = ["Bench", "Plan"]

NAME = "points.jsonl"


@dataclass(frozen=True)
class Plan:
    """What is measured: points in rising order, candidates, how, and the memory caps."""

    points: tuple[Point, ...]
    candidates: tuple[Candidate, ...]
    how: Timing
    caps: tuple[int, ...] = ()
    capped: Capped = field(default_factory=Capped)


class Bench:
    """A run in a folder; `run` measures what is missing and returns everything."""

    def __init__(self, model: BenchModel, plan: Plan, folder: Path) -> None:
        """Read what the folder holds. Raises ValueError if it is of another model."""
        self.model, self.plan, self.folder = model, plan, folder
        self.path = folder / NAME
        self.done: dict[str, dict[str, Any]] = {}
        about = {
            "kind": "about",
            "model": model.name,
            "fingerprint": model.fingerprint,
            "threads": plan.how.threads,
        }
        if self.path.exists():
            self._load(about)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self._append(about)

    def _load(self, about: dict[str, Any]) -> None:
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            first = lines[0] if lines else about
        except ValueError as error:
            raise ValueError(
                f"{self.path} must hold a JSON object in every line; choose another --output"
            ) from error
        if first != about:
            raise ValueError(
                f"{self.path} must be of the same model and threads, {about}, got {first}; choose "
                "another --output"
            )
        self.path.write_bytes(whole or json.dumps(about).encode() + b"\n")  # cut off half a line
        self.done = {line["key"]: line for line in lines if "key" in line}

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if "key" in line:
            self.done[line["key"]] = line

    @property
    def total(self) -> int:
        """Count points and caps."""
        return len(self.plan.points) + len(self.plan.caps)

    def run(self, *, advance: Callable[[int], None], say: Callable[[str], None]) -> dict[str, Any]:
        """Measure what is missing; returns the result as JSON values."""
        absent = self._absent()
        present = [c for c in self.plan.candidates if c.name not in absent]
        rates = self._rates()
        points, caps = [], []
        for point in self.plan.points:
            points.append(self._point(point, present, rates, say))
            advance(1)
        for cap in self.plan.caps:
            caps.append(self._cap(cap, present, say))
            advance(1)
        return self._result(points, caps, absent)

    def _point(
        self,
        point: Point,
        present: list[Candidate],
        rates: dict[str, float],
        say: Callable[[str], None],
    ) -> dict[str, Any]:
        """Return a point's line, measured now if it is not there."""
        how = self.plan.how
        asked = {"policy": how.policy, "rounds": how.rounds, "turn_s": how.turn_s}
        key = json.dumps(["point", asdict(point), asked, [c.name for c in present]])
        if key not in self.done:
            where = f"batch {point.batch}, {point.context:,} tokens, C {point.num_slots:,}"

            def say_where(text: str) -> None:
                say(f"{where}: {text}")

            groups = measure_point(present, point, self.model, how, rates=rates, say=say_where)
            line = {"kind": "point", "key": key, "groups": groups}
            self._keep(line, is_final=not any(g["is_void"] for g in groups))
        return self.done[key]

    def _cap(
        self, cap: int, present: list[Candidate], say: Callable[[str], None]
    ) -> dict[str, Any]:
        """Return a cap's line, measured now if it is not there."""
        how, work = self.plan.how, self.plan.capped
        key = json.dumps(["cap", cap, asdict(work), how.policy, [c.name for c in present]])
        if key not in self.done:
            made = measure_capped(present, cap, work, self.model, how, say=say)
            self._keep({"kind": "cap", "key": key, **made}, is_final=True)
        return self.done[key]

    def _keep(self, line: dict[str, Any], *, is_final: bool) -> None:
        """Append a line; of a void point, remember it for this run only."""
        line = json.loads(json.dumps(line))  # as it will be read back
        if is_final:
            self._append(line)
        else:
            self.done[line["key"]] = line

    def _absent(self) -> dict[str, str]:
        """Say of each candidate that is not installed what is missing."""
        reasons: dict[str, str] = {}
        known: dict[tuple[str, ...], str | None] = {}
        for c in self.plan.candidates:
            where = (c.family, *c.packages)
            if where not in known:
                known[where] = absent_reason(c, self.plan.how.pythons)
            reason = known[where]
            if reason:
                reasons[c.name] = reason
        return reasons

    def _rates(self) -> dict[str, float]:
        """Collect prefill rates of finished points."""
        rates: dict[str, float] = {}
        for line in self.done.values():
            for group in line.get("groups", ()):
                for row in group["rows"]:
                    if row["status"] == "ok":
                        rates[row["candidate"]] = row["prefill_tokens_per_s"]
        return rates

    def _result(
        self, points: list[dict[str, Any]], caps: list[dict[str, Any]], absent: dict[str, str]
    ) -> dict[str, Any]:
        plan = self.plan
        return {
            "benchmark": "kvmmu bench",
            "host": _host(plan.how.threads),
            "model": self.model.name,
            "weight_bytes": self.model.weight_bytes,
            "policy": plan.how.policy,
            "rounds": plan.how.rounds,
            "absent": [{"candidate": name, "reason": text} for name, text in absent.items()],
            "points": [{"groups": line["groups"]} for line in points],
            "capped": {**asdict(plan.capped), "caps": [_without_key(line) for line in caps]},
        }


def _without_key(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in ("key", "kind")}


def _host(threads: int) -> dict[str, Any]:
    """Describe the machine without naming it."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": threads,
        "torch": torch.__version__,
        "kvmmu": __version__,
        "python": platform.python_version(),
    }
