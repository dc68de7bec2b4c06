"""Exact match of the tasks and perplexity of a text, with a full cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from model import Llama
from tokenizers import Tokenizer
from torch import Tensor

from kvmmu.evals.filler import encode_filler
from kvmmu.evals.keys import key_words
from kvmmu.evals.source import Source
from kvmmu.evals.tasks.base import TASKS, Instance, Mode, Task
from kvmmu.evals.tasks.key_value import KeyValue
from kvmmu.evals.tasks.niah_multikey import MultiKey
from kvmmu.evals.tasks.variable_tracking import VariableTracking

Logits = Callable[[Tensor], Tensor]  # ids [1,T] -> logits [T,V]


@torch.no_grad()
def exact_answers(logits_of: Logits, instance: Instance) -> list[bool]:
    """Tell for each question whether greedy decoding gives every token of the answer.

    True answers are fed, which changes nothing for an answer decoded exactly.
    """
    ids, starts = instance.stream()
    best = logits_of(torch.tensor([ids])).argmax(-1).tolist()
    return [
        best[start - 1 : start - 1 + len(query.answer_ids)] == list(query.answer_ids)
        for start, query in zip(starts, instance.queries, strict=True)
    ]


@torch.no_grad()
def perplexity(logits_of: Logits, ids: list[int], *, num_tokens: int, num_windows: int) -> float:
    """Average over windows of num_tokens tokens, evenly spaced; every token but the first."""
    losses: list[float] = []
    firsts = np.linspace(0, len(ids) - num_tokens - 1, num_windows).astype(int)
    for first in firsts.tolist():
        window = torch.tensor([ids[first : first + num_tokens]])
        logits = logits_of(window)[:-1]
        losses.append(F.cross_entropy(logits.float(), window[0, 1:]).item())
    return math.exp(float(np.mean(losses)))


def _make(name: str, num_queries: int, *, is_first: bool) -> tuple[Task, Mode]:
    """Make the task behind a name of the model card."""
    if name == "late_query":
        return MultiKey(num_queries=num_queries), "late"
    if name == "question_seen":
        return MultiKey(is_first=is_first), "seen"
    if name == "variable_tracking":
        return VariableTracking(num_queries=8), "late"
    if name == "key_value_8":
        return KeyValue(num_hex=8), "late"
    task = TASKS.make(name)
    return task, "late" if "late" in task.modes else "online"


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text).ids
    return ids


class Validation:
    """Held-out keys, unless told otherwise, in held-out text."""

    def __init__(
        self, text: str, tokenizer: Tokenizer, *, split: Literal["train", "held_out"] = "held_out"
    ) -> None:
        encode = partial(_encode, tokenizer)
        self.source = Source(encode_filler(text, encode), encode, key_words(split))

    def instances(self, name: str, num_tokens: int, *, seed: int) -> Iterator[Instance]:
        """Yield instances of one kind without end."""
        rng = np.random.default_rng((seed, num_tokens))
        num = max(2, num_tokens // 64)
        while True:
            task, mode = _make(name, min(8, num), is_first=bool(rng.random() < 0.5))
            yield task.draw(self.source, num_tokens=num_tokens, mode=mode, rng=rng)

    def exact_match(
        self, logits_of: Logits, name: str, num_tokens: int, *, num_queries: int, seed: int = 0
    ) -> tuple[float, int]:
        """Return the share of exact answers and the number of questions asked."""
        results: list[bool] = []
        for instance in self.instances(name, num_tokens, seed=seed):
            results += exact_answers(logits_of, instance)
            if len(results) >= num_queries:
                return sum(results) / len(results), len(results)
        raise AssertionError

    def score(self, model: Llama, length: int) -> dict[str, float]:
        """Score late queries at a few lengths, one hot set, and perplexity."""
        logits_of = autocast_logits(model)
        scores: dict[str, float] = {}
        for num_tokens in (256, 512, 1024, 2048):
            if num_tokens <= 2 * length:
                share, _ = self.exact_match(logits_of, "late_query", num_tokens, num_queries=96)
                scores[f"late_query_{num_tokens}"] = round(share, 3)
        share, _ = self.exact_match(logits_of, "hot_set", min(512, length), num_queries=64)
        scores[f"hot_set_{min(512, length)}"] = round(share, 3)
        ids = self.source.filler.ids.tolist()
        scores["perplexity"] = round(perplexity(logits_of, ids, num_tokens=512, num_windows=16), 2)
        return scores


def autocast_logits(model: Llama) -> Logits:
    """Wrap the training model: bfloat16 forward, ids [1,T] -> logits [T,V]."""

    def logits_of(ids: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            return model.logits(model(ids)[0])

    return logits_of
