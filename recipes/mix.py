"""The mix of tasks that a model is trained on; held-out keys never enter it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from kvmmu.evals.filler import encode_filler
from kvmmu.evals.keys import KEY_WORDS, key_words
from kvmmu.evals.source import Source
from kvmmu.evals.tasks.babi import QA1
from kvmmu.evals.tasks.base import Instance, Mode, Task
from kvmmu.evals.tasks.frequent_words import FrequentWords
from kvmmu.evals.tasks.hot_set import HotSet
from kvmmu.evals.tasks.mixed import Mixed
from kvmmu.evals.tasks.niah_multikey import MultiKey
from kvmmu.evals.tasks.niah_single import SingleNeedle
from kvmmu.evals.tasks.passkey import Passkey
from kvmmu.evals.tasks.variable_tracking import VariableTracking

Breadth = Literal["basic", "broad", "last"]
Rng = np.random.Generator

SHARES: dict[Breadth, dict[str, float]] = {
    "basic": {
        "late": 0.36, "seen": 0.08, "hot": 0.18, "passkey": 0.05, "tracking": 0.08, "text": 0.25,
    },
    "broad": {
        "late": 0.22, "seen": 0.06, "hot": 0.12, "passkey": 0.03, "tracking": 0.15, "text": 0.21,
        "needle": 0.06, "mixed": 0.04, "qa1": 0.06, "frequent": 0.05,
    },
    "last": {
        "late": 0.06, "late5": 0.14, "seen": 0.05, "hot": 0.05, "passkey": 0.16, "tracking": 0.09,
        "text": 0.40, "needle": 0.03, "mixed": 0.02,
    },
}  # fmt: skip
"""Shares of the sequences: "basic" until retrieval works, then "broad", at the end "last": what
was not learnt by then (qa1, frequent) makes room for passkeys and for records of five digits
(late5), since the passkeys got wrong were those with a digit in them twice.

With every task of evals/tasks in the mix, 5 M parameters learnt none of the new ones in 5 M tokens
and forgot the old: those left out here stay unmeasured on the shipped models.
"""

NAMED = ("late", "late5", "seen", "hot")
"""Kinds whose keys are only compared, never written: an embedding may stand in for a key's."""
FIXED = ("passkey", "qa1", "mixed")
"""Kinds without keys of their own to disturb."""
FOLDED = ("late5", "passkey")
"""Kinds with five digits in a row, some of whose sequences get by with a few different ones."""
WRITTEN = ("tracking", "frequent")
"""Kinds whose answers are keys. There the held-out keys are left out of the softmax: else each
answer would teach the model never to write them."""


@dataclass(frozen=True)
class Sample:
    """One training sequence: ids [T] and, for each, the weight of its prediction."""

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    kind: str
    answers: tuple[tuple[int, int], ...] = ()  # [first, stop) of each answer in ids
    key_ids: tuple[int, ...] = ()  # tokens whose embedding is to be disturbed in this sequence
    is_written: bool = False  # the answers hold keys

    def count_exact(self, is_right: NDArray[np.bool_]) -> tuple[int, int]:
        """Count exact answers and answers; is_right [T-1] tells which next tokens were found."""
        exact = sum(bool(is_right[a - 1 : b - 1].all()) for a, b in self.answers)
        return exact, len(self.answers)


class Mix:
    """Draw training sequences; the sequence of step n depends on the seed, n and breadth alone.

    Keys are the training key words. Most sequences disturb theirs with donors (rare tokens that
    are no key words), so that names are compared and copied instead of known: where a key is
    never written, a donor's embedding stands in for it; elsewhere donors take the keys' places.
    """

    ANSWER_WEIGHT = 1.0
    TEXT_WEIGHT = 0.5
    FILLER_WEIGHT = 0.15
    FILLER_SHARE = 0.25  # of the filler's tokens are learnt, at random: cheaper, as good
    DISTURBED_SHARE = 0.7
    MARKED_SHARE = 0.6  # of the last stage's plain texts
    FOLDED_SHARE = 0.7
    NUM_COMMON = 200  # the most common tokens lend nothing

    def __init__(self, texts: dict[str, str], tokenizer: Tokenizer, *, seed: int) -> None:
        self.seed = seed
        self._cache: dict[str, list[int]] = {}
        self._tokenizer = tokenizer
        fillers = [encode_filler(text, self._raw_encode) for text in texts.values()]
        self.sources = [Source(filler, self.encode, key_words("train")) for filler in fillers]
        sizes = np.array([len(filler) for filler in fillers], dtype=np.float64) ** 0.7
        self.shares = sizes / sizes.sum()
        self.donors = self._rare_tokens()
        self.digits = np.array([[self.encode(f"{s}{d}")[0] for d in range(10)] for s in ("", " ")])
        self.held_out = [self.encode(f" {key}")[0] for key in key_words("held_out")]

    def _rare_tokens(self) -> NDArray[np.int64]:
        counts = np.zeros(self._tokenizer.get_vocab_size(), dtype=np.int64)
        for source in self.sources:
            counts += np.bincount(source.filler.ids, minlength=counts.size)
        common = np.argsort(-counts)[: self.NUM_COMMON].tolist()
        taken = {*common, *(self.encode(f" {word}")[0] for word in KEY_WORDS)}
        vocab = self._tokenizer.get_vocab()
        rare = [i for token, i in vocab.items() if i not in taken and _LETTERS.search(token)]
        return np.array(sorted(rare), dtype=np.int64)

    def _raw_encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def encode(self, text: str) -> list[int]:
        """Encode a short text, remembered."""
        if len(self._cache) > 200_000:
            self._cache.clear()
        if text not in self._cache:
            self._cache[text] = self._raw_encode(text)
        return self._cache[text]

    def sample(self, step: int, row: int, num_tokens: int, *, breadth: Breadth = "basic") -> Sample:
        """Draw one sequence of num_tokens tokens."""
        rng = np.random.default_rng((self.seed, step, row))
        source = self.sources[int(rng.choice(len(self.sources), p=self.shares))]
        shares = SHARES[breadth]
        kind = str(rng.choice(list(shares), p=list(shares.values())))
        if kind == "text":
            taken, _ = source.filler.take(num_tokens, rng=rng)
            ids = np.asarray(taken, dtype=np.int64)
            if breadth == "last" and rng.random() < self.MARKED_SHARE:
                ids = _marked(ids, self._tokenizer.get_vocab_size(), rng)
            weights = np.full(num_tokens, self.TEXT_WEIGHT / num_tokens, dtype=np.float32)
            return Sample(ids, weights, kind)
        kind, instance = _draw(kind, source, num_tokens, rng)
        made = self._weigh(kind, instance, rng)
        if breadth == "last" and kind in FOLDED and rng.random() < self.FOLDED_SHARE:
            made = replace(made, ids=self._folded(made.ids, rng))
        return made

    def _weigh(self, kind: str, instance: Instance, rng: Rng) -> Sample:
        listed, starts = instance.stream()
        ids = np.asarray(listed, dtype=np.int64)
        is_answer = np.zeros(ids.size, dtype=np.bool_)
        answers = tuple(
            (start, start + len(query.answer_ids))
            for start, query in zip(starts, instance.queries, strict=True)
        )
        for start, stop in answers:
            is_answer[start:stop] = True
        key_ids = sorted({self.encode(f" {key}")[0] for key in instance.keys})
        is_filler = ~is_answer & ~np.isin(ids, key_ids)  # no weight on guessing a key
        is_filler &= rng.random(ids.size) < self.FILLER_SHARE
        weights = is_answer * (self.ANSWER_WEIGHT / int(is_answer.sum()))
        weights = weights + is_filler * (self.FILLER_WEIGHT / max(1, int(is_filler.sum())))
        is_disturbed = kind not in FIXED and rng.random() < self.DISTURBED_SHARE
        if is_disturbed and kind not in NAMED:
            ids = self._replaced(ids, key_ids, rng)
        disturbed = tuple(key_ids) if is_disturbed and kind in NAMED else ()
        return Sample(ids, weights.astype(np.float32), kind, answers, disturbed, kind in WRITTEN)

    def _folded(self, ids: NDArray[np.int64], rng: Rng) -> NDArray[np.int64]:
        """Write every number with one to four different digits, so that 82223 is no rare sight."""
        table = np.arange(self._tokenizer.get_vocab_size())
        few = rng.choice(10, size=int(rng.integers(1, 5)), replace=False)
        table[self.digits] = self.digits[:, rng.choice(few, size=10)]
        return table[ids]

    def _replaced(self, ids: NDArray[np.int64], key_ids: list[int], rng: Rng) -> NDArray[np.int64]:
        """Put a donor in the place of each key, questions and answers included."""
        table = np.arange(self._tokenizer.get_vocab_size())
        table[key_ids] = rng.choice(self.donors, size=len(key_ids), replace=False)
        return table[ids]


_LETTERS = re.compile("[A-Za-z]{2}")


def _marked(ids: NDArray[np.int64], vocab_size: int, rng: Rng) -> NDArray[np.int64]:
    """Put a few strings of random tokens in many places each of a text; return as many tokens.

    So a text that marks its words in a way of its own, as WikiText does with "<unk>" and "@-@", is
    read by what it does itself. Without this the model gave such marks less chance the longer it
    was trained on books.
    """
    parts: list[NDArray[np.int64]] = []
    marks = [
        rng.integers(0, vocab_size, size=int(rng.integers(1, 6)))
        for _ in range(int(rng.integers(1, 4)))
    ]
    places = np.flatnonzero(rng.random(ids.size) < rng.uniform(0.005, 0.06))
    for piece in np.split(ids, places):
        parts += [piece, marks[int(rng.integers(len(marks)))]]
    return np.concatenate(parts)[: ids.size]


def _draw(kind: str, source: Source, num_tokens: int, rng: Rng) -> tuple[str, Instance]:
    """Draw an instance of a kind, or of the simplest kind where the sequence is too short."""
    make = _MAKERS[kind]
    task, mode = make(num_tokens, rng)
    try:
        return kind, task.draw(source, num_tokens=num_tokens, mode=mode, rng=rng)
    except ValueError:  # too many words for so short a sequence
        task, mode = _late(num_tokens, rng)
        return "late", task.draw(source, num_tokens=num_tokens, mode=mode, rng=rng)


def _records(num_tokens: int, rng: Rng) -> int:
    most = max(2, num_tokens // 24)
    return min(int(rng.integers(max(1, most // 6), most + 1)), 96)


def _late(num_tokens: int, rng: Rng) -> tuple[Task, Mode]:
    num = _records(num_tokens, rng)
    return MultiKey(num, num), "late"


def _late5(num_tokens: int, rng: Rng) -> tuple[Task, Mode]:
    num = _records(num_tokens, rng)
    return MultiKey(num, num, num_digits=5), "late"


def _seen(num_tokens: int, rng: Rng) -> tuple[Task, Mode]:
    return MultiKey(_records(num_tokens, rng), is_first=bool(rng.random() < 0.5)), "seen"


def _hot(num_tokens: int, rng: Rng) -> tuple[Task, Mode]:
    num = min(_records(num_tokens, rng), max(2, num_tokens // 32))
    return HotSet(num, max(2, num_tokens // 24), float(rng.uniform(0.0, 1.2))), "online"


def _tracking(num_tokens: int, rng: Rng) -> tuple[Task, Mode]:
    num_hops = 2 if rng.random() < 0.25 else 1
    num = max(1, min(_records(num_tokens, rng), num_tokens // 32) // (num_hops + 1))
    return VariableTracking(num, num_hops, num), _mode(rng)


def _needle(num_tokens: int, rng: Rng) -> tuple[Task, Mode]:
    num = int(rng.integers(1, max(2, min(8, num_tokens // 64)) + 1))
    mode = _mode(rng, "late", "seen")
    return SingleNeedle(num, num, is_first=bool(rng.random() < 0.5)), mode


def _frequent(num_tokens: int, rng: Rng) -> tuple[Task, Mode]:
    num = int(rng.integers(6, 33))
    num_asked = int(rng.integers(1, 4))
    return FrequentWords(num_asked, num, float(rng.uniform(1.2, 2.5))), _mode(rng, "late", "seen")


def _mode(rng: Rng, *modes: Mode) -> Mode:
    """Draw a mode: three times in four the first, "late"."""
    modes = modes or ("late",)
    return modes[0] if rng.random() < 0.75 else modes[-1]


def _qa1(num_tokens: int, rng: Rng) -> tuple[Task, Mode]:
    num_moves = int(rng.integers(4, max(6, num_tokens // 24)))
    return QA1(min(num_moves, 64), 6), _mode(rng, "late", "seen")


_MAKERS: dict[str, Callable[[int, Rng], tuple[Task, Mode]]] = {
    "late": _late,
    "late5": _late5,
    "seen": _seen,
    "hot": _hot,
    "passkey": lambda num_tokens, rng: (Passkey(), "late"),
    "tracking": _tracking,
    "needle": _needle,
    "frequent": _frequent,
    "qa1": _qa1,
    "mixed": lambda num_tokens, rng: (Mixed(), _mode(rng, "late", "online")),
}
