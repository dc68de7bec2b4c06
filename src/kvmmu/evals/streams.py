"""Token streams that a cache is judged on: rows of equal shape, fed as a user's text would come.

A stream is a context, then questions (or simply more text) that are fed token by token, so that
nothing which is scored can be seen through a chunk of the prefill.

    draw      rows of a task; in mode "shared" each question is fed to a copy of the context's
              cache (several requests on one context), otherwise one after the other
    pages     rows of text, scored by their perplexity
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from kvmmu.evals.source import Source
from kvmmu.evals.tasks.base import Instance, Mode, Query, Task

__all__ = ["DRAWN", "GIVEN", "OWN", "Answer", "Stream", "draw", "pages"]

GIVEN, OWN, DRAWN = 0, 1, 2
"""What is fed at a place: the stream's token, the model's best guess, or a draw from the model."""


@dataclass(frozen=True)
class Answer:
    """Say that tokens [start, stop) of a row are the answer to a query."""

    row: int
    start: int
    stop: int
    query: Query

    @property
    def key(self) -> str:
        """The key that was asked for."""
        return self.query.key


@dataclass(frozen=True)
class Stream:
    """Rows of one task. ids int64 [B,N]; the first num_context tokens are the context.

    Contract: every answer starts after num_context, so its tokens are predicted one at a time.
    fed int8 [B,N] says what is fed at each place (GIVEN, OWN, DRAWN), None = all given.
    segments, if any, are the requests [start, stop), each fed to a copy of the context's cache.
    facts maps, row by row, a record's name to the index of its first token.
    """

    name: str
    ids: Tensor
    num_context: int
    answers: tuple[Answer, ...] = ()
    facts: tuple[dict[str, int], ...] = ()
    fed: Tensor | None = None
    segments: tuple[tuple[int, int], ...] = ()
    seed: int = 0
    task: Task | None = field(default=None, compare=False)

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

    @property
    def num_joined(self) -> int:
        """Count the tokens of the longest text that a model reads: a request is on its own."""
        longest = max((stop - start for start, stop in self.segments), default=0)
        return self.num_context + longest if self.segments else self.num_tokens

    def rows(self, first: int, stop: int) -> Stream:
        """Return rows [first, stop) as a stream of their own."""
        return replace(
            self,
            ids=self.ids[first:stop],
            answers=tuple(
                replace(a, row=a.row - first) for a in self.answers if first <= a.row < stop
            ),
            facts=self.facts[first:stop],
            fed=None if self.fed is None else self.fed[first:stop],
            seed=self.seed + first,
        )

    def row(self, index: int) -> Stream:
        """Return one row as a stream of its own."""
        return self.rows(index, index + 1)


def draw(
    task: Task,
    sources: Sequence[Source],
    *,
    num_tokens: int,
    num_rows: int,
    seed: int,
    mode: Mode | str = "late",
) -> Stream:
    """Draw num_rows rows of a task, from the sources in turn.

    Rows may differ in where their questions stand; the stream's context is the shortest row's.
    Raises ValueError for a mode that the task does not have, or if requests on a shared context
    would have different lengths.
    """
    is_shared = mode == "shared"
    drawn: Mode = "late" if is_shared else mode  # type: ignore[assignment]
    task.check_mode(drawn)
    salt = zlib.crc32(f"{task.name}/{mode}".encode())
    instances = [
        task.draw(
            sources[row % len(sources)],
            num_tokens=num_tokens,
            mode=drawn,
            rng=np.random.default_rng((seed, num_tokens, salt, row)),
        )
        for row in range(num_rows)
    ]
    stream = _aligned(task, instances, seed)
    return replace(stream, segments=_segments(instances)) if is_shared else stream


def _aligned(task: Task, instances: list[Instance], seed: int) -> Stream:
    """Stack instances of equal length."""
    rows, answers = [], []
    for b, instance in enumerate(instances):
        ids, starts = instance.stream()
        rows.append(ids)
        answers += [
            Answer(b, start, start + len(query.answer_ids), query)
            for start, query in zip(starts, instance.queries, strict=True)
        ]
    return Stream(
        task.name,
        torch.tensor(rows),
        min(len(instance.context_ids) for instance in instances),
        tuple(answers),
        tuple(dict(instance.positions) for instance in instances),
        _fed(instances, answers, len(rows[0])),
        seed=seed,
        task=task,
    )


def _fed(instances: list[Instance], answers: list[Answer], num_tokens: int) -> Tensor | None:
    fed = torch.full((len(instances), num_tokens), GIVEN, dtype=torch.int8)
    for answer in answers:
        query = answer.query
        if query.is_free:
            fed[answer.row, answer.start : answer.stop] = OWN
        first = answer.start - len(query.prompt_ids) - len(query.lead_ids)
        fed[answer.row, first - query.num_sampled : first] = DRAWN
    return fed if bool(fed.any()) else None


def _segments(instances: list[Instance]) -> tuple[tuple[int, int], ...]:
    """Cut the questions into requests, which must stand at the same places in all rows."""
    cuts = set()
    for instance in instances:
        _, starts = instance.stream()
        cuts.add(
            tuple(
                (start - len(query.prompt_ids), start + len(query.answer_ids))
                for start, query in zip(starts, instance.queries, strict=True)
            )
        )
    if len(cuts) != 1:
        raise ValueError(
            "requests on a shared context must be equally long in all rows, got "
            f"{len(cuts)} different layouts; ask one row at a time or use mode late"
        )
    return cuts.pop()


def pages(
    source: Source,
    *,
    num_tokens: int,
    num_scored: int,
    num_rows: int,
    seed: int,
    name: str = "pages",
) -> Stream:
    """Cut num_rows windows of num_tokens tokens, evenly spread, the last num_scored scored.

    Raises ValueError if the text is too short for windows that do not overlap.
    """
    filler = source.filler
    rng = np.random.default_rng((seed, num_tokens, 3))
    share = len(filler) // num_rows
    room = share - num_tokens
    if room < 0:
        raise ValueError(
            f"the text must hold {num_rows} windows of {num_tokens} tokens, got {len(filler)} "
            "tokens; ask for fewer or shorter windows"
        )
    firsts = [i * share + int(rng.integers(room + 1)) for i in range(num_rows)]
    rows = np.stack([filler.ids[first : first + num_tokens] for first in firsts])
    ids = torch.from_numpy(rows.astype(np.int64))
    return Stream(name, ids, num_tokens - num_scored - 1, seed=seed)
