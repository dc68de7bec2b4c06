"""Hot set: a few records are asked again and again while the text goes on (Zipf-distributed)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvmmu.evals.source import Source
from kvmmu.evals.tasks.base import (
    TASKS,
    Instance,
    Mode,
    Query,
    Task,
    compose,
    digits,
    draw_keys,
    one_of,
)

__all__ = ["HotSet"]


@TASKS.register("hot_set")
@dataclass(frozen=True)
class HotSet(Task):
    """Records as in niah_multikey; the r-th hottest is asked with weight r ** -exponent."""

    capability = "string retrieval"
    modes = ("online",)
    question = "which digits stand behind this key (again)?"

    num_records: int | None = None
    num_queries: int | None = None
    exponent: float = 1.0

    def draw(
        self, source: Source, *, num_tokens: int, mode: Mode, rng: np.random.Generator
    ) -> Instance:
        """Draw a record in 48 tokens, in the first third, and a question in 32."""
        self.check_mode(mode)
        num = self._num_records(num_tokens)
        num_queries = self.num_queries or max(2, num_tokens // 32)
        keys = draw_keys(source, num, rng)
        values = [digits(rng) for _ in keys]
        weights = np.arange(1, num + 1, dtype=np.float64) ** -self.exponent
        ranks = rng.permutation(num)  # a record's place in the text says nothing of its heat
        asked = ranks[rng.choice(num, size=num_queries, p=weights / weights.sum())].tolist()
        encode = source.encode
        queries = [
            Query(tuple(encode(f" ? {keys[i]}")), tuple(encode(f" {values[i]}")), key=keys[i])
            for i in asked
        ]
        pieces = [tuple(encode(f" {k} {v}.")) for k, v in zip(keys, values, strict=True)]
        return compose(
            source, pieces, queries, num_tokens=num_tokens, mode=mode, rng=rng, names=keys
        )

    def chance(self, num_tokens: int) -> float:
        """Copy the digits of any record."""
        return one_of(self._num_records(num_tokens))

    def _num_records(self, num_tokens: int) -> int:
        return self.num_records or max(2, num_tokens // 48)
