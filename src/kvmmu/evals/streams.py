"""Token streams that a cache is judged on: rows of equal shape, fed as a user's text would come.

A stream is a context, then questions (or simply more text) that are fed token by token, so that
nothing which is scored can be seen through a chunk of the prefill.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvmmu.evals.filler import Encode, Filler, encode_filler
from kvmmu.evals.hotset import hot_set
from kvmmu.evals.keys import key_words
from kvmmu.evals.retrieval import Task, late_query, question_seen

__all__ = ["TASKS", "Answer", "Source", "Stream", "shipped_book"]

TASKS = ("hot_set", "question_seen", "late_query")


@dataclass(frozen=True)
class Answer:
    """Say that tokens [start, stop) of a row are the answer to the question about a key."""

    row: int
    start: int
    stop: int
    key: str


@dataclass(frozen=True)
class Stream:
    """Rows of one task. ids int64 [B,N]; the first num_context tokens are the context.

    Contract: every answer starts after num_context, so its tokens are predicted one at a time.
    facts maps, row by row, a key to the index of the first token of its record.
    """

    name: str
    ids: Tensor
    num_context: int
    answers: tuple[Answer, ...] = ()
    facts: tuple[dict[str, int], ...] = ()

    def __post_init__(self) -> None:
        _, N = self.ids.shape
        if not 1 <= self.num_context < N - 1:
            raise ValueError(f"num_context must be in [1, {N - 1}), got {self.num_context}")
        for answer in self.answers:
            if not self.num_context < answer.start < answer.stop <= N:
                raise ValueError(
                    f"answers must lie in ({self.num_context}, {N}), got {answer.start} to "
                    f"{answer.stop}"
                )

    @property
    def num_tokens(self) -> int:
        """Count the tokens of a row, answers included."""
        return int(self.ids.shape[1])

    def row(self, index: int) -> Stream:
        """Return one row as a stream of its own."""
        return Stream(
            self.name,
            self.ids[index : index + 1],
            self.num_context,
            tuple(Answer(0, a.start, a.stop, a.key) for a in self.answers if a.row == index),
            self.facts[index : index + 1],
        )


@dataclass(frozen=True)
class Source:
    """A text and a tokenizer, from which streams are drawn.

    Only keys whose record and question have one token count each are used: rows are then equally
    long without padding, and a batch is exactly its rows.
    """

    filler: Filler
    encode: Encode
    keys: tuple[str, ...]

    @classmethod
    def make(cls, text: str, tokenizer: Any, *, least_keys: int = 32) -> Source:
        """Encode a text. Raises ValueError if the tokenizer leaves too few keys."""

        def encode(piece: str) -> list[int]:
            ids: list[int] = tokenizer.encode(piece, add_special_tokens=False)
            return ids

        keys = key_words("held_out")
        lengths = [(len(encode(f" ? {key}")), len(encode(f" {key} 123."))) for key in keys]
        usual = max(set(lengths), key=lengths.count)
        even = tuple(key for key, length in zip(keys, lengths, strict=True) if length == usual)
        digits = {len(encode(f" {number:03d}")) for number in range(0, 1000, 37)}
        if len(even) < least_keys or len(digits) != 1:
            raise ValueError(
                "the model's tokenizer must split three digits alike and give at least "
                f"{least_keys} key words one length, got lengths {sorted(digits)} and "
                f"{len(even)} keys; use a shipped model"
            )
        return cls(encode_filler(text, encode), encode, even)

    def task(self, name: str, *, num_tokens: int, num_rows: int, seed: int) -> Stream:
        """Draw num_rows rows of a task of TASKS. Raises ValueError for an unknown one."""
        makers: dict[str, Callable[..., Task]] = {
            "hot_set": hot_set,
            "question_seen": question_seen,
            "late_query": late_query,
        }
        if name not in makers:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
        more = {"num_queries": min(4, num_tokens // 64)} if name == "late_query" else {}
        rng = np.random.default_rng((seed, num_tokens, TASKS.index(name)))
        tasks = [
            makers[name](
                self.filler, self.encode, num_tokens=num_tokens, keys=self.keys, rng=rng, **more
            )
            for _ in range(num_rows)
        ]
        return _aligned(name, tasks)

    def pages(
        self, *, num_tokens: int, num_scored: int, num_rows: int, seed: int, name: str = "pages"
    ) -> Stream:
        """Cut num_rows windows of num_tokens tokens, evenly spread, the last num_scored scored."""
        rng = np.random.default_rng((seed, num_tokens, len(TASKS)))
        room = len(self.filler) // num_rows - num_tokens
        if room < 0:
            raise ValueError(
                f"the text must hold {num_rows} windows of {num_tokens} tokens, got "
                f"{len(self.filler)} tokens"
            )
        firsts = [
            i * (len(self.filler) // num_rows) + int(rng.integers(room + 1))
            for i in range(num_rows)
        ]
        rows = np.stack([self.filler.ids[first : first + num_tokens] for first in firsts])
        ids = torch.from_numpy(rows.astype(np.int64))
        return Stream(name, ids, num_tokens - num_scored - 1)


def _aligned(name: str, tasks: list[Task]) -> Stream:
    """Stack tasks of equal length; their contexts are equally long by the choice of keys."""
    rows, answers = [], []
    for b, task in enumerate(tasks):
        ids, starts = task.stream()
        rows.append(ids)
        answers += [
            Answer(b, start, start + len(query.answer_ids), query.key)
            for start, query in zip(starts, task.queries, strict=True)
        ]
    lengths = {(len(task.context_ids), len(row)) for task, row in zip(tasks, rows, strict=True)}
    if len(lengths) != 1:
        raise ValueError(f"rows of {name} must be equally long, got {sorted(lengths)}")
    facts = tuple(dict(task.record_positions) for task in tasks)
    return Stream(name, torch.tensor(rows), len(tasks[0].context_ids), tuple(answers), facts)


def shipped_book() -> str:
    """Return the text of Frankenstein, which no shipped model was trained on."""
    packed = files("kvmmu").joinpath("data", "frankenstein.txt.xz").read_bytes()
    return lzma.decompress(packed).decode("utf-8")
