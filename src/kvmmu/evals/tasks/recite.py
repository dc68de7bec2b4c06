"""Long generation: recite a list, again and again, from what is still held of it.

    context            text, then " List: a b c ... Again:"
    answer             " a b c ... a b c ..." for thousands of tokens, each fed back
The score is the share of the words written that are the true successor of the word before; a
word of several tokens counts token by token, each judged by a whole word before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kvmmu.evals.source import Source
from kvmmu.evals.tasks.base import TASKS, Instance, Mode, Query, Task, compose, draw_keys, one_of

__all__ = ["Recite"]


@TASKS.register("recite")
@dataclass(frozen=True)
class Recite(Task):
    """Write a list in order, without end."""

    capability = "long generation"
    modes = ("online",)
    question = "which word comes next in the list?"

    num_words: int = 24
    share: float = 0.75

    def draw(
        self, source: Source, *, num_tokens: int, mode: Mode, rng: np.random.Generator
    ) -> Instance:
        """Draw a list; `share` of the tokens are for the model to write."""
        self.check_mode(mode)
        words = draw_keys(source, self._num_words(num_tokens), rng, is_written=True)
        encode = source.encode
        ids = [tuple(encode(f" {word}")) for word in words]
        listed = tuple(token for word in ids for token in word)
        num_written = int(self.share * num_tokens)
        written = (listed * (num_written // len(listed) + 1))[:num_written]
        prompt = (*encode(" List:"), *listed, *encode(" Again:"))
        query = Query(prompt, written, tuple(ids), is_free=True, key=words[0])
        return compose(source, [], [query], num_tokens=num_tokens, mode="late", rng=rng, keys=words)

    def chance(self, num_tokens: int) -> float:
        """Write words of the list in any order (words of one token)."""
        return one_of(self._num_words(num_tokens))

    def _num_words(self, num_tokens: int) -> int:
        return min(self.num_words, max(4, num_tokens // 16))

    def score(self, query: Query, written: Sequence[int]) -> float:
        """Return the share of tokens written that follow what stands before, in the list."""
        size = 1 + max(len(word) for word in query.targets)
        follows = set(_spans(query.answer_ids, size))
        steps = [span in follows for span in _spans(written, size)]
        return sum(steps) / max(1, len(steps))


def _spans(ids: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    return (tuple(ids[i : i + size]) for i in range(len(ids) - size + 1))
