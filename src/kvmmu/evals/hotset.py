"""The hot-set task: a few records are asked again and again while the text goes on."""

from __future__ import annotations

import numpy as np

from kvmmu.evals.filler import Encode, Filler
from kvmmu.evals.retrieval import Query, Task, draw_records, scatter

__all__ = ["hot_set"]


def hot_set(
    filler: Filler,
    encode: Encode,
    *,
    num_tokens: int,
    keys: tuple[str, ...],
    rng: np.random.Generator,
    num_records: int | None = None,
    num_queries: int | None = None,
    exponent: float = 1.0,
) -> Task:
    """Scatter records in the first third, then ask Zipf-distributed questions amid filler.

    The r-th hottest record is drawn with weight r ** -exponent; the defaults are a record in 48
    tokens and a question in 32. Raises ValueError if the tokens, keys or records do not suffice.
    """
    num_records = num_records or max(2, num_tokens // 48)
    num_queries = num_queries or max(2, num_tokens // 32)
    records = draw_records(keys, num_records, encode=encode, rng=rng)
    pieces = [record.record_ids for record in records]
    head = max(num_tokens // 3, sum(len(piece) for piece in pieces) + num_records)
    context, places = scatter(pieces, head, filler=filler, rng=rng)
    weights = np.arange(1, num_records + 1, dtype=np.float64) ** -exponent
    ranks = rng.permutation(num_records)  # a record's place in the text says nothing of its heat
    asked = ranks[rng.choice(num_records, size=num_queries, p=weights / weights.sum())].tolist()
    stop = tuple(encode("."))
    turns = [stop * (n > 0) + records[i].prompt_ids for n, i in enumerate(asked)]
    num_asked = sum(len(turns[n]) + len(records[i].answer_ids) for n, i in enumerate(asked))
    num_left = num_tokens - head - num_asked
    if num_left < num_queries:
        raise ValueError(
            f"num_tokens must leave a token of filler for each of {num_queries} questions, "
            f"got {num_tokens}; raise num_tokens or ask less"
        )
    ids, starts = filler.take(num_left, rng=rng)
    cuts = np.sort(rng.choice(starts, size=num_queries, replace=num_queries > len(starts)))
    cuts[-1] = num_left
    queries: list[Query] = []
    done = 0
    for n, (i, cut) in enumerate(zip(asked, cuts.tolist(), strict=True)):
        lead = (stop if n else ()) + tuple(ids[done:cut])
        queries.append(Query(records[i].key, lead, records[i].prompt_ids, records[i].answer_ids))
        done = cut
    positions = {record.key: place for record, place in zip(records, places, strict=True)}
    return Task("hot_set", tuple(context), tuple(queries), positions)
