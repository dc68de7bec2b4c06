"""Retrieval tasks: records of three digits scattered in real text, and questions about them.

The stream of each task, as text (tokens are cut at the same places):

    record             " KEY 123."                   KEY is one word, 123 any three digits
    question, answer   " ? KEY"  ->  " 123"          a "." follows when another question does
    late_query         text and records, then questions
    question_seen      text and records and a question, then the same question again, answered
    hot_set            text and records, then text with questions in it (module hotset)
    variable_tracking  " ALIAS KEY." and " KEY 123."; " ? ALIAS" -> " KEY 123"
    passkey            " The pass key is 12345.";
                       " What is the pass key? The pass key is" -> " 12345"

The model must be fed a question token by token after the context: were it part of the prefill, the
first answer token would come from attention to all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kvmmu.evals.filler import Encode, Filler

__all__ = [
    "Query",
    "Record",
    "Task",
    "default_num_records",
    "draw_records",
    "late_query",
    "make_record",
    "passkey",
    "question_seen",
    "scatter",
    "variable_tracking",
]


@dataclass(frozen=True)
class Query:
    """One question of a stream.

    Fed in this order: lead_ids (text since the last answer), then prompt_ids token by token; the
    model then owes answer_ids, and the last prompt token's logits give the first of them.
    """

    key: str
    lead_ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """A context and the questions that follow it; num_tokens counts all of the stream.

    record_positions maps a key to the stream index of the first token of its record.
    """

    name: str
    context_ids: tuple[int, ...]
    queries: tuple[Query, ...]
    record_positions: dict[str, int] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Count the tokens of context, questions and answers."""
        return len(self.stream()[0])

    def stream(self) -> tuple[list[int], list[int]]:
        """Return all token ids in order and the index of the first token of each answer."""
        ids = list(self.context_ids)
        answer_starts: list[int] = []
        for query in self.queries:
            ids.extend(query.lead_ids)
            ids.extend(query.prompt_ids)
            answer_starts.append(len(ids))
            ids.extend(query.answer_ids)
        return ids, answer_starts


@dataclass(frozen=True)
class Record:
    """A key, its digits, and the ids of the record, of the question and of the answer."""

    key: str
    digits: str
    record_ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


def make_record(key: str, digits: str, *, encode: Encode) -> Record:
    """Encode one record, its question and its answer."""
    return Record(
        key=key,
        digits=digits,
        record_ids=tuple(encode(f" {key} {digits}.")),
        prompt_ids=tuple(encode(f" ? {key}")),
        answer_ids=tuple(encode(f" {digits}")),
    )


def draw_records(
    keys: tuple[str, ...], num_records: int, *, encode: Encode, rng: np.random.Generator
) -> list[Record]:
    """Draw records with different keys and random three-digit values.

    Raises ValueError if there are fewer keys than records.
    """
    if not 1 <= num_records <= len(keys):
        raise ValueError(f"num_records must be in 1..{len(keys)}, got {num_records}; add keys")
    chosen = rng.choice(len(keys), size=num_records, replace=False)
    return [
        make_record(keys[i], f"{int(rng.integers(0, 1000)):03d}", encode=encode) for i in chosen
    ]


def scatter(
    pieces: list[tuple[int, ...]], num_tokens: int, *, filler: Filler, rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Put pieces, in order, between words of num_tokens tokens of filler; ids and piece indices.

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
    out: list[int] = []
    places: list[int] = []
    done = 0
    for piece, cut in zip(pieces, cuts.tolist(), strict=True):
        out.extend(ids[done:cut])
        places.append(len(out))
        out.extend(piece)
        done = cut
    out.extend(ids[done:])
    return out, places


def default_num_records(num_tokens: int) -> int:
    """Give the usual number of records: one in 64 tokens, at least two."""
    return max(2, num_tokens // 64)


def _num_fed(queries: tuple[Query, ...]) -> int:
    return sum(len(q.lead_ids) + len(q.prompt_ids) + len(q.answer_ids) for q in queries)


def late_query(
    filler: Filler,
    encode: Encode,
    *,
    num_tokens: int,
    keys: tuple[str, ...],
    rng: np.random.Generator,
    num_records: int | None = None,
    num_queries: int = 1,
) -> Task:
    """Scatter records in text, then ask: no question is known before the context has ended.

    Raises ValueError if the tokens, keys or records do not suffice.
    """
    num_records = num_records or default_num_records(num_tokens)
    if not 1 <= num_queries <= num_records:
        raise ValueError(f"num_queries must be in 1..{num_records}, got {num_queries}")
    records = draw_records(keys, num_records, encode=encode, rng=rng)
    order = rng.permutation(num_records)[:num_queries].tolist()
    stop = tuple(encode("."))
    queries = tuple(
        Query(records[i].key, stop if n else (), records[i].prompt_ids, records[i].answer_ids)
        for n, i in enumerate(order)
    )
    pieces = [record.record_ids for record in records]
    context, places = scatter(pieces, num_tokens - _num_fed(queries), filler=filler, rng=rng)
    positions = {record.key: place for record, place in zip(records, places, strict=True)}
    return Task("late_query", tuple(context), queries, positions)


def question_seen(
    filler: Filler,
    encode: Encode,
    *,
    num_tokens: int,
    keys: tuple[str, ...],
    rng: np.random.Generator,
    num_records: int | None = None,
    is_first: bool = False,
) -> Task:
    """Let the context hold the question, last (or first), and ask it again after the context.

    A cache may use the question when it chooses what to keep; the answer comes from what it kept.
    Raises ValueError if the tokens, keys or records do not suffice.
    """
    num_records = num_records or default_num_records(num_tokens)
    records = draw_records(keys, num_records, encode=encode, rng=rng)
    asked = records[int(rng.integers(num_records))]
    question = asked.prompt_ids
    tail = 2 * len(question) + len(asked.answer_ids)
    pieces = [record.record_ids for record in records]
    text, places = scatter(pieces, num_tokens - tail, filler=filler, rng=rng)
    context = [*question, *text] if is_first else [*text, *question]
    shift = len(question) if is_first else 0
    positions = {r.key: place + shift for r, place in zip(records, places, strict=True)}
    query = Query(asked.key, (), question, asked.answer_ids)
    return Task("question_seen", tuple(context), (query,), positions)


def passkey(
    filler: Filler,
    encode: Encode,
    *,
    num_tokens: int,
    rng: np.random.Generator,
    num_digits: int = 5,
) -> Task:
    """Hide one sentence with a number of num_digits digits in text and ask for the number.

    Raises ValueError if num_tokens is too small.
    """
    digits = "".join(str(d) for d in rng.integers(0, 10, size=num_digits).tolist())
    hidden = tuple(encode(f" The pass key is {digits}."))
    prompt = tuple(encode(" What is the pass key? The pass key is"))
    answer = tuple(encode(f" {digits}"))
    room = num_tokens - len(prompt) - len(answer)
    context, places = scatter([hidden], room, filler=filler, rng=rng)
    return Task(
        "passkey",
        tuple(context),
        (Query("pass key", (), prompt, answer),),
        {"pass key": places[0]},
    )


def variable_tracking(
    filler: Filler,
    encode: Encode,
    *,
    num_tokens: int,
    keys: tuple[str, ...],
    rng: np.random.Generator,
    num_records: int | None = None,
    num_queries: int = 1,
) -> Task:
    """Name a record by a second key (" ALIAS KEY."); asked for ALIAS, owe the key and the digits.

    Half of num_records are records, half aliases, in any order in the text.
    Raises ValueError if the tokens, keys or records do not suffice.
    """
    num_pairs = max(1, (num_records or default_num_records(num_tokens)) // 2)
    num_queries = min(num_queries, num_pairs)
    records = draw_records(keys, 2 * num_pairs, encode=encode, rng=rng)
    values, aliases = records[:num_pairs], [record.key for record in records[num_pairs:]]
    pieces = [r.record_ids for r in values]
    pieces += [
        tuple(encode(f" {alias} {r.key}.")) for alias, r in zip(aliases, values, strict=True)
    ]
    names = [r.key for r in values] + aliases
    order = rng.permutation(len(pieces)).tolist()
    stop = tuple(encode("."))
    queries = tuple(
        Query(
            aliases[i],
            stop if n else (),
            tuple(encode(f" ? {aliases[i]}")),
            tuple(encode(f" {values[i].key} {values[i].digits}")),
        )
        for n, i in enumerate(rng.permutation(num_pairs)[:num_queries].tolist())
    )
    context, places = scatter(
        [pieces[i] for i in order], num_tokens - _num_fed(queries), filler=filler, rng=rng
    )
    positions = {names[i]: place for i, place in zip(order, places, strict=True)}
    return Task("variable_tracking", tuple(context), queries, positions)
