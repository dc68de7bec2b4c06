"""Common words (RULER's cwe): which words stand in a long list most often?

    context            " List: w1 w2 w3 ..."     num_common words num_often times, others num_rare
    question, answer   " Most common:" -> " a b c"    in any order; the share found is the score
RULER asks for ten words that come thirty times; the defaults ask for three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvmmu.evals.keys import key_words
from kvmmu.evals.source import Source
from kvmmu.evals.tasks.base import TASKS, Instance, Mode, Query, Task, compose, draw_keys, keys_of

__all__ = ["CommonWords", "copied", "list_instance"]


@TASKS.register("common_words")
@dataclass(frozen=True)
class CommonWords(Task):
    """Name the words that come most often."""

    capability = "global information"
    modes = ("late", "seen")
    question = "which words came most often?"

    num_common: int = 3
    num_often: int = 20
    num_rare: int = 3

    def draw(
        self, source: Source, *, num_tokens: int, mode: Mode, rng: np.random.Generator
    ) -> Instance:
        """Draw common words, then rare ones until a fifth of the tokens is left, or no keys."""
        self.check_mode(mode)
        keys = keys_of(source, is_written=True)
        size = max((len(source.encode(f" {key}")) for key in keys[:1]), default=1)
        often, num_others = self._counts(int(0.8 * num_tokens) // size, len(keys))
        words = draw_keys(source, self.num_common + num_others, rng, is_written=True)
        counts = [often] * self.num_common + [self.num_rare] * num_others
        return list_instance(
            source, words, counts, words[: self.num_common],
            num_tokens=num_tokens, mode=mode, rng=rng, is_ordered=False,
        )  # fmt: skip

    def chance(self, num_tokens: int) -> float:
        """Copy num_common words of the list at random (words of one token, training keys)."""
        often, num_others = self._counts(int(0.8 * num_tokens), len(key_words("train")))
        total = self.num_common * often + num_others * self.num_rare
        return copied([often / total] * self.num_common)

    def _counts(self, room: int, num_keys: int) -> tuple[int, int]:
        """Return how often a common word comes, and the number of rare ones, in room words."""
        often = max(self.num_rare + 1, min(self.num_often, room // (2 * self.num_common)))
        num_others = (room - often * self.num_common) // self.num_rare
        return often, max(1, min(num_others, num_keys - self.num_common))


def copied(shares: Sequence[float]) -> float:
    """Return the expected share found of words that make up these shares of a list.

    As many words as there are shares are copied from random places of the list.
    """
    num = len(shares)
    return sum(1 - (1 - share) ** num for share in shares) / num


def list_instance(
    source: Source,
    words: list[str],
    counts: list[int],
    asked: list[str],
    *,
    num_tokens: int,
    mode: Mode,
    rng: np.random.Generator,
    is_ordered: bool,
) -> Instance:
    """Shuffle words by their counts into one list after some text, and ask for `asked`.

    Unless the order matters the true answer lists the words as they first came.
    """
    listed = rng.permutation(np.repeat(np.arange(len(words)), counts)).tolist()
    encode = source.encode
    if not is_ordered:
        firsts = {word: listed.index(words.index(word)) for word in asked}
        asked = sorted(asked, key=lambda word: firsts[word])
    targets = tuple(tuple(encode(f" {word}")) for word in asked)
    answer = tuple(token for ids in targets for token in ids)
    query = Query(tuple(encode(" Most common:")), answer, targets, is_free=True, key=asked[0])
    piece = tuple(encode(" List:" + "".join(f" {words[i]}" for i in listed) + "."))
    return compose(source, [piece], [query], num_tokens=num_tokens, mode=mode, rng=rng, keys=words)
