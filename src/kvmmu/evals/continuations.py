"""Read a context into a cache, then score or write what follows on the decode path.

The context's last token and all that follows are fed one at a time: every logit that counts comes
from an attention over exactly what the cache holds. The caller holds `enabled(model)`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kvmmu.evals.answers import read_context

__all__ = ["score_continuations", "write_answer"]


@torch.inference_mode()
def score_continuations(
    model: Any,
    cache: Any,
    context: Sequence[int],
    continuations: Sequence[Sequence[int]],
    *,
    chunk: int,
) -> list[tuple[float, bool]]:
    """Return each continuation's log-likelihood (nats) and whether it is the greedy one.

    The context is read once, in calls of at most chunk tokens; each continuation but the last
    gets a copy of the cache. Context and continuations hold a token or more.
    """
    first = torch.log_softmax(_read(model, cache, context, chunk), -1)
    made = []
    for i, tokens in enumerate(continuations):
        is_last = i == len(continuations) - 1
        own = cache if is_last or len(tokens) == 1 else copy.deepcopy(cache)
        made.append(_score(model, own, first, tokens))
    return made


@torch.inference_mode()
def write_answer(
    model: Any,
    cache: Any,
    context: Sequence[int],
    max_new_tokens: int,
    *,
    chunk: int,
    is_over: Callable[[list[int]], bool],
) -> list[int]:
    """Continue a context greedily until is_over(new tokens) or max_new_tokens."""
    logits = _read(model, cache, context, chunk)
    made: list[int] = []
    while True:
        made.append(int(logits.argmax()))
        if len(made) == max_new_tokens or is_over(made):
            return made
        logits = _step(model, cache, made[-1])


def _read(model: Any, cache: Any, context: Sequence[int], chunk: int) -> Tensor:
    """Read a context, its last token on the decode path. -> logits float32 [V]."""
    ids = torch.tensor([list(context)], device=model.device)  # [1,S]
    read_context(model, cache, ids[:, :-1], chunk=chunk)
    return _step(model, cache, int(context[-1]))


def _score(model: Any, cache: Any, log_probs: Tensor, tokens: Sequence[int]) -> tuple[float, bool]:
    """Feed the true tokens one by one. log_probs [V], of the first of them."""
    total, is_greedy = 0.0, True
    for i, token in enumerate(tokens):
        if i > 0:
            log_probs = torch.log_softmax(_step(model, cache, int(tokens[i - 1])), -1)
        total += float(log_probs[token])
        is_greedy &= int(log_probs.argmax()) == token
    return total, is_greedy


def _step(model: Any, cache: Any, token: int) -> Tensor:
    """Feed one token. -> logits of the next one, float32 [V]."""
    ids = torch.tensor([[token]], device=model.device)
    out = model(ids, past_key_values=cache, use_cache=True)
    logits: Tensor = out.logits[0, -1].float()
    return logits
