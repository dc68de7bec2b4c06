"""positions="in_cache": keys are stored unrotated and carry their rank in the cache when used.

The rank of a token is the number of held tokens before it, so places never pass C + T and a
text may go on for ever. `index` are the places at which the model has rotated the new tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvmmu.slots.spec import Rotary

__all__ = ["numbered", "unrotated"]


def unrotated(rotary: Rotary | None, k: Tensor, index: Tensor | None) -> Tensor:
    """Turn new keys back to place 0. k [B,Hkv,Q,D], index [B,Q] -> [B,Hkv,Q,D]."""
    if rotary is None:
        return k
    return rotary(k, -_given(index)[:, None].expand(-1, k.shape[1], -1))


def numbered(
    rotary: Rotary | None, q: Tensor, keys: Tensor, positions: Tensor, index: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Give queries and unrotated keys their ranks. q [B,Hq,Q,D], keys [B,Hkv,N,D] -> the same.

    positions [B,Hkv,N]; the Q newest of them are the queries' own.
    """
    if rotary is None:
        return q, keys
    B, Hq, Q, _ = q.shape
    N = positions.shape[2]
    order = positions.argsort(dim=-1).argsort(dim=-1)  # empty slots and pads come first
    num_empty = (positions < 0).sum(-1, keepdim=True)  # [B,Hkv,1]
    ranks = (order - num_empty).clamp(min=0)  # [B,Hkv,N]
    own = N - num_empty[:, 0] - Q + torch.arange(Q, device=q.device)  # [B,Q]
    turn = (own.clamp(min=0) - _given(index))[:, None].expand(B, Hq, Q)
    return rotary(q, turn), rotary(keys, ranks)


def _given(index: Tensor | None) -> Tensor:
    """Return the places, which the caller must give in this mode."""
    if index is None:
        raise ValueError("index must give the RoPE place of each new token, got None")
    return index
