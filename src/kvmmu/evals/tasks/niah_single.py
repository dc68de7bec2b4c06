"""Needle in a haystack (RULER's niah_single): one sentence of natural language in real text.

    needle             " The number of the KEY is 123."
    question, answer   " What is the number of the KEY? The number of the KEY is" -> " 123"
`depth` puts the needle at a share of the text, for the grid of depth and length.
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

__all__ = ["SingleNeedle"]


@TASKS.register("niah_single")
@dataclass(frozen=True)
class SingleNeedle(Task):
    """Find the number told in one sentence; more sentences about other keys may distract."""

    capability = "string retrieval"
    question = "what is the number of the KEY?"

    num_needles: int = 1
    num_queries: int = 1
    depth: float | None = None
    is_first: bool = False

    def __post_init__(self) -> None:
        if self.depth is not None and not (0 <= self.depth <= 1 and self.num_needles == 1):
            raise ValueError(
                f"depth must lie in [0, 1] with one needle, got {self.depth!r} and "
                f"{self.num_needles} needles"
            )

    def draw(
        self, source: Source, *, num_tokens: int, mode: Mode, rng: np.random.Generator
    ) -> Instance:
        """Draw needles and ask for some of them, each once."""
        self.check_mode(mode)
        keys = draw_keys(source, self.num_needles, rng)
        values = [digits(rng) for _ in keys]
        encode = source.encode
        queries = [
            Query(
                tuple(encode(f" What is the number of the {key}? The number of the {key} is")),
                tuple(encode(f" {value}")),
                key=key,
            )
            for key, value in list(zip(keys, values, strict=True))[: self.num_queries]
        ]
        pieces = [
            tuple(encode(f" The number of the {key} is {value}."))
            for key, value in zip(keys, values, strict=True)
        ]
        order = rng.permutation(len(keys)).tolist()
        return compose(
            source, [pieces[i] for i in order], queries, num_tokens=num_tokens, mode=mode,
            rng=rng, names=[keys[i] for i in order], depth=self.depth, is_first=self.is_first,
        )  # fmt: skip

    def chance(self, num_tokens: int) -> float:
        """Copy the number of any needle."""
        return one_of(self.num_needles)
