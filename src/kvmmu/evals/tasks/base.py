"""Task: a question about a text, its generator and its metric. The contract of every task file.

A task draws `Instance`s: a context and the questions that follow it. Nothing that is scored is
part of the context, and the runner feeds what follows the context token by token, so that no
answer token comes from an attention that saw more than the cache held.

`mode` says what the cache may know when it chooses what to keep:
    late     the questions come after the context, one turn after the other
    seen     the context ends (or begins) with the question, which then is asked again
    online   the questions stand in the text, among what goes on

`compose` builds all three from the same pieces; a task file only draws pieces and questions.
Every draw takes its randomness from the generator it is given and from nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np

from kvmmu.evals.filler import Filler
from kvmmu.evals.source import Source
from kvmmu.registry import Registry

__all__ = [
    "CAPABILITIES",
    "TASKS",
    "Ids",
    "Instance",
    "Mode",
    "Query",
    "Task",
    "compose",
    "digits",
    "draw_keys",
    "keys_of",
    "one_of",
    "scatter",
]

Ids = tuple[int, ...]
Mode = Literal["late", "seen", "online"]
CAPABILITIES = (
    "string retrieval",
    "semantic retrieval",
    "global information",
    "multi-tasking",
    "long generation",
)
"""What a task asks of a memory: SCBench's four (Li et al., ICLR 2025) and writing at length."""


@dataclass(frozen=True)
class Query:
    """One question. Fed in this order: lead_ids (text since the last answer), then prompt_ids.

    The model then owes answer_ids. Of `targets` (by default the whole answer) the score is the
    share found in what it writes. With is_free its own words are fed, else the true ones (which
    changes nothing for an answer that is exact). num_sampled tokens before the lead are drawn
    from the model itself: it writes on, and what it writes fills the cache.
    """

    prompt_ids: Ids
    answer_ids: Ids
    targets: tuple[Ids, ...] = ()
    is_free: bool = False
    lead_ids: Ids = ()
    num_sampled: int = 0
    key: str = ""

    @property
    def num_tokens(self) -> int:
        """Count all tokens, the answer's included."""
        fed = len(self.lead_ids) + len(self.prompt_ids) + len(self.answer_ids)
        return fed + self.num_sampled


@dataclass(frozen=True)
class Instance:
    """A context and its questions.

    positions and records map a record's name to the index of its first token and to its tokens;
    keys are the key words that the instance uses.
    """

    context_ids: Ids
    queries: tuple[Query, ...]
    positions: dict[str, int] = field(default_factory=dict)
    records: dict[str, Ids] = field(default_factory=dict)
    keys: tuple[str, ...] = ()

    def stream(self) -> tuple[list[int], list[int]]:
        """Return all ids in order (0 where the model writes) and where each answer starts."""
        ids = list(self.context_ids)
        starts: list[int] = []
        for query in self.queries:
            ids += [0] * query.num_sampled
            ids += query.lead_ids
            ids += query.prompt_ids
            starts.append(len(ids))
            ids += query.answer_ids
        return ids, starts


@dataclass(frozen=True)
class Task(ABC):
    """Draw instances of one kind; parameters are the dataclass's fields."""

    name: ClassVar[str]
    capability: ClassVar[str]
    modes: ClassVar[tuple[Mode, ...]] = ("late", "seen", "online")
    question: ClassVar[str] = ""

    @abstractmethod
    def draw(
        self, source: Source, *, num_tokens: int, mode: Mode, rng: np.random.Generator
    ) -> Instance:
        """Draw an instance of exactly num_tokens tokens.

        Raises ValueError if the tokens or the keys do not suffice.
        """

    def chance(self, num_tokens: int) -> float:
        """Return the expected score of one who copies without finding.

        Such a reader knows the form of the answer and gives something of that form from the text,
        at random: 0 where the text holds nothing else of that form.
        """
        return 0.0

    def score(self, query: Query, written: Sequence[int]) -> float:
        """Return the share of the query's targets found in what was written, in [0, 1]."""
        targets = query.targets or (query.answer_ids,)
        return sum(_holds(written, target) for target in targets) / len(targets)

    def check_mode(self, mode: str) -> None:
        """Raise ValueError if the task does not exist in a mode."""
        if mode not in self.modes:
            raise ValueError(
                f"mode of task {self.name} must be one of {', '.join(self.modes)}, got {mode!r}"
            )


def _holds(ids: Sequence[int], part: Ids) -> bool:
    size = len(part)
    return any(tuple(ids[i : i + size]) == part for i in range(len(ids) - size + 1))


TASKS: Registry[Task] = Registry(
    "task",
    Task,  # type: ignore[type-abstract]
    "kvmmu.evals.tasks",
    group="kvmmu.tasks",
)


def keys_of(source: Source, *, is_written: bool = False) -> tuple[str, ...]:
    """Return the keys of records, or those of tasks whose answers hold keys."""
    return source.keys if not is_written or source.written is None else source.written


def draw_keys(
    source: Source, num: int, rng: np.random.Generator, *, is_written: bool = False
) -> list[str]:
    """Draw different keys. Raises ValueError if there are too few."""
    keys = keys_of(source, is_written=is_written)
    if not 1 <= num <= len(keys):
        raise ValueError(
            f"number of keys asked for must be in [1, {len(keys)}], got {num}; add keys or "
            "ask for fewer records"
        )
    return [keys[i] for i in rng.choice(len(keys), size=num, replace=False)]


def one_of(num: int) -> float:
    """Return the chance of picking the right one of num; 0 where there is no other to pick."""
    return 1 / num if num > 1 else 0.0


def digits(rng: np.random.Generator, num_digits: int = 3) -> str:
    """Draw a number of num_digits digits."""
    return f"{int(rng.integers(0, 10**num_digits)):0{num_digits}d}"


def scatter(
    pieces: Sequence[Ids], num_tokens: int, *, filler: Filler, rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Put pieces, in order, between words of filler: num_tokens in all; ids and piece indices.

    Raises ValueError if the filler left is too short to part the pieces.
    """
    num_filler = num_tokens - sum(len(piece) for piece in pieces)
    if num_filler < 1:
        raise ValueError(
            f"num_tokens must exceed {num_tokens - num_filler} tokens of records and questions, "
            f"got {num_tokens}; raise num_tokens or ask for fewer records"
        )
    ids, starts = filler.take(num_filler, rng=rng)
    cuts = np.sort(rng.choice(starts, size=len(pieces), replace=len(pieces) > len(starts)))
    return _insert(pieces, ids, cuts.tolist())


def _insert(pieces: Sequence[Ids], ids: list[int], cuts: list[int]) -> tuple[list[int], list[int]]:
    out: list[int] = []
    places: list[int] = []
    done = 0
    for piece, cut in zip(pieces, cuts, strict=True):
        out += ids[done:cut]
        places.append(len(out))
        out += piece
        done = cut
    return out + ids[done:], places


def compose(
    source: Source,
    pieces: Sequence[Ids],
    queries: Sequence[Query],
    *,
    num_tokens: int,
    mode: Mode,
    rng: np.random.Generator,
    names: Sequence[str] = (),
    keys: Sequence[str] | None = None,
    depth: float | None = None,
    is_first: bool = False,
) -> Instance:
    """Scatter pieces in filler and ask queries in a mode; names[i] names the record of pieces[i].

    keys are the key words used, by default the names. In mode "seen" only the first query is
    asked, and it stands before (is_first) or after the text too. In mode "online" the pieces
    stand in the first third. depth in [0, 1] puts the first piece there in the text, rounded to
    a word.
    """
    filler, stop = source.filler, tuple(source.encode("."))
    if mode == "seen":
        queries = queries[:1]
    queries = [replace(q, lead_ids=stop + q.lead_ids if n else q.lead_ids)
               for n, q in enumerate(queries)]  # fmt: skip
    room = num_tokens - sum(q.num_tokens for q in queries)
    if mode == "seen":
        room -= len(queries[0].prompt_ids)
    told = sum(len(p) for p in pieces)
    if mode == "online":
        room = max(num_tokens // 3, told + len(pieces))
    elif room <= told:
        raise ValueError(
            f"num_tokens must exceed {num_tokens - room + told} tokens of records and questions, "
            f"got {num_tokens}; raise num_tokens or ask for fewer records"
        )
    if depth is None:
        text, places = scatter(pieces, room, filler=filler, rng=rng)
    else:
        text, places = _at_depth(pieces[0], room, depth, filler=filler, rng=rng)
    if mode == "seen":
        asked = list(queries[0].prompt_ids)
        text = asked + text if is_first else text + asked
        places = [place + len(asked) * is_first for place in places]
    if mode == "online":
        queries = _interleave(queries, num_tokens - room, filler=filler, rng=rng)
    return Instance(
        tuple(text),
        tuple(queries),
        dict(zip(names, places, strict=True)) if names else {},
        dict(zip(names, pieces, strict=True)) if names else {},
        tuple(names if keys is None else keys),
    )


def _at_depth(
    piece: Ids, room: int, depth: float, *, filler: Filler, rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    ids, starts = filler.take(room - len(piece), rng=rng)
    cut = int(starts[np.abs(starts - depth * len(ids)).argmin()])
    return _insert([piece], ids, [cut])


def _interleave(
    queries: Sequence[Query], num_tokens: int, *, filler: Filler, rng: np.random.Generator
) -> list[Query]:
    """Part the queries by filler, at random; the last token of all is the last answer's."""
    num_filler = num_tokens - sum(q.num_tokens for q in queries)
    if num_filler < len(queries):
        raise ValueError(
            f"num_tokens must leave a token of filler for each of {len(queries)} questions, "
            f"got {num_filler} tokens; raise num_tokens or ask less"
        )
    ids, starts = filler.take(num_filler, rng=rng)
    size = len(queries)
    cuts = np.sort(rng.choice(starts, size=size, replace=size > len(starts))).tolist()
    cuts[-1] = num_filler
    begins = [0, *cuts[:-1]]
    return [
        replace(q, lead_ids=q.lead_ids + tuple(ids[a:b]))
        for q, a, b in zip(queries, begins, cuts, strict=True)
    ]
