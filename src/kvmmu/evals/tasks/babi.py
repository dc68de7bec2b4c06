"""bAbI-like stories (Weston et al., 2015; scattered in text as in BABILong, Kuratov et al., 2024).

    qa1   " Mary is in court."                                " Where is Mary" -> " court"
    qa2   " Mary took the sword." " Mary went to court."      " Where is the sword? In" -> " court"
    qa3   the same story; " Where was the sword before court? In" -> ...
The sentences, names and places are ours; a story is drawn, acted out, and asked about.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from kvmmu.evals.source import Source
from kvmmu.evals.tasks.base import TASKS, Instance, Mode, Query, Task, compose

__all__ = ["ACTORS", "OBJECTS", "PLACES", "QA1", "QA2", "QA3"]

ACTORS = ("Mary", "Pierre", "Andrew", "Prince", "Jane", "Anna")
PLACES = ("court", "church", "office", "Moscow", "school")
OBJECTS = ("sword", "book", "money", "hat")


@dataclass(frozen=True)
class _Story(Task):
    """Draw a story and ask about it."""

    capability = "semantic retrieval"
    modes = ("late", "seen")

    num_moves: int | None = None
    num_queries: int = 2

    def draw(
        self, source: Source, *, num_tokens: int, mode: Mode, rng: np.random.Generator
    ) -> Instance:
        """Draw a story of one sentence in 48 tokens and questions that it answers."""
        self.check_mode(mode)
        num = self._num_sentences(num_tokens)
        while True:
            sentences, facts = self._act(num, rng)
            if facts:
                break
        order = rng.permutation(len(facts)).tolist()[: self.num_queries]
        encode = source.encode
        queries = [
            Query(tuple(encode(facts[i][0])), tuple(encode(f" {facts[i][1]}")), key=facts[i][0])
            for i in order
        ]
        pieces = [tuple(encode(sentence)) for sentence in sentences]
        return compose(source, pieces, queries, num_tokens=num_tokens, mode=mode, rng=rng)

    def chance(self, num_tokens: int) -> float:
        """Guess a place that the question leaves open, or name the last place told, if better."""
        return _best_guess(self, num_tokens)

    def _num_sentences(self, num_tokens: int) -> int:
        return self.num_moves or max(4, num_tokens // 48)

    def _act(self, num: int, rng: np.random.Generator) -> tuple[list[str], list[tuple[str, str]]]:
        raise NotImplementedError


@cache
def _best_guess(task: _Story, num_tokens: int) -> float:
    """Return the better share of right answers of two guessers, over 1000 stories."""
    rng = np.random.default_rng(0)
    open_places, last_places = [], []
    for _ in range(1000):
        sentences, facts = task._act(task._num_sentences(num_tokens), rng)
        last = next(p for text in sentences[::-1] for p in PLACES if f" {p}." in text)
        for question, place in facts:
            open_places.append(1 / sum(p not in question for p in PLACES))
            last_places.append(place == last)
    return float(max(np.mean(open_places), np.mean(last_places)))


@TASKS.register("babi_qa1")
@dataclass(frozen=True)
class QA1(_Story):
    """One supporting fact: where is the person?"""

    question = "where is this person?"

    def _act(self, num: int, rng: np.random.Generator) -> tuple[list[str], list[tuple[str, str]]]:
        at: dict[str, str] = {}
        sentences = []
        for _ in range(num):
            actor, place = _pick(ACTORS, rng), _pick(PLACES, rng)
            at[actor] = place
            sentences.append(f" {actor} is in {place}.")
        return sentences, [(f" Where is {a}", p) for a, p in at.items()]


@dataclass(frozen=True)
class _Carried(_Story):
    def _tell(self, num: int, rng: np.random.Generator) -> tuple[list[str], dict[str, list[str]]]:
        """Let people walk, take and leave things; return the places each thing was in."""
        at = {actor: _pick(PLACES, rng) for actor in ACTORS}
        holder: dict[str, str] = {}
        been: dict[str, list[str]] = {thing: [] for thing in OBJECTS}
        sentences = [f" {actor} went to {place}." for actor, place in at.items()]
        for _ in range(num - len(sentences)):
            actor, thing = _pick(ACTORS, rng), _pick(OBJECTS, rng)
            chance = rng.random()
            if thing not in holder and chance < 0.4:
                holder[thing] = actor
                if not been[thing] or been[thing][-1] != at[actor]:
                    been[thing] = [at[actor]]  # how it came here is not told
                sentences.append(f" {actor} took the {thing}.")
            elif holder.get(thing) == actor and chance < 0.2:
                del holder[thing]
                sentences.append(f" {actor} left the {thing}.")
            else:
                mover = holder.get(thing, actor) if chance < 0.8 else actor
                at[mover] = _pick(tuple(p for p in PLACES if p != at[mover]), rng)
                sentences.append(f" {mover} went to {at[mover]}.")
                for carried, bearer in holder.items():
                    if bearer == mover:
                        been[carried].append(at[mover])
        return sentences, been


@TASKS.register("babi_qa2")
@dataclass(frozen=True)
class QA2(_Carried):
    """Two supporting facts: where is the thing that somebody carries or left?"""

    question = "where is this thing?"

    def _act(self, num: int, rng: np.random.Generator) -> tuple[list[str], list[tuple[str, str]]]:
        sentences, been = self._tell(max(num, len(ACTORS) + 4), rng)
        return sentences, [(f" Where is the {t}? In", p[-1]) for t, p in been.items() if p]


@TASKS.register("babi_qa3")
@dataclass(frozen=True)
class QA3(_Carried):
    """Three supporting facts: where was the thing before it came to where it is?"""

    question = "where was this thing before?"

    def _act(self, num: int, rng: np.random.Generator) -> tuple[list[str], list[tuple[str, str]]]:
        sentences, been = self._tell(max(num, len(ACTORS) + 6), rng)
        return sentences, [
            (f" Where was the {t} before {p[-1]}? In", p[-2]) for t, p in been.items() if len(p) > 1
        ]


def _pick(names: tuple[str, ...], rng: np.random.Generator) -> str:
    return names[int(rng.integers(len(names)))]
