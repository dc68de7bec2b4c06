"""Logits to tokens: each row by its own request's parameters and its own generator.

All work on logits is elementwise or along a row, and each row's random number comes from its
request's generator, so that what a request draws does not depend on its batch. The order is that
of transformers: repetition penalty, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvmmu.engine.request import Logprob, SamplingParams

__all__ = ["Draw", "RowState", "sample"]


class RowState:
    """What one request's drawing remembers: its generator, and the tokens seen so far."""

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int], vocab_size: int) -> None:
        self.params = params
        self.generator: torch.Generator | None = None
        if not params.is_greedy:
            seed = secrets.randbits(63) if params.seed is None else params.seed
            self.generator = torch.Generator().manual_seed(seed)
        self.is_seen: Tensor | None = None
        if params.repetition_penalty != 1.0:
            self.is_seen = torch.zeros(vocab_size, dtype=torch.bool)
            self.is_seen[torch.tensor(prompt_ids)] = True

    def note(self, token_id: int) -> None:
        """Remember a token that was made."""
        if self.is_seen is not None:
            self.is_seen[token_id] = True


@dataclass(frozen=True)
class Draw:
    """One row's token, or what was wrong with its logits."""

    token_id: int
    logprob: Logprob | None = None
    error: str | None = None


def sample(logits: Tensor, rows: Sequence[RowState]) -> list[Draw]:
    """Draw one token a row. logits float32 [R,V] on any device, unchanged -> R draws.

    A row whose logits are not all finite is answered by an error, and alone.
    """
    low, high = torch.aminmax(logits, dim=-1)
    is_finite: list[bool] = (low.isfinite() & high.isfinite()).tolist()
    penalized = _penalized(logits, rows)
    tokens: list[int] = penalized.argmax(-1).tolist()  # the first of equals, as torch documents
    drawn = [i for i, row in enumerate(rows) if not row.params.is_greedy and is_finite[i]]
    if drawn:
        for i, token in zip(drawn, _draw(penalized[drawn].cpu(), [rows[i] for i in drawn])):
            tokens[i] = token
    draws = []
    for i, row in enumerate(rows):
        if not is_finite[i]:
            draws.append(Draw(-1, error="logits must be finite, got NaN or infinity"))
            continue
        row.note(tokens[i])
        n = row.params.logprobs
        logprob = None if n is None else _logprob(logits[i], tokens[i], n)
        draws.append(Draw(tokens[i], logprob))
    return draws


def _penalized(logits: Tensor, rows: Sequence[RowState]) -> Tensor:
    """Lower the logits of tokens seen, where a row asks for it. [R,V]"""
    asked = [i for i, row in enumerate(rows) if row.is_seen is not None]
    if not asked:
        return logits
    logits = logits.clone()
    for i in asked:
        is_seen, by = rows[i].is_seen, rows[i].params.repetition_penalty
        assert is_seen is not None
        row = logits[i]
        lower = torch.where(row < 0, row * by, row / by)
        logits[i] = torch.where(is_seen.to(row.device), lower, row)
    return logits


def _draw(logits: Tensor, rows: Sequence[RowState]) -> list[int]:
    """Draw by each row's probabilities. logits [R,V], all rows sampled -> R token ids."""

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32)[:, None]

    params = [row.params for row in rows]
    logits = logits / column([p.temperature for p in params])
    logits = logits - logits.amax(-1, keepdim=True)  # a tiny temperature overflows nothing
    if any(p.top_k is not None or p.top_p < 1.0 for p in params):
        logits = _head(logits, params)
    probs = logits.softmax(-1)
    least = column([p.min_p for p in params]) * probs.amax(-1, keepdim=True)
    probs = torch.where(probs < least, 0, probs)
    below = probs.double().cumsum(-1)  # [R,V]
    total = below[:, -1:]
    each = [torch.rand(1, generator=row.generator, dtype=torch.float64) for row in rows]
    at = torch.minimum(torch.stack(each) * total, total.nextafter(torch.zeros_like(total)))
    tokens: list[int] = torch.searchsorted(below, at, right=True)[:, 0].tolist()
    return tokens


def _head(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Put all but the likeliest tokens to minus infinity, by top_k and then top_p. [R,V]"""
    V = logits.shape[-1]
    ordered = logits.sort(dim=-1, descending=True).values  # [R,V]
    last = torch.tensor([min(p.top_k or V, V) - 1 for p in params])[:, None]
    logits = logits.masked_fill(logits < ordered.gather(-1, last), -torch.inf)  # ties stay
    ordered = ordered.masked_fill(ordered < ordered.gather(-1, last), -torch.inf)
    top_p = torch.tensor([p.top_p for p in params], dtype=torch.float64)[:, None]
    before = ordered.softmax(-1).double().cumsum(-1).roll(1, dims=-1)
    before[:, 0] = 0  # probability of all likelier tokens
    kept = ((before < top_p) | (top_p == 1)).sum(-1, keepdim=True)  # at least one
    return logits.masked_fill(logits < ordered.gather(-1, kept - 1), -torch.inf)


def _logprob(logits: Tensor, token_id: int, num_top: int) -> Logprob:
    """Read log-probabilities from a row of the model's logits [V]."""
    logprobs = logits.float().log_softmax(-1)
    best = logprobs.topk(min(num_top, len(logprobs)))
    top = tuple(zip(best.indices.tolist(), best.values.tolist()))
    return Logprob(token_id, float(logprobs[token_id]), top)
