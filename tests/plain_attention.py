"""A growing cache and plain causal attention, to run the engine's Transformer by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from kvmmu.engine.config import ModelConfig
from kvmmu.engine.model import Transformer

__all__ = ["PlainAttention", "run", "step_by_step"]


class PlainAttention:
    """attend() for one sequence: keeps all keys and values; softmax in float32.

    `rotary`, as Transformer.rotary, turns queries and keys here instead of in the model.
    """

    def __init__(self, config: ModelConfig, *, transformer: Transformer | None = None) -> None:
        self.config, self.transformer = config, transformer
        self.positions = torch.empty(0, dtype=torch.long)
        self.kept: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend of q [N,Hq,D] over all that came so far. -> [N,Hq,D]."""
        c, at = self.config, self.positions
        if self.transformer is not None:
            q, k = self._turned(layer, q, at), self._turned(layer, k, at)
        if layer in self.kept:
            old = self.kept[layer]
            now = torch.cat([old[0], k]), torch.cat([old[1], v]), torch.cat([old[2], at])
        else:
            now = k.clone(), v.clone(), at.clone()
        self.kept[layer] = now
        keys, values = (x.float().repeat_interleave(c.group_size, 1) for x in now[:2])
        scores = torch.einsum("nhd,mhd->hnm", q.float(), keys) * c.scale
        seen = now[2][None] <= at[:, None]
        horizon = c.horizons[layer]
        if horizon is not None:
            seen &= now[2][None] > at[:, None] - horizon
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        return torch.einsum("hnm,mhd->nhd", weights, values).to(q.dtype)

    def _turned(self, layer: int, x: Tensor, at: Tensor) -> Tensor:
        assert self.transformer is not None
        rotary = self.transformer.rotary(layer)
        if rotary is None:
            return x
        heads = x.transpose(0, 1)[None]  # [1,H,N,D]
        index = at.expand(1, heads.shape[1], -1)
        return rotary(heads, index)[0].transpose(0, 1)


def run(model: Transformer, ids: Tensor, *, sizes: list[int] | None = None) -> Tensor:
    """Feed ids [S] in calls of the given sizes, or at once. -> logits [S,V]."""
    given = model if model.positions == "in_cache" else None
    attend = PlainAttention(model.config, transformer=given)
    logits, first = [], 0
    for size in sizes or [len(ids)]:
        attend.positions = torch.arange(first, first + size)
        logits.append(model.forward(ids[first : first + size], attend.positions, attend))
        first += size
    return torch.cat(logits)


def step_by_step(model: Transformer, ids: Tensor) -> Tensor:
    """Feed ids [S] one by one. -> logits [S,V]."""
    return run(model, ids, sizes=[1] * len(ids))
