"""Feed streams through a cache and score what it still knows: exact answers and perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kvmmu.evals.settings import Setting, kv_nbytes
from kvmmu.evals.streams import Stream

__all__ = ["Score", "Tick", "feed", "read_context", "score"]

Tick = Callable[[int], None]
"""Told how many tokens a row has just advanced."""


@dataclass(frozen=True)
class Score:
    """What one cache made of one stream; is_right follows the order of the stream's answers."""

    is_right: tuple[bool, ...]
    perplexity: float
    num_scored: int
    num_slots: int
    kv_bytes: int

    @property
    def num_right(self) -> int:
        """Count the answers with every token right."""
        return sum(self.is_right)


def read_context(
    model: Any, cache: Any, ids: Tensor, *, chunk: int, tick: Tick | None = None
) -> None:
    """Feed a context in calls of at most chunk tokens. ids [B,S]."""
    S = ids.shape[1]
    for begin in range(0, S, chunk):
        piece = ids[:, begin : min(begin + chunk, S)]
        model(piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
        if tick:
            tick(piece.shape[1])


@torch.inference_mode()
def feed(
    model: Any, cache: Any, stream: Stream, *, chunk: int, tick: Tick | None = None
) -> tuple[Tensor, Tensor]:
    """Feed the context in chunks, then tokens one at a time.

    The true tokens are fed, which changes nothing for an answer decoded exactly. Returns, for the
    tokens from num_context + 1 on, the greedy guess and the loss of the true token. -> [B,N']
    """
    first, N = stream.num_context, stream.num_tokens
    ids = stream.ids.to(model.device)
    read_context(model, cache, ids[:, :first], chunk=chunk, tick=tick)
    guesses, losses = [], []
    for t in range(first, N - 1):
        out = model(ids[:, t : t + 1], past_key_values=cache, use_cache=True)
        logits = out.logits[:, -1].float()  # [B,V]
        guesses.append(logits.argmax(-1))
        losses.append(cross_entropy(logits, ids[:, t + 1], reduction="none"))
        if tick:
            tick(1)
    return torch.stack(guesses, 1), torch.stack(losses, 1)


def score(model: Any, stream: Stream, setting: Setting, *, tick: Tick | None = None) -> Score:
    """Judge one kind of cache on one stream.

    Perplexity is over the tokens fed one at a time, the tokens of answers included.
    """
    B = stream.ids.shape[0]
    N = stream.num_tokens
    cache = setting.make(model, batch_size=B, num_tokens=N)
    with setting.enabled(model):
        guesses, losses = feed(model, cache, stream, chunk=setting.call_size(N), tick=tick)
    return Score(
        is_right=_compare(stream, guesses),
        perplexity=math.exp(losses.double().mean().item()),
        num_scored=losses.numel(),
        num_slots=setting.num_slots(N),
        kv_bytes=kv_nbytes(cache),
    )


def _compare(stream: Stream, guesses: Tensor) -> tuple[bool, ...]:
    """Tell for each answer whether all of its tokens were guessed. guesses [B,N']."""
    hits = guesses == stream.ids[:, stream.num_context + 1 :].to(guesses.device)  # [B,N']
    base = stream.num_context + 1
    return tuple(bool(hits[a.row, a.start - base : a.stop - base].all()) for a in stream.answers)
