"""Multi-key retrieval (RULER's niah_multikey, Hsieh et al., COLM 2024, in a short form).

    record             " KEY 123."          KEY is one word, 123 any three digits (num_digits)
    question, answer   " ? KEY" -> " 123"
A text of T tokens holds T / 64 records; all but the one asked for are distractors.
"""

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

__all__ = ["MultiKey"]


@TASKS.register("niah_multikey")
@dataclass(frozen=True)
class MultiKey(Task):
    """Find the digits recorded under a key among many keys."""

    capability = "string retrieval"
    question = "which digits stand behind this key?"

    num_records: int | None = None
    num_queries: int = 4
    is_first: bool = False
    num_digits: int = 3

    def draw(
        self, source: Source, *, num_tokens: int, mode: Mode, rng: np.random.Generator
    ) -> Instance:
        """Draw records and ask for some of them, each once."""
        self.check_mode(mode)
        num = self._num_records(num_tokens)
        keys = draw_keys(source, num, rng)
        values = [digits(rng, self.num_digits) for _ in keys]
        encode = source.encode
        queries = [
            Query(tuple(encode(f" ? {keys[i]}")), tuple(encode(f" {values[i]}")), key=keys[i])
            for i in rng.permutation(num)[: self.num_queries]
        ]
        pieces = [tuple(encode(f" {k} {v}.")) for k, v in zip(keys, values, strict=True)]
        return compose(
            source, pieces, queries, num_tokens=num_tokens, mode=mode, rng=rng, names=keys,
            is_first=self.is_first,
        )  # fmt: skip

    def chance(self, num_tokens: int) -> float:
        """Copy the digits of any record."""
        return one_of(self._num_records(num_tokens))

    def _num_records(self, num_tokens: int) -> int:
        return self.num_records or max(2, num_tokens // 64)
