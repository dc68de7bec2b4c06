"""attend on CUDA: a chunk's attention and its column sums. Contract: kernels/contract.py.

Two launches. The first walks the keys once for every block of queries and keeps the output, the
greatest logit and the sum of the softmax per query; the second is parallel over blocks of keys,
walks the queries, computes each logit again and reduces over the queries in a fixed order. So no
Q x N matrix is ever held, the column sums are exact, and without atomics the same inputs give
the same bits. The second product costs half of what the first launch computes.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from kvmmu.kernels.contract import PLANES, AttendSpec
from kvmmu.kernels.triton.launch import IS_INTERPRETED, OPTIONS, block_rows, on_device, pad
from kvmmu.kernels.triton.prefill_kernels import attend_queries, reduce_keys

__all__ = ["attend"]

_LOG2E = math.log2(math.e)


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
    """Attend to N candidates; q [B,Hq,Q,D] -> out [B,Hq,Q,D], stats [B,Hkv,P,N].

    Raises ValueError for a plane unknown or without its weights, or for mixed dtypes.
    """
    B, Hq, Q, _ = q.shape
    _, Hkv, N, DV = v.shape
    _check(q, k, v, spec, last_weights)
    q, k, v = _dense(q), _dense(k), _dense(v)
    out = torch.empty(B, Hq, Q, DV, dtype=q.dtype, device=q.device)
    peaks = torch.empty(B, Hq, Q, dtype=torch.float32, device=q.device)
    sums = torch.empty_like(peaks)
    stats = torch.empty(B, Hkv, len(spec.planes), N, dtype=torch.float32, device=q.device)
    if B * Q == 0:
        return out, stats.zero_()
    shared = _shared(q, k, v, spec)
    keys = (key_positions, query_positions)
    with on_device(q.device):
        attend_queries[(B * Hkv, -(-Q * shared["G"] // shared["BM"]))](
            q,
            k,
            v,
            *keys,
            peaks if sinks is None else sinks.float().contiguous(),
            out,
            peaks,
            sums,
            *_scales(spec),
            Q,
            N,
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *out.stride()[:3],
            *key_positions.stride(),
            *query_positions.stride(),
            **shared,
            HAS_SINKS=sinks is not None,
            DV=DV,
            DVP=pad(DV, least=16),
            num_stages=2,
        )
        if spec.planes:
            weights = query_weights.float().contiguous()
            last = weights if last_weights is None else last_weights.float().contiguous()
            newest = query_positions.amax(-1).clamp(min=0)  # [B]
            shared["BM"] = max(16, min(shared["BM"], pad(Q)))  # of one query head, not of the group
            reduce_keys[(B * Hkv, -(-N // shared["BN"]))](
                q,
                k,
                *keys,
                weights,
                last,
                newest,
                peaks,
                sums,
                stats,
                *_scales(spec),
                Q,
                N,
                *q.stride()[:3],
                *k.stride()[:3],
                *key_positions.stride(),
                *query_positions.stride(),
                **shared,
                **_planes(spec.planes),
                GRACE=spec.grace,
                num_stages=2,
            )
    return out, stats


def _shared(q: Tensor, k: Tensor, v: Tensor, spec: AttendSpec) -> dict[str, Any]:
    """Settle the constants of both kernels."""
    _, Hq, Q, D = q.shape
    _, Hkv, N, _ = k.shape
    G, DP = Hq // Hkv, pad(D, least=16)
    BN = block_rows(max(DP, pad(v.shape[3])), q.element_size())
    return {
        "HKV": Hkv,
        "G": G,
        "D": D,
        "HORIZON": spec.horizon or 0,
        "HAS_CAP": spec.softcap is not None,
        "UPCAST": IS_INTERPRETED and q.dtype == torch.bfloat16,  # it multiplies their bits
        "BM": max(16, min(BN, pad(Q * G))),
        "BN": max(16, min(BN, pad(N))),
        "DP": DP,
        **OPTIONS,
        "num_warps": 8 if q.dtype == torch.float32 else 4,
    }


def _scales(spec: AttendSpec) -> tuple[float, float]:
    """Return the factor of a dot product and the cap, for logits in base 2.

    With a cap the factor gives logit / cap instead, the argument of tanh.
    """
    if spec.softcap is None:
        return spec.scale * _LOG2E, 0.0
    return spec.scale / spec.softcap, spec.softcap * _LOG2E


@functools.cache
def _planes(planes: tuple[str, ...]) -> dict[str, int]:
    """Say which row of stats each plane is, -1 = none."""
    places = {f"{name.upper()}_AT": planes.index(name) if name in planes else -1 for name in PLANES}
    return {**places, "P": len(planes)}


def _dense(x: Tensor) -> Tensor:
    """Return x with its last dimension dense; the kernels read any strides of the others."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _check(q: Tensor, k: Tensor, v: Tensor, spec: AttendSpec, last: Tensor | None) -> None:
    """Refuse what the kernels would read wrongly."""
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v must have one dtype, got {q.dtype}, {k.dtype} and {v.dtype}")
    for name in spec.planes:
        if name not in PLANES:
            raise ValueError(f"plane must be one of {PLANES}, got {name!r}")
        if name.startswith("last") and last is None:
            raise ValueError(f"last_weights must be given for the plane {name!r}, got None")
