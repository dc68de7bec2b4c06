"""Multi-tasking: one context, asked in turn about records, a needle and a pass key."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kvmmu.evals.keys import key_words
from kvmmu.evals.source import Source
from kvmmu.evals.tasks.base import TASKS, Ids, Instance, Mode, Query, Task, compose, one_of
from kvmmu.evals.tasks.niah_multikey import MultiKey
from kvmmu.evals.tasks.niah_single import SingleNeedle
from kvmmu.evals.tasks.passkey import Passkey

__all__ = ["Mixed"]


@TASKS.register("mixed")
@dataclass(frozen=True)
class Mixed(Task):
    """Answer questions of three kinds about one text."""

    capability = "multi-tasking"
    modes = ("late", "online")
    question = "whatever is asked: a record, a needle or the pass key"

    def draw(
        self, source: Source, *, num_tokens: int, mode: Mode, rng: np.random.Generator
    ) -> Instance:
        """Draw the three tasks' records and questions and shuffle both."""
        self.check_mode(mode)
        half = len(source.keys) // 2
        num = _num_records(num_tokens, half)
        parts = (
            (MultiKey(num, num_queries=2), replace(source, keys=source.keys[:half])),
            (SingleNeedle(num_needles=2, num_queries=2), replace(source, keys=source.keys[half:])),
            (Passkey(), source),
        )
        pieces: list[Ids] = []
        names: list[str] = []
        queries: list[Query] = []
        for task, own in parts:
            drawn = task.draw(own, num_tokens=num_tokens, mode="late", rng=rng)
            for key, piece in drawn.records.items():
                names.append(key)
                pieces.append(piece)
            queries += [replace(query, lead_ids=()) for query in drawn.queries]
        order = rng.permutation(len(pieces)).tolist()
        return compose(
            source, [pieces[i] for i in order], [queries[i] for i in rng.permutation(len(queries))],
            num_tokens=num_tokens, mode=mode, rng=rng, names=[names[i] for i in order],
        )  # fmt: skip

    def chance(self, num_tokens: int) -> float:
        """Copy the digits of any record of the kind asked for (held-out keys)."""
        num = _num_records(num_tokens, len(key_words("held_out")) // 2)
        return (2 * one_of(num) + 2 * one_of(2) + one_of(1)) / 5


def _num_records(num_tokens: int, num_keys: int) -> int:
    return min(max(2, num_tokens // 64), max(2, num_keys))
