"""attend of a chunk: products by PyTorch's libraries, all between them in one native pass.

The contract is that of kernels/contract.py. A decode, a soft cap and a model's own sink logits go
the way of kernels/cpu.py, which also cuts the queries into blocks here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from kvmmu.kernels.contract import AttendSpec
from kvmmu.kernels.cpu import PLAIN, Blocks, attend_in_blocks
from kvmmu.kernels.native.softmax import MAX, MEAN, NEVER, NO_PLANE, SQUARE, SUM, weigh_rows
from kvmmu.kernels.native.threads import num_threads
from kvmmu.kernels.native.vectors import LANES

__all__ = ["attend"]

_weigh_rows: Any = weigh_rows  # numba's dispatcher, which takes any arguments

_KINDS = {"mass": SUM, "max": MAX, "newest": MEAN, "last": MEAN, "last_sq": SQUARE}
_MOST_PLANES = len(_KINDS)
_BLOCK_LOGITS = 1 << 21
"""Logits of one block: 8 MiB. Fewer blocks change less often between native calls and products."""
_NUM_SHARES = 4
"""Into how many parts a KV head's queries are cut."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_positions: Tensor,
    query_positions: Tensor,
    query_weights: Tensor,
    *,
    spec: AttendSpec,
    last_weights: Tensor | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend in blocks of queries; q [B,Hq,Q,D] -> out [B,Hq,Q,D], stats [B,Hkv,P,N]."""
    is_native = q.shape[2] > 1 and spec.softcap is None and sinks is None and not q.is_cuda
    return attend_in_blocks(
        q,
        k,
        v,
        key_positions,
        query_positions,
        query_weights,
        spec=spec,
        last_weights=last_weights,
        sinks=sinks,
        blocks=_NATIVE if is_native else PLAIN,
    )


def _weigh(
    q: Tensor,
    k_t: Tensor,
    keys: Tensor,
    at: Tensor,
    weights: list[Tensor],
    spec: AttendSpec,
    sinks: Tensor | None,
) -> tuple[Tensor, list[Tensor]]:
    """Weigh a block as cpu.Weigh says. -> probabilities, a view, and planes P x [B,Hkv,1,M]."""
    B, Hkv, G, n, D = q.shape
    M = keys.shape[2]
    W = -(-M // LANES) * LANES
    p = torch.empty(B * Hkv, G * n, W)
    q = q.reshape(B * Hkv, G * n, D)
    if q.dtype == p.dtype:
        torch.baddbmm(p.new_empty(1, 1, 1), q, k_t, beta=0, alpha=spec.scale, out=p[..., :M])
    else:
        p[..., :M] = torch.baddbmm(q.new_empty(1, 1, 1), q, k_t, beta=0, alpha=spec.scale)
    kinds = [_KINDS[name] for name in spec.planes]
    planes = torch.zeros(len(kinds), B * Hkv, _NUM_SHARES, W)
    held = pad(keys.to(torch.int32), (0, W - M), value=NEVER).contiguous()
    at = at.to(torch.int32).contiguous()
    weight = torch.empty(len(kinds), B, n)
    for i, (name, x) in enumerate(zip(spec.planes, weights)):
        weight[i] = x if name == "mass" else x / G
    tensors = (p, held, at, weight, planes)
    _weigh_rows(
        tuple(kinds + [NO_PLANE] * (_MOST_PLANES - len(kinds))),
        tuple(x.data_ptr() for x in tensors),
        (B * Hkv, Hkv, G, n, W),
        (spec.horizon or 0, spec.grace),
        _NUM_SHARES,
        num_threads(),
    )
    found = []
    for i, name in enumerate(spec.planes):
        shares = planes[i, :, :, :M].view(B, Hkv, _NUM_SHARES, M)
        found.append(shares.amax(2, keepdim=True) if name == "max" else shares.sum(2, keepdim=True))
    return p[..., :M].unflatten(1, (G, n)).unflatten(0, (B, Hkv)), found


_NATIVE = Blocks(_weigh, _BLOCK_LOGITS)
