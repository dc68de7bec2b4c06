"""Run a benchmark's documents through a cache: read the prompt, write an answer, score it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from kvmmu.evals.continuations import score_continuations, write_answer
from kvmmu.evals.loaders.base import Document
from kvmmu.evals.settings import Setting, kv_nbytes
from kvmmu.hf.lm import LM

__all__ = ["Row", "longest_text", "run_documents", "summarise"]

Judge = Callable[[Document, str], float | None]
"""A loader's `score`."""


@dataclass(frozen=True)
class Row:
    """What a model with one cache made of one document.

    score is in [0, 1], None where the loader cannot judge; log_likelihood (nats) is that of a
    document's own continuation, None where text was written. num_cut prompt tokens were left out.
    num_tokens is what the cache was made for: the prompt and all that might have been written.
    """

    id: str
    task: str
    metric: str
    score: float | None
    text: str
    log_likelihood: float | None
    num_prompt: int
    num_new: int
    num_cut: int
    num_slots: int
    kv_bytes: int
    num_tokens: int


def run_documents(
    lm: LM,
    setting: Setting,
    documents: Iterable[Document],
    *,
    score: Judge,
    max_tokens: int | None = None,
    tick: Callable[[int], None] | None = None,
) -> Iterator[Row]:
    """Yield a row for each document, each with an empty cache of its own.

    C is taken of the prompt and max_new_tokens (of the continuation, where that is given). The
    prompt is read in chunks and evicted, all that counts comes from the decode path; greedy.
    A prompt with which the text would pass max_tokens (default: the trained length and one) is
    cut in its middle. tick is told after each document. Raises ValueError.
    """
    limit = max_tokens if max_tokens is not None else longest_text(lm)
    for document in documents:
        prompt, tokens = _encode(lm, document)
        num_new = len(tokens) or document.max_new_tokens
        kept = prompt if limit is None else _cut(prompt, limit - num_new, document)
        num_tokens = len(kept) + num_new
        cache = setting.make(lm.model, batch_size=1, num_tokens=num_tokens)
        with setting.enabled(lm.model):
            chunk = setting.call_size(num_tokens)
            text, log_likelihood, value = "", None, None
            if tokens:
                made = score_continuations(lm.model, cache, kept, [tokens], chunk=chunk)
                log_likelihood, value = made[0][0], float(made[0][1])
            else:
                text, num_new = _write(lm, cache, kept, document, chunk)
        yield Row(
            id=document.id,
            task=document.task,
            metric=document.metric,
            score=value if tokens else score(document, text),
            text=text,
            log_likelihood=log_likelihood,
            num_prompt=len(kept),
            num_new=num_new,
            num_cut=len(prompt) - len(kept),
            num_slots=setting.num_slots(num_tokens),
            kv_bytes=kv_nbytes(cache),
            num_tokens=num_tokens,
        )
        if tick:
            tick(1)


def summarise(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """Average the rows by task: metric, number, score, and perplexity where there is one."""
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
    table: dict[str, dict[str, Any]] = {}
    for task, group in by_task.items():
        scores = [row.score for row in group if row.score is not None]
        nats = [row.log_likelihood for row in group if row.log_likelihood is not None]
        table[task] = {
            "metric": group[0].metric,
            "num_documents": len(group),
            "score": sum(scores) / len(scores) if scores else None,
            "perplexity": math.exp(-sum(nats) / len(nats)) if nats else None,
        }
    return table


def _encode(lm: LM, document: Document) -> tuple[list[int], list[int]]:
    """Return the tokens of a prompt and those that follow it, which may be none."""
    prompt: list[int] = lm.encode(document.prompt)["input_ids"][0].tolist()
    if document.mode == "generate":
        return prompt, []
    whole: list[int] = lm.encode(document.prompt + document.references[0])["input_ids"][0].tolist()
    if len(whole) <= len(prompt):
        raise ValueError(f"document {document.id!r} must go on after its prompt, got nothing new")
    return prompt, whole[len(prompt) :]


def _cut(prompt: list[int], room: int, document: Document) -> list[int]:
    """Leave out a prompt's middle, so that room tokens stay. Raises ValueError for no room."""
    if room < 2:
        raise ValueError(
            f"max_tokens must leave room for a prompt before what document {document.id!r} asks "
            f"for, got {room} tokens"
        )
    if len(prompt) <= room:
        return prompt
    return prompt[: room - room // 2] + prompt[len(prompt) - room // 2 :]


def _write(
    lm: LM, cache: Any, prompt: list[int], document: Document, chunk: int
) -> tuple[str, int]:
    """Return the text that was written, cut before the first stop, and its number of tokens."""
    ends = lm.model.generation_config.eos_token_id
    stops = set(ends if isinstance(ends, list) else [ends])

    def text_of(ids: list[int]) -> str:
        return str(lm.tokenizer.decode(ids, skip_special_tokens=True))

    def is_over(ids: list[int]) -> bool:
        return ids[-1] in stops or any(stop in text_of(ids) for stop in document.stop)

    ids = write_answer(
        lm.model, cache, prompt, document.max_new_tokens, chunk=chunk, is_over=is_over
    )
    text = text_of(ids)
    places = [text.find(stop) for stop in document.stop if stop in text]
    return text[: min(places, default=len(text))], len(ids)


def longest_text(lm: LM) -> int | None:
    """Count the tokens of the longest text that the model was trained for, None without a limit.

    It is one more than the trained positions: the last token is never fed.
    """
    config: Any = lm.model.config.get_text_config(decoder=True)
    limit = getattr(config, "max_position_embeddings", None)
    return limit + 1 if limit else None
