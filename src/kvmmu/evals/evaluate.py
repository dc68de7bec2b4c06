"""The evaluation: every case under a full cache, then under every setting that can be measured.

    cases -> the full cache's cells -> (skipped where it fails) -> the settings' cells -> speed
Cells are independent: `jobs` processes share them, each with its own copy of the model. What is
in the results file already is not run again.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import platform
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from kvmmu import __version__
from kvmmu.evals.cases import PERPLEXITY, PUBLISHED, TEXTS, Case, floor
from kvmmu.evals.cell import Cell, cost, describe_setting, run_cell, skipped
from kvmmu.evals.results import ResultsFile
from kvmmu.evals.settings import Setting
from kvmmu.evals.source import Source, shipped_text
from kvmmu.evals.speed import common_length, speed_key, speed_lines
from kvmmu.hf.lm import LM

__all__ = ["Evaluation", "Plan"]

FULL = Setting("static")
Load = Callable[[], LM]
Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """What to evaluate, and how wide: batch_size contexts at a time, jobs processes."""

    cases: tuple[Case, ...]
    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]
    suite: str = "own"
    batch_size: int = 64
    jobs: int = 1
    has_speed: bool = True


class Evaluation:
    """Run a plan on a model; `total` and `advance` count its work for a progress bar."""

    def __init__(self, load: Load, plan: Plan, folder: Path) -> None:
        """Load the model and open the results. Raises ValueError as ResultsFile does."""
        self.load, self.plan = load, plan
        self.lm = load()
        self.file = ResultsFile(folder, _about(self.lm, plan))

    def cells(self, settings: Iterable[Setting]) -> list[Cell]:
        """List the cells of some settings, case by case; documents have no seed."""
        settings = tuple(settings)
        return [
            Cell(case, setting, seed)
            for case in self.plan.cases
            for seed in ((0,) if case.mode == PUBLISHED else self.plan.seeds)
            for setting in settings
        ]

    @property
    def total(self) -> int:
        """Estimate the work that is left."""
        cells = self.cells((FULL, *self.plan.settings))
        return sum(_weight(c) for c in cells if c.key not in self.file.done)

    def run(self, *, advance: Callable[[int], None], say: Callable[[str], None]) -> None:
        """Measure what is not yet in the file. Raises ValueError if a policy has changed."""
        with self.file.locked():
            self._check_policies()
            with _Workers(self.load, self.lm, self.plan) as workers:
                self._run(workers, self.cells((FULL,)), advance, say)
                solved = [case.key for case in self.plan.cases if self._is_solved(case)]
                todo: list[Cell] = []
                for cell in self.cells(self.plan.settings):
                    if cell.case.key in solved and self._has_full(cell):
                        todo.append(cell)
                    elif cell.key not in self.file.done:
                        advance(_weight(cell))
                self._run(workers, todo, advance, say)
            if self.plan.has_speed and self.plan.settings:
                say("decode speed")
                self._speed()

    def _run(
        self,
        workers: _Workers,
        cells: list[Cell],
        advance: Callable[[int], None],
        say: Callable[[str], None],
    ) -> None:
        todo = [cell for cell in cells if cell.key not in self.file.done]
        for cell, lines in workers.run(todo, say):
            self.file.append(lines)
            advance(_weight(cell))

    def _is_solved(self, case: Case) -> bool:
        """Tell whether the full cache passes the floor; note it in the file where it does not.

        Rows of all seeds in the file are pooled, each time anew.
        """
        start = Cell(case, FULL, 0).key.removesuffix("0")
        lines = [line for key, line in self.file.done.items() if key.startswith(start)]
        if not lines:
            return False  # it could not be asked, as its line says
        if case.task == PERPLEXITY or case.mode == PUBLISHED:
            return True
        rows = [row for line in lines for row in line["rows"]]
        share = sum(row[0] for row in rows) / sum(row[1] for row in rows)
        least = floor(lines[0]["chance"])
        if share < least:
            reason = "the full cache scores below the floor: not measurable with this model"
            about = {"full_score": round(share, 4), "floor": round(least, 4)}
            self.file.append([skipped(case, reason, **about)])
        return bool(share >= least)

    def _has_full(self, cell: Cell) -> bool:
        """Tell whether the full cache was measured on the cell's texts."""
        return Cell(cell.case, FULL, cell.seed).key in self.file.done

    def _check_policies(self) -> None:
        """Raise ValueError if a line was measured with other parameters than now."""
        N = common_length(self.plan.cases, self.lm)
        keys = [(cell.key, cell.setting) for cell in self.cells(self.plan.settings)]
        for key, setting in keys + [(speed_key(s, N), s) for s in self.plan.settings]:
            line = self.file.done.get(key, {})
            now = json.loads(json.dumps(describe_setting(setting)["policy_params"]))
            then = line.get("policy_params", now)
            for name in sorted({*now, *then}):
                if now.get(name) != then.get(name):
                    raise ValueError(
                        f"{self.file.path} holds results of {line['label']!r} with {name} "
                        f"{then.get(name)!r}, got {now.get(name)!r}; choose another --output"
                    )

    def _speed(self) -> None:
        """Time decode steps of the settings at the plan's most common length."""
        N = common_length(self.plan.cases, self.lm)
        if all(speed_key(s, N) in self.file.done for s in self.plan.settings):
            return
        source = _sources(self.lm.tokenizer)[TEXTS[0]]
        with _one_thread(self.lm.model):
            self.file.append(speed_lines(self.lm, source, FULL, self.plan.settings, N))


def _weight(cell: Cell) -> int:
    rows = cell.case.size if cell.case.mode == "seen" else max(1, cell.case.size // 4)
    return cost(cell, min(rows, 64))


# Workers ---------------------------------------------------------------------------------------
class _Workers:
    """Run cells here (jobs = 1) or in processes of their own, one model each."""

    def __init__(self, load: Load, lm: LM, plan: Plan) -> None:
        self._lm, self._plan = lm, plan
        self._pool: ProcessPoolExecutor | None = None
        if plan.jobs > 1:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                plan.jobs, mp_context=context, initializer=_begin_worker, initargs=(load,)
            )

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=error[0] is None, cancel_futures=True)

    def run(self, cells: list[Cell], say: Callable[[str], None]) -> Iterator[tuple[Cell, Lines]]:
        """Yield each cell with its lines, as they come."""
        batch = self._plan.batch_size
        if self._pool is None:
            sources = _sources(self._lm.tokenizer)
            with _one_thread(self._lm.model):
                for cell in cells:
                    say(f"{cell.case.label}: {cell.setting.label}")
                    yield cell, run_cell(cell, self._lm, sources, batch_size=batch)
            return
        futures: dict[Future[Lines], Cell] = {
            self._pool.submit(_work, cell, batch): cell for cell in cells
        }
        for future in as_completed(futures):
            cell = futures[future]
            say(f"{cell.case.label}: {cell.setting.label}")
            yield cell, future.result()


_worker_lm: LM | None = None


def _begin_worker(load: Load) -> None:
    global _worker_lm  # a process of its own holds one model
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _worker_lm = load()


def _end_with_parent() -> None:
    """Leave when the parent is gone: killed, it cannot tell its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(cell: Cell, batch_size: int) -> Lines:
    assert _worker_lm is not None
    return run_cell(cell, _worker_lm, _sources(_worker_lm.tokenizer), batch_size=batch_size)


@lru_cache(maxsize=2)
def _sources(tokenizer: Any) -> dict[str, Source]:
    return {name: Source.make(shipped_text(name), tokenizer) for name in TEXTS}


@contextmanager
def _one_thread(model: Any) -> Iterator[None]:
    """Run a small model on one thread: its steps are too short to share between cores."""
    before = torch.get_num_threads()
    if sum(p.numel() for p in model.parameters()) < 2e7:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# About -----------------------------------------------------------------------------------------
def _about(lm: LM, plan: Plan) -> dict[str, Any]:
    """Say what is evaluated and where."""
    model = lm.model
    config = model.config
    return {
        "model": Path(model.name_or_path or "model").name,
        "fingerprint": _fingerprint(model),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "num_heads": getattr(config, "num_attention_heads", None),
        "num_kv_heads": getattr(config, "num_key_value_heads", None),
        "dtype": str(model.dtype).removeprefix("torch."),
        "suite": plan.suite,
        "seeds": list(plan.seeds),
        "texts": list(TEXTS),
        "kvmmu_version": __version__,
        "host": {
            "machine": platform.machine(),
            "system": platform.system(),
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "transformers": version("transformers"),
        },
    }


def _fingerprint(model: Any) -> str:
    """Hash every parameter's name, shape and first values."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().flatten()[:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
