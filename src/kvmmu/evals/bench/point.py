"""One point of the grid: every candidate at one batch, context and C, in alternated rounds.

Candidates that do not fit memory together are measured in groups; ours are in every group, so
that each ratio is of one run. Prompts of a batch are alike; a peer that can copies the row it has
read (its `fans_out`), the others read them all.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from kvmmu.evals.bench.candidates import BANDWIDTH, NO_SCORES, Candidate
from kvmmu.evals.bench.convert import ConversionError
from kvmmu.evals.bench.model import BenchModel
from kvmmu.evals.bench.process import ChildError
from kvmmu.evals.bench.rounds import Rounds, Turn, alternate, quartiles
from kvmmu.evals.bench.worker import Point, Timing, Worker, prompt_ids

__all__ = ["measure_point"]


def measure_point(
    candidates: list[Candidate],
    point: Point,
    model: BenchModel,
    how: Timing,
    *,
    rates: dict[str, float],
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Measure all candidates; returns a group's result for each group, failed rows included.

    `rates` holds prefill tokens/s by candidate as far as known, and is added to.
    """
    groups = []
    for group in _groups(candidates, point, model):
        groups.append(_measure_group(group, point, model, how, rates=rates, say=say))
    return groups


def _groups(candidates: list[Candidate], point: Point, model: BenchModel) -> list[list[Candidate]]:
    """Put peers into groups that fit into four fifths of the free memory beside ours."""
    ours = [c for c in candidates if c.is_ours]
    own = sum(_needed_bytes(c, point, model) for c in ours)
    free = 0.8 * model.free_bytes() - own
    groups: list[list[Candidate]] = [[]]
    left = free
    for c in candidates:
        if c.is_ours:
            continue
        needed = _needed_bytes(c, point, model)
        if needed > left and groups[-1]:
            groups.append([])
            left = free
        groups[-1].append(c)
        left -= needed
    return [ours + peers for peers in groups]


def _needed_bytes(c: Candidate, point: Point, model: BenchModel) -> int:
    """Guess what a candidate's process takes: weights twice, K and V, and a base."""
    tokens = point.num_slots if c.holds == "slots" else point.context + point.room
    kv = tokens * point.batch * model.kv_elements_per_token * c.kv_element_bytes
    twice = 1.6 if c.name.startswith("transformers-dynamic") else 1.1  # cat copies as it grows
    return int(kv * twice + 2 * model.weight_bytes + 6e8)


def _measure_group(
    group: list[Candidate],
    point: Point,
    model: BenchModel,
    how: Timing,
    *,
    rates: dict[str, float],
    say: Callable[[str], None],
) -> dict[str, Any]:
    prompt = prompt_ids(model, point.context)
    rows: dict[str, dict[str, Any]] = {}
    workers: dict[str, Worker] = {}
    try:
        for c in [BANDWIDTH, *group]:
            say(f"{c.name}: prefill")
            reason = _too_much(c, point, model, how, rates)
            if reason:
                rows[c.name] = _failed(c, "skipped", reason)
                continue
            try:
                worker = Worker(c, point, model, how)
                workers[c.name] = worker
                if c is not BANDWIDTH:
                    worker.prefill(prompt)
                    rates[c.name] = worker.figures["prefill_tokens_per_s"]
                worker.first_tokens()
            except (ChildError, ConversionError) as error:
                rows[c.name] = _failed(c, "failed", str(error))
                _drop(workers, c.name)
        rounds = _rounds(workers, rows, how, say)
        return _result(point, group, workers, rows, rounds, model)
    finally:
        for worker in workers.values():
            worker.child.close()


def _drop(workers: dict[str, Worker], name: str) -> None:
    worker = workers.pop(name, None)
    if worker is not None:
        worker.child.close()


def _rounds(
    workers: dict[str, Worker],
    rows: dict[str, dict[str, Any]],
    how: Timing,
    say: Callable[[str], None],
) -> Rounds:
    """Take the turns; a candidate that fails in one leaves, and the rounds begin again."""
    while True:
        say("decode, in turns: " + ", ".join(n for n in workers if n != BANDWIDTH.name))
        failed: list[str] = []

        def step(name: str) -> Callable[[], Turn]:
            def take() -> Turn:
                try:
                    return workers[name].turn()
                except ChildError as error:
                    rows[name] = _failed(workers[name].candidate, "failed", str(error))
                    failed.append(name)  # noqa: B023
                    raise

            return take

        try:
            return alternate({name: step(name) for name in workers}, rounds=how.rounds)
        except ChildError:
            for name in failed:
                _drop(workers, name)


def _too_much(
    c: Candidate, point: Point, model: BenchModel, how: Timing, rates: dict[str, float]
) -> str | None:
    """Say why a candidate is not tried: memory, or a prefill known to be too long."""
    needed, free = _needed_bytes(c, point, model), model.free_bytes()
    if needed > free:
        return f"needs about {needed / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free"
    rows = point.batch if c.family in ("openvino-genai",) or c.name.startswith("engine") else 1
    rate = rates.get(c.name)
    if rate and rows * point.context / rate > how.max_prefill_s:
        seconds = rows * point.context / rate
        return (
            f"prefill of {rows * point.context:,} tokens would take {seconds:.0f} s or more; "
            "raise --max-prefill-s"
        )
    return None


def _failed(c: Candidate, status: str, reason: str) -> dict[str, Any]:
    return {"candidate": c.name, "status": status, "reason": reason}


def _result(
    point: Point,
    group: list[Candidate],
    workers: dict[str, Worker],
    rows: dict[str, dict[str, Any]],
    rounds: Rounds,
    model: BenchModel,
) -> dict[str, Any]:
    """Put a group's figures together."""
    read_gbps = 0.0
    if BANDWIDTH.name in workers:
        size = workers[BANDWIDTH.name].figures["weight_bytes"]
        read_gbps = size / min(rounds.times_ms(BANDWIDTH.name)) / 1e6
    exact = workers.get("transformers-dynamic")
    for c in group:
        if c.name in workers:
            rows[c.name] = _row(c, workers, rounds, point, model, read_gbps)
            if exact and exact.tokens and (c.is_exact or c.holds == "slots"):
                pairs = zip(workers[c.name].tokens, exact.tokens)
                same = [mine == theirs for mine, theirs in pairs]
                equal = same.index(False) if False in same else len(same)
                must = c.is_exact or (c.precision == "fp32" and point.num_slots >= point.context)
                rows[c.name] |= {"tokens_equal": equal, "tokens_of": len(same)}
                rows[c.name]["must_equal"] = must
    return {
        "batch": point.batch,
        "context": point.context,
        "num_slots": point.num_slots,
        "read_gbps": read_gbps,
        "read_turns_taken": [round(turn.taken, 3) for turn in rounds.turns.get(BANDWIDTH.name, ())],
        "num_rounds": rounds.num_rounds,
        "num_valid_rounds": len(rounds.valid),
        "is_void": rounds.is_void,
        "rows": [rows[c.name] for c in group],
    }


def _row(
    c: Candidate,
    workers: dict[str, Worker],
    rounds: Rounds,
    point: Point,
    model: BenchModel,
    read_gbps: float,
) -> dict[str, Any]:
    """Collect one candidate's figures."""
    worker, step_ms = workers[c.name], rounds.median_ms(c.name)
    tokens = point.num_slots if c.holds != "full" else point.context
    kv = point.batch * tokens * model.kv_elements_per_token * c.kv_element_bytes
    bound_ms = (worker.figures["weight_bytes"] + kv) / read_gbps / 1e6 if read_gbps else None
    against = {
        name: [statistics.median(x), *quartiles(x)]
        for name, other in workers.items()
        if other.candidate is not BANDWIDTH and name != c.name
        for x in [rounds.speedups(c.name, name)]
    }
    row = {
        "candidate": c.name,
        "family": c.family,
        "precision": c.precision,
        "note": c.note,
        "status": "ok",
        "step_ms": step_ms,
        "step_quartiles_ms": quartiles(rounds.times_ms(c.name)),
        "decode_tokens_per_s": point.batch * 1e3 / step_ms,
        "bound_ms": bound_ms,
        "over_bound": step_ms / bound_ms if bound_ms else None,
        "steps_a_turn": worker.steps,
        "turns_taken": [round(turn.taken, 3) for turn in rounds.turns[c.name]],
        "speedup_over": against,
        **worker.figures,
    }
    without = c.name + "-no-scores"
    if without in workers and not rounds.is_void and c.settings.get("policy") != NO_SCORES:
        shares = [1 - 1 / x for x in rounds.speedups(without, c.name)]
        row["upkeep_share"] = [statistics.median(shares), *quartiles(shares)]
    return row
