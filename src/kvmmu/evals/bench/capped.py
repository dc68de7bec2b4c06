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

_MOST_ROUNDS = 3
"""Rounds under a cap: each serves all requests, so few are enough and many take long."""


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
    """Serve the requests with every candidate in turn, some rounds of it; a row each."""
    prompts = [
        [(x + n) % (model.vocab - 300) + 256 for x in prompt_ids(model, work.prompt)]
        for n in range(work.num_requests)
    ]
    able = [c for c in candidates if c.has_serve and not c.name.endswith("-no-scores")]
    found: dict[str, list[dict[str, Any]]] = {c.name: [] for c in able}
    for turn in range(min(_MOST_ROUNDS, how.rounds)):
        for c in able if turn % 2 == 0 else able[::-1]:
            if found[c.name] and found[c.name][-1]["status"] != "ok":
                continue
            say(f"{c.name}: {work.num_requests} requests, cap {cap_tokens or 'none'}")
            try:
                found[c.name].append(_serve(c, cap_tokens, work, model, how, prompts))
            except (ChildError, ConversionError) as error:
                failed = {"candidate": c.name, "status": "failed", "reason": str(error)}
                found[c.name].append(failed)
    rows = [_middle(found[c.name]) for c in able]
    return {"cap_tokens": cap_tokens, "num_slots": work.num_slots, "rows": rows}


def _middle(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the round of median speed, the lower one of two, with the range of all of them."""
    if rounds[-1]["status"] != "ok":
        return rounds[-1]
    ordered = sorted(rounds, key=lambda row: row["tokens_per_s"])
    middle = ordered[(len(ordered) - 1) // 2]
    ends = (ordered[0]["tokens_per_s"], ordered[-1]["tokens_per_s"])
    return middle | {"range_tokens_per_s": ends, "num_rounds": len(ordered)}


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
