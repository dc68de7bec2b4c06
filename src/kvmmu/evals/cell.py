"""One cell of an evaluation: a case answered under a setting, as rows of a results file."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from kvmmu.evals.agreement import has_integer_scores, watch
from kvmmu.evals.answers import Tick, feed, judge
from kvmmu.evals.cases import PERPLEXITY, PUBLISHED, TEXTS, Case
from kvmmu.evals.documents import longest_text
from kvmmu.evals.published import run_published
from kvmmu.evals.settings import Setting, kv_nbytes
from kvmmu.evals.source import Source
from kvmmu.evals.streams import Stream, draw, pages
from kvmmu.hf.cache import SlotCache
from kvmmu.hf.lm import LM
from kvmmu.policies.base import POLICIES
from kvmmu.trace.agreement import VictimTally

__all__ = ["Cell", "cost", "describe_setting", "run_cell", "skipped"]

NUM_AGES = 24
"""Bins of the survivors' histogram, from the newest token to the oldest."""


@dataclass(frozen=True)
class Cell:
    """A case, a setting and a seed."""

    case: Case
    setting: Setting
    seed: int

    @property
    def key(self) -> str:
        """Name the cell: two cells with one key have one result."""
        setting = self.setting
        return f"{self.case.key}|{setting.label}|{setting.granularity}|{self.seed}"


def make_stream(case: Case, sources: Mapping[str, Source], seed: int) -> Stream:
    """Draw all rows of a case. Raises ValueError if text or keys do not suffice."""
    if case.task == PERPLEXITY:
        source = sources[case.text or TEXTS[0]]
        num_scored = min(case.num_tokens // 4, 512)
        num_rows = max(1, math.ceil(case.size / num_scored))
        num_rows = max(1, min(num_rows, len(source.filler) // case.num_tokens))
        return pages(
            source, num_tokens=case.num_tokens, num_scored=num_scored, num_rows=num_rows, seed=seed
        )
    texts = [sources[name] for name in sources]
    task = case.make()
    one = draw(task, texts, num_tokens=case.num_tokens, num_rows=1, seed=seed, mode=case.mode)
    num_rows = math.ceil(case.size / max(1, len(one.answers)))
    return draw(
        task, texts, num_tokens=case.num_tokens, num_rows=num_rows, seed=seed, mode=case.mode
    )


def cost(cell: Cell, stream_rows: int) -> int:
    """Estimate a cell's work in units of a decode step of one row, for a progress bar."""
    if cell.case.mode == PUBLISHED:
        return cell.case.size * 4096
    N = cell.case.num_tokens
    share = {"online": 0.75, "late": 0.05, "shared": 0.05, "seen": 0.03}[cell.case.mode]
    if cell.case.task == PERPLEXITY:
        share = 0.25
    steps = N * share + N / cell.setting.chunk_size(N)
    return int(steps * (24 + stream_rows)) + 1


@torch.inference_mode()
def run_cell(
    cell: Cell,
    lm: LM,
    sources: Mapping[str, Source],
    *,
    batch_size: int,
    tick: Tick | None = None,
) -> list[dict[str, Any]]:
    """Measure one cell, batch_size contexts at a time. Returns JSON rows (see results.py)."""
    began = time.perf_counter()
    case = cell.case
    if case.mode == PUBLISHED:
        about = {"kind": "answers", "key": cell.key, "task": case.task, "text": None}
        about |= describe_setting(cell.setting) | {"chance": 0.0, "seed": cell.seed}
        return [about | run_published(case, cell.setting, lm)]
    try:
        stream = make_stream(case, sources, cell.seed)
    except ValueError as error:
        key = f"{case.key}|skipped|{cell.seed}"
        return [skipped(case, f"cannot be drawn: {error}", key=key, seed=cell.seed)]
    most, longest = longest_text(lm), stream.num_joined
    if most is not None and longest > most:
        limit = f"at most {most} tokens (the model's trained positions and one)"
        return [skipped(case, f"text and questions must be {limit}, got {longest}")]
    made = _Made()
    for first in range(0, stream.ids.shape[0], batch_size):
        _answer(cell, lm, stream.rows(first, first + batch_size), made, tick)
    line = _describe(cell, made.kv_bytes) | {
        "kind": "pages" if case.task == PERPLEXITY else "answers",
        "rows": [[round(total, 6), count] for total, count in made.rows],
        "seconds": round(time.perf_counter() - began, 2),
    }
    extra = [_survivors(cell, made.ages, stream.num_tokens)] if made.ages else []
    if made.victims is not None:
        extra.append(_agreement(cell, made.victims))
    return [*extra, line]  # the cell's own line last: where it stands, all of the cell does


@dataclass
class _Made:
    """What a cell's contexts have come to so far."""

    rows: list[list[float]] = field(default_factory=list)
    ages: list[torch.Tensor] = field(default_factory=list)
    victims: VictimTally | None = None
    kv_bytes: int = 0


def _answer(cell: Cell, lm: LM, part: Stream, made: _Made, tick: Tick | None) -> None:
    """Answer some contexts of a cell at once."""
    setting, N = cell.setting, part.num_tokens
    B = part.ids.shape[0]
    cache = setting.make(lm.model, batch_size=B, num_tokens=N)
    if cell.case.task == PERPLEXITY and isinstance(cache, SlotCache):
        if has_integer_scores(cache.policy):
            made.victims = made.victims or VictimTally()
            watch(cache, made.victims)
    with setting.enabled(lm.model):
        guesses, losses = feed(lm.model, cache, part, chunk=setting.call_size(N), tick=tick)
    made.kv_bytes = kv_nbytes(cache) // B
    score = judge(part, guesses, losses, setting.num_slots(N), made.kv_bytes)
    if cell.case.task == PERPLEXITY:
        made.rows += [list(pair) for pair in zip(score.losses, score.counts, strict=True)]
        if isinstance(cache, SlotCache):
            made.ages.append(_kept_by_age(cache, N - 1))
        return
    sums = [[0.0, 0] for _ in range(B)]
    for answer, points in zip(part.answers, score.scores, strict=True):
        sums[answer.row][0] += points
        sums[answer.row][1] += 1
    made.rows += sums


def skipped(case: Case, reason: str, **more: Any) -> dict[str, Any]:
    """Say that a case was not measured, and why."""
    return {
        "kind": "skipped",
        "key": f"{case.key}|skipped",
        "task": case.task,
        "mode": case.mode,
        "num_tokens": case.num_tokens,
        "size": case.size,
        "params": dict(case.params),
        "reason": reason,
        "full_score": None,
        "floor": None,
    } | more


def describe_setting(setting: Setting) -> dict[str, Any]:
    """Name a setting in a row."""
    is_full = setting.kind != "slots"
    policy = None if is_full else POLICIES.make(setting.policy)
    return {
        "policy": "full" if policy is None else policy.name,
        "label": "full" if is_full else setting.policy_label,
        "policy_params": {} if policy is None else policy.params(),
        "compression": setting.compression,
        "granularity": setting.granularity,
        "ops_per_slot": 0 if policy is None else policy.ops_per_slot,
    }


def _describe(cell: Cell, kv_bytes: int) -> dict[str, Any]:
    case, setting = cell.case, cell.setting
    N = case.num_tokens
    C, T = setting.num_slots(N), setting.call_size(N)
    is_pages = case.task == PERPLEXITY
    task = None if is_pages else case.make()
    return describe_setting(setting) | {
        "key": cell.key,
        "task": case.task,
        "mode": case.mode,
        "capability": "language modelling" if task is None else task.capability,
        "num_tokens": N,
        "size": case.size,
        "params": dict(case.params),
        "text": case.text,
        "num_slots": C,
        "chunk_size": T,
        "peak_tokens": N if setting.kind != "slots" else C + T,
        "kv_bytes": kv_bytes,
        "chance": 0.0 if task is None else round(task.chance(N), 4),
        "seed": cell.seed,
    }


def _kept_by_age(cache: SlotCache, newest: int) -> torch.Tensor:
    """Count the tokens held by age, over rows, layers and heads. -> [NUM_AGES] shares."""
    edges = _edges(newest + 1)
    held = torch.cat([cache.positions(i).flatten() for i in range(len(cache.layers))]).cpu()
    age = (newest - 1 - held[held >= 0]).clamp(min=0).float()
    counts = torch.histogram(age, edges.float()).hist
    lanes = sum(cache.positions(i).shape[0] * cache.positions(i).shape[1]
                for i in range(len(cache.layers)))  # fmt: skip
    return counts / (lanes * edges.diff().float())


def _agreement(cell: Cell, victims: VictimTally) -> dict[str, Any]:
    """Say how often fp32 scores would have chosen the victims of integer scores."""
    return describe_setting(cell.setting) | {
        "kind": "agreement",
        "key": f"{cell.key}|agreement",
        "num_tokens": cell.case.num_tokens,
        "num_slots": cell.setting.num_slots(cell.case.num_tokens),
        "size": cell.case.size,
        "text": cell.case.text,
        "victims": victims.made("float32").to_json(),
    }


def _edges(num_tokens: int) -> torch.Tensor:
    return torch.linspace(0, num_tokens, NUM_AGES + 1).round()


def _survivors(cell: Cell, ages: list[torch.Tensor], num_tokens: int) -> dict[str, Any]:
    kept = torch.stack(ages).mean(0)
    return describe_setting(cell.setting) | {
        "kind": "survivors",
        "key": f"{cell.key}|survivors",
        "num_tokens": num_tokens,
        "size": cell.case.size,
        "text": cell.case.text,
        "edges": _edges(num_tokens).int().tolist(),
        "kept": [round(share, 4) for share in kept.tolist()],
    }
