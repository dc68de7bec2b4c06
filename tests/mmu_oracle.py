"""A second KV-MMU, written from DESIGN's rules in plain Python and float64, one row at a time.

It shares no code with the library and keeps one object per token, so that each policy's rule
stands in three lines. `clear` tells whether every choice so far was made by a clear margin:
float32 may decide a near tie differently.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

CLEAR = 1e-4
"""Relative gap between the last to leave and the first to stay: float32 errs by less."""


@dataclass
class Token:
    """One token of one KV head: where it stands in the text, its K and V, what it earned."""

    position: int
    k: np.ndarray
    v: np.ndarray
    score: float = 0.0
    votes: float = 0.0
    earned: dict[int, float] = field(default_factory=dict)
    born: int = field(default=0)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


class Rule:
    """What a policy does, told by name. p below is a list over the group's query heads."""

    def __init__(self, name: str, **params: Any) -> None:
        self.name, self.params = name, params

    def see(self, tokens: list[Token], p: np.ndarray, at: int) -> None:
        """Take the probabilities of the query at position `at` in. p [G, len(tokens)]."""
        decay = self.params.get("decay", 1.0)
        for i, token in enumerate(tokens):
            token.earned[at] = p[:, i].sum()  # by query, so that a window is a plain sum
            if self.name == "novelty":
                is_old = at - token.position >= self.params["grace"]
                token.score = max(token.score * decay, p[:, i].mean() * is_old)
            elif self.params.get("statistic") == "max":
                token.score = max(token.score * decay, p[:, i].mean())
            elif self.name in ("h2o", "rce"):
                token.score = token.score * decay + p[:, i].sum()
            elif self.name == "tova":
                token.score = p[:, i].mean()

    def priority(
        self, token: Token, tokens: list[Token], num_seen: int, past: list[Token]
    ) -> float:
        """Rank a token among those held; `past` are all that ever came, the evicted included."""
        if self.name == "novelty":
            return self._novelty(token, tokens, past)
        if self.name == "streaming_llm":
            return token.position - num_seen
        if self.name == "keydiff":
            directions = [t.k / np.linalg.norm(t.k) for t in tokens]
            anchor = np.mean(directions, axis=0)
            return -float(token.k @ anchor / np.linalg.norm(token.k) / np.linalg.norm(anchor))
        if self.name != "rce":
            return token.score
        age, score = max(1, num_seen - token.position), token.score
        if "window" in self.params:
            half = self.params["window"] // 2
            first = max(0, ((num_seen - 1) // half - 1) * half)
            score = sum(p for at, p in token.earned.items() if at >= first)
            age = min(age, max(1, num_seen - first))
        if self.params.get("normalize", "age") == "age":
            score /= sum(self.params.get("decay", 1.0) ** i for i in range(age))
        return score * (np.linalg.norm(token.v) if self.params.get("value_norm") else 1.0)

    def _novelty(self, token: Token, tokens: list[Token], past: list[Token]) -> float:
        anchor = np.sum([t.k for t in past], axis=0)
        cosine = token.k @ anchor / np.linalg.norm(token.k) / np.linalg.norm(anchor)
        near = [t for t in tokens if abs(t.position - token.position) <= self.params["pool"]]
        return float(-cosine + self.params["weight"] * max(t.score for t in near))


class Oracle:
    """One row of one layer: `heads` lists of C slots, each a Token or None."""

    def __init__(
        self,
        rule: Rule,
        *,
        heads: int,
        num_slots: int,
        num_sinks: int,
        window: int,
        chunk_size: int,
        granularity: str,
        horizon: int | None,
        scale: float,
        selector: dict[str, Any] | None = None,
    ) -> None:
        self.rule, self.scale, self.selector = rule, scale, selector
        self.C, self.T, self.sinks, self.window = num_slots, chunk_size, num_sinks, window
        self.is_layer, self.horizon = granularity == "layer", horizon
        self.slots: list[list[Token | None]] = [[None] * num_slots for _ in range(heads)]
        self.past: list[list[Token]] = [[] for _ in range(heads)]
        self.seen = 0
        self.clear = True

    def positions(self) -> list[list[int]]:
        return [[-1 if t is None else t.position for t in slots] for slots in self.slots]

    def feed(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, *, column: int, pads: int) -> Any:
        """Take one call: q [Hq,Q,D], k, v [Hkv,Q,D], the first `pads` of them pads."""
        num = q.shape[1]
        outs, a = [], 0
        while a < num:
            b = num
            if self.selector is None and num > 1:
                b = min(num, ((column + a) // self.T + 1) * self.T - column)
            real = slice(max(a, min(pads, b)), b)
            if b > real.start:
                path = self._decode if b - a == 1 else self._chunk
                outs.append(path(q[:, real], k[:, real], v[:, real]))
            a = b
        return np.concatenate(outs, axis=1) if outs else q[:, :0]

    def _reach(self, key: int, query: int) -> bool:
        return key <= query and (self.horizon is None or key > query - self.horizon)

    def _ask(self, h: int, tokens: list[Token], q: np.ndarray, at: int) -> tuple[Any, np.ndarray]:
        """One query of the group q [G,D] at position `at`. -> out [G,D], p [G, len(tokens)]."""
        p = np.zeros((len(q), len(tokens)))
        visible = [i for i, t in enumerate(tokens) if self._reach(t.position, at)]
        for g in range(len(q)):
            logits = np.array([self.scale * (q[g] @ tokens[i].k) for i in visible])
            p[g, visible] = softmax(logits)
        return p @ np.array([t.v for t in tokens]), p

    def _order(self, candidates: list[list[Token]], newest: int, chosen: Any) -> list[list[float]]:
        """Rank each head's candidates; infinities for the protected and the expired."""
        ranks = [[chosen(h, t) for t in tokens] for h, tokens in enumerate(candidates)]
        if self.is_layer:  # all heads hold the same tokens in the same places
            ranks = [[sum(column) for column in zip(*ranks)]] * len(ranks)
        for h, tokens in enumerate(candidates):
            ranks[h] = list(ranks[h])
            for i, token in enumerate(tokens):
                p = token.position
                if p < self.sinks or p > newest - max(1, self.window):
                    ranks[h][i] = math.inf
                if self.horizon is not None and p <= newest - self.horizon:
                    ranks[h][i] = -math.inf
        return ranks

    def _check_margin(self, ranks: list[float], num_losers: int) -> None:
        order = sorted(ranks)
        if 0 < num_losers < len(order):
            last, first = order[num_losers - 1], order[num_losers]
            if math.isfinite(last) and first - last < CLEAR * max(1.0, abs(last)):
                self.clear = False

    def _decode(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        new = self.seen
        full = [[t for t in slots if t is not None] for slots in self.slots]
        ranks = self._order(
            full, new, lambda h, t: self.rule.priority(t, full[h], new, self.past[h])
        )
        outs = []
        group = len(q) // len(self.slots)
        for h, slots in enumerate(self.slots):
            if None in slots:
                victim = slots.index(None)
            else:
                self._check_margin(ranks[h], 1)
                victim = ranks[h].index(min(ranks[h]))
            slots[victim] = Token(new, k[h, 0], v[h, 0])
            self.past[h].append(slots[victim])
            tokens = [t for t in slots if t is not None]
            out, p = self._ask(h, tokens, q[h * group : (h + 1) * group, 0], new)
            self.rule.see(tokens, p, new)
            outs.append(out)
        self.seen += 1
        return np.concatenate(outs)[:, None]

    def _chunk(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        num, group = q.shape[1], len(q) // len(self.slots)
        first = self.seen
        both = []
        out = np.zeros((len(q), num, v.shape[2]))
        for h, slots in enumerate(self.slots):
            new = [Token(first + i, k[h, i], v[h, i]) for i in range(num)]
            tokens = [t for t in slots if t is not None] + new
            self.past[h] += new
            for i in range(num):
                rows = slice(h * group, (h + 1) * group)
                out[rows, i], p = self._ask(h, tokens, q[rows, i], first + i)
                # a token that has not come yet has no score to decay: it starts at 0
                self.rule.see(tokens, p, first + i)
                if self.selector and i >= num - self.selector["votes"]:
                    for token, mass in zip(tokens, p.mean(0)):
                        token.votes += mass / min(num, self.selector["votes"])
            both.append(tokens)
        self.seen += num
        if self.selector is None:
            chosen = lambda h, t: self.rule.priority(  # noqa: E731
                t, both[h], self.seen, self.past[h]
            )
        else:
            pooled = [self._pooled(tokens, num) for tokens in both]
            chosen = lambda h, t: pooled[h][t.position]  # noqa: E731
        ranks = self._order(both, self.seen - 1, chosen)
        for h, slots in enumerate(self.slots):
            self._keep(slots, both[h], ranks[h], first)
            for token in both[h]:
                token.votes = 0.0
        return out

    def _pooled(self, tokens: list[Token], num: int) -> dict[int, float]:
        """SnapKV: votes of the last queries, pooled over neighbours in the text's order."""
        assert self.selector is not None
        half = self.selector["kernel"] // 2
        order = sorted(tokens, key=lambda t: t.position)
        voters = self.seen - min(num, self.selector["votes"])
        own = [0.0 if t.position >= voters else t.votes for t in order]
        votes = [0.0] * half + own + [0.0] * half
        pooled = {}
        for i, token in enumerate(order):
            near = votes[i : i + 2 * half + 1]
            mean = sum(near) / len(near)
            value = max(near) if self.selector["pooling"] == "max" else mean
            pooled[token.position] = 2.0 if token.position >= voters else value
        return pooled

    def _keep(
        self, slots: list[Token | None], both: list[Token], ranks: list[float], first: int
    ) -> None:
        num_losers = max(0, len(both) - self.C)
        self._check_margin(ranks, num_losers)
        lost = sorted(range(len(both)), key=lambda i: (ranks[i], i))[:num_losers]
        stays = [t for i, t in enumerate(both) if i not in lost]
        empty = [i for i, t in enumerate(slots) if t is None]
        evicted = [i for i, t in enumerate(slots) if t is not None and t not in stays]
        free = empty + evicted
        for token in stays:
            if token.position >= first:
                slots[free.pop(0)] = token
