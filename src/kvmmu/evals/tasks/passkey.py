"""Passkey retrieval (Mohtashami and Jaggi, 2023): one number of five digits in real text.

needle             " The pass key is 12345."
question, answer   " What is the pass key? The pass key is" -> " 12345"
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvmmu.evals.source import Source
from kvmmu.evals.tasks.base import TASKS, Instance, Mode, Query, Task, compose, digits

__all__ = ["Passkey"]


@TASKS.register("passkey")
@dataclass(frozen=True)
class Passkey(Task):
    """Find the pass key."""

    capability = "string retrieval"
    question = "what is the pass key?"

    num_digits: int = 5
    is_first: bool = False

    def draw(
        self, source: Source, *, num_tokens: int, mode: Mode, rng: np.random.Generator
    ) -> Instance:
        """Hide one pass key and ask for it."""
        self.check_mode(mode)
        value = digits(rng, self.num_digits)
        encode = source.encode
        query = Query(
            tuple(encode(" What is the pass key? The pass key is")),
            tuple(encode(f" {value}")),
            key="pass key",
        )
        piece = tuple(encode(f" The pass key is {value}."))
        return compose(
            source, [piece], [query], num_tokens=num_tokens, mode=mode, rng=rng,
            names=["pass key"], is_first=self.is_first,
        )  # fmt: skip
