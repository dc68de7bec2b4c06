"""Feed streams through a cache and score what it still knows: answers and perplexity."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kvmmu.evals.settings import Setting, kv_nbytes
from kvmmu.evals.streams import DRAWN, GIVEN, OWN, Stream

__all__ = ["Score", "Tick", "feed", "read_context", "score"]

Tick = Callable[[int], None]
"""Told how many tokens a row has just advanced."""


@dataclass(frozen=True)
class Score:
    """What one cache made of one stream.

    scores, in [0, 1], follow the order of the stream's answers, and is_exact tells whether every
    token of the answer was right; losses are, row by row, the sum of the losses of the tokens
    given after the context, and counts their number.
    """

    scores: tuple[float, ...]
    is_exact: tuple[bool, ...]
    losses: tuple[float, ...]
    counts: tuple[int, ...]
    num_slots: int
    kv_bytes: int

    @property
    def num_right(self) -> int:
        """Count the answers with every token right."""
        return sum(self.is_exact)

    @property
    def num_scored(self) -> int:
        """Count the tokens behind the perplexity."""
        return sum(self.counts)

    @property
    def perplexity(self) -> float:
        """Average over all tokens given after the context, the tokens of answers included."""
        return math.exp(sum(self.losses) / self.num_scored)


def read_context(
    model: Any, cache: Any, ids: Tensor, *, chunk: int, tick: Tick | None = None
) -> Tensor | None:
    """Feed a context in calls of at most chunk tokens.

    ids [B,S] -> logits after it [B,V], None after an empty one.
    """
    S = ids.shape[1]
    last: Tensor | None = None
    for begin in range(0, S, chunk):
        piece = ids[:, begin : min(begin + chunk, S)]
        out = model(piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
        if tick:
            tick(piece.shape[1])
        last = out.logits[:, -1]
    return last


@torch.inference_mode()
def feed(
    model: Any, cache: Any, stream: Stream, *, chunk: int, tick: Tick | None = None
) -> tuple[Tensor, Tensor]:
    """Feed the context in chunks, then tokens one at a time.

    Returns, for the tokens from num_context + 1 on, the greedy guess and the loss of the token
    that the stream gives there (0 where nothing was given). -> [B,N'] each
    """
    first, N = stream.num_context, stream.num_tokens
    B = stream.ids.shape[0]
    ids = stream.ids.to(model.device, copy=True)  # the model's own words go in
    after = read_context(model, cache, ids[:, :first], chunk=chunk, tick=tick)
    assert after is not None, "a stream's context holds a token"
    logits = after.float()
    guesses = torch.full((B, N - first - 1), -1, dtype=torch.long, device=ids.device)
    losses = torch.zeros((B, N - first - 1), device=ids.device)
    writer = _Writer(stream, ids)
    writer.write(first, logits, logits.argmax(-1))
    for begin, end in stream.segments or ((first, N),):
        own = copy.deepcopy(cache) if stream.segments else cache
        for t in range(begin, end - 1):
            out = model(ids[:, t : t + 1], past_key_values=own, use_cache=True)
            logits = out.logits[:, -1].float()  # [B,V]
            at = t - first
            guesses[:, at] = logits.argmax(-1)
            losses[:, at] = cross_entropy(logits, ids[:, t + 1], reduction="none")
            writer.write(t + 1, logits, guesses[:, at])
            if tick:
                tick(1)
    if writer.fed is not None:
        losses[writer.fed[:, first + 1 :] != GIVEN] = 0
    return guesses, losses


class _Writer:
    """Put the model's own words into the ids that are fed, where the stream wants them.

    Each row draws from a generator of its own, so that its text is the same in every batch.
    """

    def __init__(self, stream: Stream, ids: Tensor) -> None:
        self.fed = None if stream.fed is None else stream.fed.to(ids.device)
        self.ids = ids
        if self.fed is not None:
            self.is_open = (self.fed != GIVEN).any(0).tolist()
            is_drawn = (self.fed == DRAWN).T.cpu()
            self.drawn_rows = [row.nonzero().flatten().tolist() for row in is_drawn]
            seeds = range(stream.seed, stream.seed + len(ids))
            self.rngs = [torch.Generator().manual_seed(seed) for seed in seeds]

    def write(self, t: int, logits: Tensor, guess: Tensor) -> None:
        """Settle token t of all rows. logits [B,V], guess [B]."""
        if self.fed is None or not self.is_open[t]:
            return
        fed = self.fed[:, t]
        # the noise is drawn on the host, so that every device writes the same text
        noise = torch.full(logits.shape, 0.5)
        for row in self.drawn_rows[t]:
            torch.rand(logits.shape[1], generator=self.rngs[row], out=noise[row])
        noise = noise.clamp(1e-20).to(logits.device)
        drawn = (logits - (-noise.log()).log()).argmax(-1)  # Gumbel: a draw at temperature 1
        chosen = torch.where(fed == OWN, guess, torch.where(fed == DRAWN, drawn, self.ids[:, t]))
        self.ids[:, t] = chosen


def score(model: Any, stream: Stream, setting: Setting, *, tick: Tick | None = None) -> Score:
    """Judge one kind of cache on one stream."""
    B = stream.ids.shape[0]
    N = stream.num_tokens
    cache = setting.make(model, batch_size=B, num_tokens=N)
    with setting.enabled(model):
        guesses, losses = feed(model, cache, stream, chunk=setting.call_size(N), tick=tick)
    return judge(stream, guesses, losses, setting.num_slots(N), kv_nbytes(cache))


def judge(stream: Stream, guesses: Tensor, losses: Tensor, num_slots: int, kv_bytes: int) -> Score:
    """Score what feed() returned. guesses, losses [B,N']."""
    base = stream.num_context + 1
    scores, is_exact = [], []
    for answer in stream.answers:
        written = guesses[answer.row, answer.start - base : answer.stop - base].tolist()
        true = list(answer.query.answer_ids)
        is_exact.append(written == true)
        whole = float(written == true)
        scores.append(whole if stream.task is None else stream.task.score(answer.query, written))
    is_given = guesses >= 0
    if stream.fed is not None:
        is_given &= stream.fed[:, base:].to(guesses.device) == GIVEN
    sums = torch.where(is_given, losses, 0).double().sum(1)
    return Score(
        scores=tuple(scores),
        is_exact=tuple(is_exact),
        losses=tuple(sums.tolist()),
        counts=tuple(is_given.sum(1).tolist()),
        num_slots=num_slots,
        kv_bytes=kv_bytes,
    )
