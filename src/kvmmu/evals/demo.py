"""The demonstration: full caches beside constant-size ones, on one model, one book, one run."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from kvmmu import __version__
from kvmmu.evals.answers import Score, feed, score
from kvmmu.evals.costs import decode_rates, peak_nbytes
from kvmmu.evals.settings import Setting
from kvmmu.evals.source import Source
from kvmmu.evals.streams import Stream, draw, pages
from kvmmu.evals.tasks.base import Mode, Task
from kvmmu.evals.tasks.hot_set import HotSet
from kvmmu.evals.tasks.niah_multikey import MultiKey
from kvmmu.hf.lm import LM
from kvmmu.hf.record import record

__all__ = ["Demo", "Plan"]

TASKS: dict[str, tuple[Task, Mode]] = {
    "hot_set": (HotSet(), "online"),
    "question_seen": (MultiKey(), "seen"),
    "late_query": (MultiKey(), "late"),
}
FULL = (Setting("static"), Setting("dynamic"))
TRACED = Setting("slots", "rce", 8)


@dataclass(frozen=True)
class Plan:
    """How large a demonstration is; rows are contexts, of which each asks several questions.

    The table shows `compressions`; the picture shows `more_compressions` too.
    """

    num_tokens: int = 512
    rows: tuple[tuple[str, int], ...] = (
        ("hot_set", 8),
        ("question_seen", 104),
        ("late_query", 26),
    )
    num_pages: int = 16
    num_scored: int = 64
    policies: tuple[str, ...] = ("rce", "novelty", "snapkv", "streaming_llm")
    compressions: tuple[float, ...] = (4, 8)
    more_compressions: tuple[float, ...] = (2,)

    @classmethod
    def quick(cls) -> Plan:
        """Return a shorter demonstration: shorter texts, fewer questions, wider error bars."""
        rows = (("hot_set", 4), ("question_seen", 24), ("late_query", 10))
        return cls(384, rows, num_pages=8, num_scored=50, more_compressions=())

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The caches of the table, full ones first."""
        return FULL + self._slots(self.compressions)

    @property
    def more_settings(self) -> tuple[Setting, ...]:
        """The caches that the picture shows beside them."""
        return self._slots(self.more_compressions)

    def _slots(self, compressions: tuple[float, ...]) -> tuple[Setting, ...]:
        return tuple(Setting("slots", p, c) for c in compressions for p in self.policies)


class Demo:
    """Run a plan; `num_units` says how much work it is, for a progress bar."""

    def __init__(self, lm: LM, text: str, plan: Plan, *, seed: int = 0) -> None:
        """Draw all streams. Raises ValueError if the text or the keys are too few."""
        self.lm, self.plan, self.seed = lm, plan, seed
        source = Source.make(text, lm.tokenizer)
        N = plan.num_tokens
        self.tasks = {
            name: draw(task, [source], num_tokens=N, num_rows=rows, seed=seed, mode=mode)
            for name, rows in plan.rows
            for task, mode in [TASKS[name]]
        }
        self.pages = pages(
            source, num_tokens=N, num_scored=plan.num_scored, num_rows=plan.num_pages, seed=seed
        )

    @property
    def num_units(self) -> int:
        """Count the units of work that run() will report."""
        plan, N = self.plan, self.plan.num_tokens
        tasks = sum((N - 1) * _weight(stream) for stream in self.tasks.values())
        pages = (N - 1) * _weight(self.pages)
        count = len(plan.settings)
        return tasks * (count + len(plan.more_settings)) + pages * 3 * count

    def run(
        self, folder: Path, *, advance: Callable[[int], None], say: Callable[[str], None]
    ) -> dict[str, Any]:
        """Measure everything; write the trace into the folder. Returns JSON values."""
        with _threads_for(self.lm.model):
            return self._run(folder, advance, say)

    def _run(
        self, folder: Path, advance: Callable[[int], None], say: Callable[[str], None]
    ) -> dict[str, Any]:
        plan = self.plan
        results = [self._judge(setting, advance, say, has_pages=True) for setting in plan.settings]
        say("decode speed")
        rates = decode_rates(self.lm.model, self.pages, plan.settings)
        advance((plan.num_tokens - 1) * _weight(self.pages) * len(plan.settings))
        for row, setting, rate in zip(results, plan.settings, rates, strict=True):
            say(f"memory of {setting.label}")
            row["tokens_per_s"] = round(rate, 1)
            row["peak_bytes"] = peak_nbytes(self.lm.model, self.pages, setting)
            advance((plan.num_tokens - 1) * _weight(self.pages))
        more = [self._judge(s, advance, say, has_pages=False) for s in plan.more_settings]
        say("trace")
        return self._about() | {
            "caches": results,
            "more_caches": more,
            "trace": self._trace(folder / "rce.trace"),
        }

    def _judge(
        self,
        setting: Setting,
        advance: Callable[[int], None],
        say: Callable[[str], None],
        *,
        has_pages: bool,
    ) -> dict[str, Any]:
        """Score one cache on the tasks and, for the table, on the book's pages."""
        answers: dict[str, Any] = {}
        for name, stream in self.tasks.items():
            say(f"{setting.label}: {name}")
            made = self._score(stream, setting, advance)
            answers[name] = {"right": made.num_right, "total": len(made.is_exact)}
        N = self.plan.num_tokens
        row: dict[str, Any] = {
            "label": setting.label,
            "kind": setting.kind,
            "compression": setting.compression,
            "granularity": setting.granularity,
            "policy": setting.policy if setting.kind == "slots" else None,
            "num_slots": setting.num_slots(N),
            "num_tokens": N,
            "chunk_size": setting.call_size(N),
            "answers": answers,
        }
        if has_pages:
            say(f"{setting.label}: next pages")
            made = self._score(self.pages, setting, advance)
            row["perplexity"] = round(made.perplexity, 3)
            row["num_scored"] = made.num_scored
            row["kv_bytes"] = made.kv_bytes // self.plan.num_pages
        return row

    def _score(self, stream: Stream, setting: Setting, advance: Callable[[int], None]) -> Score:
        weight = _weight(stream)
        return score(self.lm.model, stream, setting, tick=lambda n: advance(n * weight))

    def _trace(self, path: Path) -> dict[str, Any]:
        """Record one row of the hot set, and say where its facts stand."""
        stream, setting, model = self.tasks["hot_set"].row(0), TRACED, self.lm.model
        N = stream.num_tokens
        cache = setting.make(model, batch_size=1, num_tokens=N)
        with setting.enabled(model), record(cache, path, model_name=model.name_or_path or None):
            feed(model, cache, stream, chunk=setting.call_size(N))
        lengths = {a.key: a.stop - a.start for a in stream.answers}
        usual = max(lengths.values(), default=0)
        return {
            "file": path.name,
            "label": setting.label,
            "num_tokens": N,
            "num_context": stream.num_context,
            "facts": [
                {"key": key, "start": start, "stop": start + usual + 1}
                for key, start in stream.facts[0].items()
            ],
            "questions": [{"key": a.key, "at": a.start} for a in stream.answers],
        }

    def _about(self) -> dict[str, Any]:
        """Say what was run where."""
        model, plan = self.lm.model, self.plan
        return {
            "kvmmu_version": __version__,
            "model": Path(model.name_or_path or "model").name,
            "num_parameters": sum(p.numel() for p in model.parameters()),
            "dtype": str(model.dtype).removeprefix("torch."),
            "num_tokens": plan.num_tokens,
            "num_pages": plan.num_pages,
            "seed": self.seed,
            "tasks": list(TASKS),
            "host": {
                "machine": platform.machine(),
                "system": platform.system(),
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "transformers": version("transformers"),
                "threads": torch.get_num_threads(),
            },
        }


@contextmanager
def _threads_for(model: Any) -> Iterator[None]:
    """Run a small model on one thread: its steps are too short to share between cores.

    With other work on the machine, two threads took more than twice as long as one (295 s, 121 s).
    """
    before = torch.get_num_threads()
    if sum(p.numel() for p in model.parameters()) < 2e7:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _weight(stream: Stream) -> int:
    """Weigh a token of all rows: a call costs about as much as 24 rows, whatever it carries."""
    return 24 + int(stream.ids.shape[0])
