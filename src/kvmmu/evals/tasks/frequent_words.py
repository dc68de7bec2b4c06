"""Frequent words (RULER's fwe): the most frequent of words whose counts fall as Zipf's law.

context            " List: w1 w2 w1 w3 ..."    the r-th word comes in proportion to r ** -exponent
question, answer   " Most common:" -> " a b c"    the share found is the score
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvmmu.evals.keys import key_words
from kvmmu.evals.source import Source
from kvmmu.evals.tasks.base import TASKS, Instance, Mode, Task, draw_keys, keys_of
from kvmmu.evals.tasks.common_words import copied, list_instance

__all__ = ["FrequentWords"]


@TASKS.register("frequent_words")
@dataclass(frozen=True)
class FrequentWords(Task):
    """Name the most frequent words, most frequent first."""

    capability = "global information"
    modes = ("late", "seen")
    question = "which words came most often?"

    num_asked: int = 3
    num_words: int = 24
    exponent: float = 2.0

    def draw(
        self, source: Source, *, num_tokens: int, mode: Mode, rng: np.random.Generator
    ) -> Instance:
        """Draw words with falling counts that fill four fifths of the tokens."""
        self.check_mode(mode)
        num = max(self.num_asked + 1, min(self.num_words, len(keys_of(source, is_written=True))))
        words = draw_keys(source, num, rng, is_written=True)
        counts = self._counts(int(0.8 * num_tokens) // len(source.encode(f" {words[0]}")), num)
        if len(set(counts[: self.num_asked + 1])) <= self.num_asked:
            raise ValueError(
                f"num_tokens must let {self.num_asked + 1} of {num} words come at different rates, "
                f"got {num_tokens}; raise num_tokens or ask for fewer words"
            )
        return list_instance(
            source, words, counts, words[: self.num_asked],
            num_tokens=num_tokens, mode=mode, rng=rng, is_ordered=True,
        )  # fmt: skip

    def chance(self, num_tokens: int) -> float:
        """Copy num_asked words of the list at random (words of one token, training keys)."""
        num = max(self.num_asked + 1, min(self.num_words, len(key_words("train"))))
        counts = self._counts(int(0.8 * num_tokens), num)
        return copied([count / sum(counts) for count in counts[: self.num_asked]])

    def _counts(self, room: int, num: int) -> list[int]:
        """Say how often each of num words comes in about room words."""
        weights = np.arange(1, num + 1, dtype=np.float64) ** -self.exponent
        counts = 1 + np.floor(max(0, room - num) * weights / weights.sum())
        return [int(count) for count in counts]
