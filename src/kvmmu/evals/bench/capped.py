"""Throughput under a fixed memory of K and V: many requests, a cap, how long until all are done.

Every candidate that can serve gets the same requests and the same cap in tokens of K and V. Who
holds C slots serves cap // C users at once; a full cache that is not paged serves
cap // (prompt + new tokens); a paged one decides for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from kvmmu.evals.bench.candidates import Candidate
from kvmmu.evals.bench.convert import ConversionError
from kvmmu.evals.bench.model import BenchModel
from kvmmu.evals.bench.process import ChildError
from kvmmu.evals.bench.worker import Point, Timing, Worker, prompt_ids

__all__ = ["Capped", "measure_capped"]


@dataclass(frozen=True)
class Capped:
    """`num_requests` prompts of `prompt` tokens, each answered with `new_tokens`, C slots."""

    num_requests: int = 12
    prompt: int = 1024
    new_tokens: int = 384
    num_slots: int = 256


def measure_capped(
    candidates: list[Candidate],
    cap_tokens: int | None,
    work: Capped,
    model: BenchModel,
    how: Timing,
    *,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Serve the requests with every candidate once, one after another; a row each."""
    prompts = [
        [(x + n) % (model.vocab - 300) + 256 for x in prompt_ids(model, work.prompt)]
        for n in range(work.num_requests)
    ]
    rows = []
    for c in candidates:
        if not c.has_serve or c.name.endswith("-no-scores"):
            continue
        say(f"{c.name}: {work.num_requests} requests, cap {cap_tokens or 'none'}")
        try:
            rows.append(_serve(c, cap_tokens, work, model, how, prompts))
        except (ChildError, ConversionError) as error:
            rows.append({"candidate": c.name, "status": "failed", "reason": str(error)})
    return {"cap_tokens": cap_tokens, "num_slots": work.num_slots, "rows": rows}


def _serve(
    c: Candidate,
    cap_tokens: int | None,
    work: Capped,
    model: BenchModel,
    how: Timing,
    prompts: list[list[int]],
) -> dict[str, Any]:
    point = Point(work.num_requests, work.prompt + work.new_tokens, work.num_slots)
    worker = Worker(c, point, model, replace(how))
    with worker.child as child:
        child.ask("prefill", prompts=[prompts[0][:320]])
        child.ask("decode", count=4)
        child.ask("clear")
        made, taken = worker.clock.watch(
            lambda: child.ask(
                "serve", prompts=prompts, new_tokens=work.new_tokens, cap_tokens=cap_tokens
            )
        )
    value, wanted = made["value"], work.num_requests * work.new_tokens
    if value["num_tokens"] != wanted:
        raise ChildError(f"gave {value['num_tokens']:,} of {wanted:,} tokens")
    return {
        "candidate": c.name,
        "precision": c.precision,
        "status": "ok",
        "tokens_per_s": value["num_tokens"] / made["wall_s"],
        "wall_s": made["wall_s"],
        "most_users": value.get("most_users"),
        "growth_bytes": made["peak_bytes"] - made["before_bytes"],
        "taken": taken,
    }
