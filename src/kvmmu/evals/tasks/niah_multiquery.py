"""Multi-query retrieval (RULER's niah_multiquery): several keys in one question.

    record             " KEY 123."
    question, answer   " ? KEY1 KEY2 KEY3:" -> " KEY1 123 KEY2 456 KEY3 789"
The share of the values found is the score; the model writes the keys itself.
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

__all__ = ["MultiQuery"]


@TASKS.register("niah_multiquery")
@dataclass(frozen=True)
class MultiQuery(Task):
    """Find the digits of several keys at once."""

    capability = "string retrieval"
    question = "which digits stand behind each of these keys?"

    num_records: int | None = None
    num_asked: int = 3
    num_queries: int = 2

    def draw(
        self, source: Source, *, num_tokens: int, mode: Mode, rng: np.random.Generator
    ) -> Instance:
        """Draw records and ask for num_asked of them in each question."""
        self.check_mode(mode)
        num = self._num_records(num_tokens)
        keys = draw_keys(source, num, rng, is_written=True)
        pairs = [f" {key} {digits(rng)}" for key in keys]
        encode = source.encode
        queries = []
        for _ in range(self.num_queries):
            asked = rng.permutation(num)[: self.num_asked].tolist()
            answers = [tuple(encode(pairs[i])) for i in asked]
            queries.append(
                Query(
                    tuple(encode(" ?" + "".join(f" {keys[i]}" for i in asked) + ":")),
                    tuple(token for ids in answers for token in ids),
                    tuple(answers),
                    is_free=True,
                    key=keys[asked[0]],
                )
            )
        pieces = [tuple(encode(f"{pair}.")) for pair in pairs]
        return compose(
            source, pieces, queries, num_tokens=num_tokens, mode=mode, rng=rng, names=keys
        )

    def chance(self, num_tokens: int) -> float:
        """Copy the digits of any record behind each key of the question."""
        return one_of(self._num_records(num_tokens))

    def _num_records(self, num_tokens: int) -> int:
        return self.num_records or max(self.num_asked, num_tokens // 64)
