"""Score continuations on the decode path, where exactly C slots are seen."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kvmmu.evals.answers import read_context
from kvmmu.evals.lm_harness.arguments import CacheArguments
from kvmmu.hf.cache import SlotCache
from kvmmu.hf.enable import enabled

__all__ = ["score_continuations"]


@torch.inference_mode()
def score_continuations(
    model: Any,
    arguments: CacheArguments,
    context: Sequence[int],
    continuations: Sequence[Sequence[int]],
    num_tokens: int,
) -> list[tuple[float, bool]]:
    """Return each continuation's log-likelihood (nats) and whether it is the greedy one.

    The context is read and evicted once, in chunks; its last token and the continuations are fed
    one at a time, each continuation to a copy of the cache. num_tokens is what C is taken of.
    Context and continuations hold a token or more.
    """
    cache = arguments.make(model, num_tokens)
    ids = torch.tensor([context], device=model.device)  # [1,S]
    made = []
    with enabled(model):
        read_context(model, cache, ids[:, :-1], chunk=arguments.call_size(num_tokens))
        first = _step(model, cache, int(context[-1]))
        for i, tokens in enumerate(continuations):
            is_last = i == len(continuations) - 1
            own = cache if is_last or len(tokens) == 1 else copy.deepcopy(cache)
            made.append(_score(model, own, first, tokens))
    return made


def _score(
    model: Any, cache: SlotCache, log_probs: Tensor, tokens: Sequence[int]
) -> tuple[float, bool]:
    """Feed the true tokens one by one. log_probs [V], of the first of them."""
    total, is_greedy = 0.0, True
    for i, token in enumerate(tokens):
        if i > 0:
            log_probs = _step(model, cache, int(tokens[i - 1]))
        total += float(log_probs[token])
        is_greedy &= int(log_probs.argmax()) == token
    return total, is_greedy


def _step(model: Any, cache: SlotCache, token: int) -> Tensor:
    """Feed one token. -> log-probabilities of the next one, float32 [V]."""
    ids = torch.tensor([[token]], device=model.device)
    out = model(ids, past_key_values=cache, use_cache=True)
    return torch.log_softmax(out.logits[0, -1].float(), -1)
