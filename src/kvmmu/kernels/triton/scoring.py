"""The second half of a fused step: a head's new scores and its next victim, in Triton.

score_slots   what attend_slots (no splits) and finish_slots end with
choose_slots  one program per (lane, KV head), or per lane where heads share a victim: the next
              victim alone; the last launch of a step with per_layer, and all of a refresh
"""
# mypy: disallow-untyped-defs=false, disallow-untyped-decorators=false
# mypy: disallow-untyped-calls=false, disallow-incomplete-defs=false

from __future__ import annotations

import triton
import triton.language as tl

from kvmmu.kernels.triton.ranking import first_least, ranks_of, running_least, settle_least

__all__ = ["choose_slots", "score_slots"]


@triton.jit
def score_slots(
    logits,
    positions,
    scores,
    peak,
    total,
    position,
    decay,
    G: tl.constexpr,
    C: tl.constexpr,
    STATISTIC: tl.constexpr,
    GRACE: tl.constexpr,
    AGE: tl.constexpr,
    NUM_SINKS: tl.constexpr,
    WINDOW: tl.constexpr,
    HORIZON: tl.constexpr,
    CHOOSE: tl.constexpr,
    GS: tl.constexpr,
    BS: tl.constexpr,
):
    """Fold the probabilities into one head's scores and find its next victim -> int32 scalar.

    logits [G,C], positions and scores [C] of this (row, head); peak, total [GS].
    """
    heads = tl.arange(0, GS)
    least, least_at = first_least(AGE, BS)
    for start in range(0, C, BS):
        slots = start + tl.arange(0, BS)
        inside = slots < C
        held = tl.load(positions + slots, mask=inside, other=-1)
        score = tl.load(scores + slots, mask=inside, other=0.0)
        if STATISTIC != "none":
            rows = heads[:, None] * C + slots[None, :]
            is_own = (heads < G)[:, None] & inside[None, :]
            logit = tl.load(logits + rows, mask=is_own, other=float("-inf"))
            mass = tl.sum(tl.exp2(logit - peak[:, None]) / total[:, None], 0)
            counted = tl.where(held <= position - GRACE, mass, 0.0)
            if STATISTIC == "mass":
                score = decay * score + counted
            elif STATISTIC == "max":
                score = tl.maximum(decay * score, counted / G)
            else:
                score = mass / G
            tl.store(scores + slots, score, mask=inside)
        if CHOOSE:
            ranks = ranks_of(score, held, position + 1, AGE, NUM_SINKS, WINDOW, HORIZON)
            least, least_at = running_least(least, least_at, ranks, slots, inside)
    return settle_least(least, least_at)


@triton.jit
def choose_slots(
    lanes,
    positions,
    scores,
    num_seen,
    victims,
    HKV: tl.constexpr,
    C: tl.constexpr,
    AGE: tl.constexpr,
    NUM_SINKS: tl.constexpr,
    WINDOW: tl.constexpr,
    HORIZON: tl.constexpr,
    PER_LAYER: tl.constexpr,
    BS: tl.constexpr,
):
    """Find next victims alone. Grid (N, 1 or HKV): scores of all heads, or of one."""
    lane = tl.load(lanes + tl.program_id(0))
    if lane < 0:
        return
    here = lane.to(tl.int64) * HKV + tl.program_id(1)
    newest = tl.load(num_seen + lane)
    least, least_at = first_least(AGE, BS)
    for start in range(0, C, BS):
        slots = start + tl.arange(0, BS)
        inside = slots < C
        held = tl.load(positions + here * C + slots, mask=inside, other=-1)
        score = tl.load(scores + here * C + slots, mask=inside, other=0.0)
        if PER_LAYER:
            for other in range(1, HKV):
                score += tl.load(scores + (here + other) * C + slots, mask=inside, other=0.0)
        ranks = ranks_of(score, held, newest, AGE, NUM_SINKS, WINDOW, HORIZON)
        least, least_at = running_least(least, least_at, ranks, slots, inside)
    victim = settle_least(least, least_at)
    if PER_LAYER:
        for head in range(HKV):
            tl.store(victims + here + head, victim)
    else:
        tl.store(victims + here, victim)
