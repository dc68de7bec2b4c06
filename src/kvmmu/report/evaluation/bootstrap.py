"""Intervals by resampling contexts: questions of one context stand or fall together."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["CONFIDENCE", "NUM_DRAWS", "draw_ratios", "draw_weights", "interval", "unseen"]

NUM_DRAWS = 2000
CONFIDENCE = 0.95

Draws = NDArray[np.float64]


def draw_weights(name: str, num_contexts: int) -> Draws:
    """Draw how often each context is taken, [NUM_DRAWS,K]: the same for the same name and K.

    All settings measured on a cell share its draws, so that their differences are paired too.
    """
    rng = np.random.default_rng(zlib.crc32(f"{name}/{num_contexts}".encode()))
    share = np.full(num_contexts, 1 / num_contexts)
    return rng.multinomial(num_contexts, share, size=NUM_DRAWS).astype(np.float64)


def draw_ratios(rows: NDArray[np.float64], weights: Draws) -> Draws:
    """Return sum of the first column / sum of the second in each draw. rows [K,2] -> [NUM_DRAWS]"""
    sums = weights @ rows  # [NUM_DRAWS,2]
    return np.asarray(sums[:, 0] / np.maximum(sums[:, 1], 1e-12))


def unseen(num_contexts: int, num_answers: int) -> float:
    """Return how far a mean may lie from one that K contexts show alike, for want of contexts.

    A harm that K contexts did not show may befall 1 - 0.025**(1/K) of all (Clopper and Pearson);
    it is counted as one answer lost in each, so with one answer a context the bound is exact.
    """
    K = max(num_contexts, 1)
    return float(1 - ((1 - CONFIDENCE) / 2) ** (1 / K)) * K / max(num_answers, K)


def interval(
    draws: Draws,
    estimate: float,
    *,
    reach: float = 0.0,
    low: float = -np.inf,
    high: float = np.inf,
) -> list[float]:
    """Return the percentile interval, with the estimate and its reach inside.

    Where contexts score alike resampling sees no spread; `reach`, from unseen(), is what they
    leave open. It counts within [low, high], the ends that the figure can take.
    """
    tail = 100 * (1 - CONFIDENCE) / 2
    lower, upper = np.nanpercentile(draws, [tail, 100 - tail])
    lower = min(lower, max(estimate - reach, low), estimate)
    upper = max(upper, min(estimate + reach, high), estimate)
    return [float(lower), float(upper)]
