"""Multi-value retrieval (RULER's niah_multivalue): one key recorded with several values.

records            " KEY 123." ... " KEY 456." ... " KEY 789."
question, answer   " ?? KEY" -> " 123 456 789"      in any order; the share found is the score
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

__all__ = ["MultiValue"]


@TASKS.register("niah_multivalue")
@dataclass(frozen=True)
class MultiValue(Task):
    """Find every value recorded under a key."""

    capability = "string retrieval"
    question = "which digits, all of them, stand behind this key?"

    num_values: int = 3
    num_keys: int | None = None
    num_queries: int = 4

    def draw(
        self, source: Source, *, num_tokens: int, mode: Mode, rng: np.random.Generator
    ) -> Instance:
        """Draw keys with num_values values each, in any order in the text."""
        self.check_mode(mode)
        num = self._num_keys(num_tokens)
        keys = draw_keys(source, num, rng)
        owners = rng.permutation(np.repeat(np.arange(num), self.num_values)).tolist()
        values = [digits(rng) for _ in owners]
        encode = source.encode
        queries = []
        for i in rng.permutation(num)[: self.num_queries].tolist():
            own = [tuple(encode(f" {v}")) for o, v in zip(owners, values, strict=True) if o == i]
            answer = tuple(token for ids in own for token in ids)
            prompt = tuple(encode(f" ?? {keys[i]}"))
            queries.append(Query(prompt, answer, tuple(own), is_free=True, key=keys[i]))
        pieces = [tuple(encode(f" {keys[o]} {v}.")) for o, v in zip(owners, values, strict=True)]
        names = [f"{keys[o]}/{n}" for n, o in enumerate(owners)]
        return compose(
            source, pieces, queries, num_tokens=num_tokens, mode=mode, rng=rng, names=names,
            keys=keys,
        )  # fmt: skip

    def chance(self, num_tokens: int) -> float:
        """Copy the digits of as many records as a key has."""
        return one_of(self._num_keys(num_tokens))

    def _num_keys(self, num_tokens: int) -> int:
        return self.num_keys or max(2, num_tokens // (64 * self.num_values))
