"""Who leaves first: the KV-MMU's order over a policy's, and the least of it, in Triton.

`running_least` keeps one candidate a lane of the vector, so a loop over blocks of slots needs no
exchange between threads; `settle_least` compares the lanes once at the end. A lane keeps the
first of its equals and starts at its slot of the first block with the greatest rank, so ties go
to the lowest slot. A NaN is less than nothing: it never leaves before another can, and no request
whose numbers have failed can name a slot that does not exist.
"""
# mypy: disallow-untyped-defs=false, disallow-untyped-decorators=false
# mypy: disallow-untyped-calls=false, disallow-incomplete-defs=false

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["first_least", "ranks_of", "running_least", "settle_least"]


@triton.jit
def ranks_of(
    scores,
    positions,
    newest,
    AGE: tl.constexpr,
    NUM_SINKS: tl.constexpr,
    WINDOW: tl.constexpr,
    HORIZON: tl.constexpr,
):
    """Rank slots, the least leaves: int32 by age, float32 by score; all [BS], newest a scalar.

    HORIZON 0 means none. Ages stay integers because float32 rounds positions past 2**24.
    """
    if AGE:
        ranks = _in_order(
            positions,
            positions,
            newest,
            2147483647,
            -2147483647,
            -2147483648,
            NUM_SINKS,
            WINDOW,
            HORIZON,
        )
    else:
        ranks = _in_order(
            scores,
            positions,
            newest,
            float("inf"),
            -3.4028234663852886e38,
            float("-inf"),
            NUM_SINKS,
            WINDOW,
            HORIZON,
        )
    return ranks


@triton.jit
def _in_order(
    ranks,
    positions,
    newest,
    LAST: tl.constexpr,
    EARLY: tl.constexpr,
    FIRST: tl.constexpr,
    NUM_SINKS: tl.constexpr,
    WINDOW: tl.constexpr,
    HORIZON: tl.constexpr,
):
    """Put the KV-MMU's order over a policy's: protected last, out of reach early, empty first."""
    is_protected = (positions < NUM_SINKS) | (positions > newest - WINDOW)
    ranks = tl.where(is_protected, LAST, ranks)
    if HORIZON > 0:
        ranks = tl.where(positions <= newest - HORIZON, EARLY, ranks)
    return tl.where(positions < 0, FIRST, ranks)


@triton.jit
def first_least(AGE: tl.constexpr, BS: tl.constexpr):
    """Start a running least: ranks [BS] and slots int32 [BS]."""
    if AGE:
        ranks = tl.full([BS], 2147483647, tl.int32)
    else:
        ranks = tl.full([BS], float("inf"), tl.float32)
    return ranks, tl.arange(0, BS)


@triton.jit
def running_least(least, at, ranks, slots, inside):
    """Fold a block of slots into a running least; all [BS]."""
    is_less = (ranks < least) & inside
    return tl.where(is_less, ranks, least), tl.where(is_less, slots, at)


@triton.jit
def settle_least(least, at):
    """Name the lowest slot among the lanes of least rank. -> int32 scalar."""
    return tl.min(tl.where(least == tl.min(least, 0), at, 2147483647), 0)
