"""Variable tracking (RULER): a key's alias, in its turn perhaps an alias's alias.

records            " KEY 123."  " ALIAS KEY."
question, answer   " ? ALIAS" -> " KEY 123"       the whole chain, then its value
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

__all__ = ["VariableTracking"]


@TASKS.register("variable_tracking")
@dataclass(frozen=True)
class VariableTracking(Task):
    """Follow a chain of num_hops names to its value."""

    capability = "semantic retrieval"
    question = "what does this name stand for in the end?"

    num_chains: int | None = None
    num_hops: int = 1
    num_queries: int = 4

    def draw(
        self, source: Source, *, num_tokens: int, mode: Mode, rng: np.random.Generator
    ) -> Instance:
        """Draw chains whose links stand in any order in the text."""
        self.check_mode(mode)
        length, num = self.num_hops + 1, self._num_chains(num_tokens)
        names = draw_keys(source, num * length, rng, is_written=True)
        chains = [names[i * length : (i + 1) * length] for i in range(num)]
        values = [digits(rng) for _ in chains]
        encode = source.encode
        pieces = [
            tuple(encode(f" {name} {told}."))
            for chain, value in zip(chains, values, strict=True)
            for name, told in zip(chain, [*chain[1:], value], strict=True)
        ]
        queries = []
        for i in rng.permutation(num)[: self.num_queries].tolist():
            answer = tuple(encode("".join(f" {told}" for told in [*chains[i][1:], values[i]])))
            prompt = tuple(encode(f" ? {chains[i][0]}"))
            queries.append(Query(prompt, answer, key=chains[i][0]))
        order = rng.permutation(len(pieces)).tolist()
        return compose(
            source, [pieces[i] for i in order], queries, num_tokens=num_tokens, mode=mode,
            rng=rng, names=[names[i] for i in order],
        )  # fmt: skip

    def chance(self, num_tokens: int) -> float:
        """Copy the end of any chain."""
        return one_of(self._num_chains(num_tokens))

    def _num_chains(self, num_tokens: int) -> int:
        return self.num_chains or max(1, num_tokens // 64 // (self.num_hops + 1))
