"""Long generation: hold a few facts while the model writes thousands of tokens of its own.

context            text with records " KEY 123."
then, in turn      some tokens that the model draws from itself, " ? KEY" -> " 123"
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

__all__ = ["Hold"]


@TASKS.register("hold")
@dataclass(frozen=True)
class Hold(Task):
    """Answer about facts told before the model began to write."""

    capability = "long generation"
    modes = ("online",)
    question = "which digits stood behind this key before you began to write?"

    num_records: int = 6
    context_share: float = 0.25
    gap: int = 48

    def draw(
        self, source: Source, *, num_tokens: int, mode: Mode, rng: np.random.Generator
    ) -> Instance:
        """Draw records, then questions with `gap` tokens of the model's own before each."""
        self.check_mode(mode)
        keys = draw_keys(source, self.num_records, rng)
        encode = source.encode
        prompts = [tuple(encode(f" ? {key}")) for key in keys]
        told = [f" {digits(rng)}" for _ in keys]
        answers = [tuple(encode(value)) for value in told]
        pieces = [tuple(encode(f" {k}{v}.")) for k, v in zip(keys, told, strict=True)]
        one = self.gap + len(prompts[0]) + len(answers[0]) + 1
        num_queries = max(1, int((1 - self.context_share) * num_tokens) // one)
        queries = [
            Query(prompts[i], answers[i], num_sampled=self.gap, key=keys[i])
            for i in rng.integers(0, len(keys), size=num_queries).tolist()
        ]
        return compose(
            source, pieces, queries, num_tokens=num_tokens, mode="late", rng=rng, names=keys
        )

    def chance(self, num_tokens: int) -> float:
        """Copy the digits of any record."""
        return one_of(self.num_records)
