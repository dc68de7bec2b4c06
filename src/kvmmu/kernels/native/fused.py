"""`step` and `refresh` of the fused step on CPU tensors; contract: see kernels/step.py.

K and V are float32, bfloat16 or float16; q, k, v and out share one of these types, rows may be
strided. The first call with a new pair of types or a new group size compiles, some seconds;
later processes load what it left in numba's cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvmmu.kernels.native.attention import refresh_lanes, step_rows
from kvmmu.kernels.native.heads import MASS, MAX, NEWEST, NONE
from kvmmu.kernels.native.threads import num_threads
from kvmmu.kernels.native.vectors import REGISTERS
from kvmmu.kernels.step import LaneState, StepSpec

__all__ = ["TOKENS", "refresh", "step"]

TOKENS: dict[torch.dtype, Any] = {
    torch.float32: np.float32(0),
    torch.float16: np.int16(0),
    torch.bfloat16: np.uint16(0),
}
"""What stands for a type of numbers in a numba call: the bits of halves, which it does not take."""

_step_rows: Any = step_rows  # numba's dispatcher, which takes any arguments
_STATISTICS = {None: NONE, "mass": MASS, "max": MAX, "newest": NEWEST}


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lanes: Tensor,
    at: Tensor,
    state: LaneState,
    spec: StepSpec,
    out: Tensor,
) -> None:
    """Take N new tokens in and attend. q, out [N,Hq,D], k, v [N,Hkv,D], lanes, at int32 [N].

    Raises TypeError for types that have no kernel, ValueError for tensors that are not laid out
    as the contract says, IndexError for a lane or a victim that does not exist.
    """
    N, Hq, D = q.shape
    B, Hkv, C, _ = state.keys.shape
    _check(q, k, v, lanes, at, state, out)
    tokens = _tokens(Hq // Hkv, state.keys.dtype, q.dtype)
    rows = (
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        out.data_ptr(),
        lanes.data_ptr(),
        at.data_ptr(),
    )
    strides = (q.stride(0), k.stride(0), v.stride(0), out.stride(0))
    sizes = (N, B, Hkv, C, D, *strides, state.keys.element_size(), q.element_size())
    numbers = (spec.scale, spec.rule.decay)
    num_bad = _step_rows(*tokens, _tables(state), rows, sizes, _rule(spec), numbers, num_threads())
    if num_bad:
        raise IndexError(f"lanes must be < {B} and victims in [0, {C}), got {num_bad} others")


def refresh(lanes: Tensor, state: LaneState, spec: StepSpec) -> None:
    """Find the next victims of the lanes named, int32 [N], -1 = none. Raises as `step`."""
    B, Hkv, C, _ = state.keys.shape
    _check_state(state)
    _check_ints(lanes, "lanes", lanes.shape[0])
    sizes = (lanes.shape[0], B, Hkv, C)
    if refresh_lanes(lanes.data_ptr(), _tables(state), sizes, _rule(spec), num_threads()):
        raise IndexError(f"lanes must be < {B}, got a greater one")


def _tokens(group: int, kv: torch.dtype, act: torch.dtype) -> tuple[Any, ...]:
    """Choose the tiles: as many slots, and vectors of V, as registers hold sums for."""
    num_slots = 4 if group * 4 <= REGISTERS // 2 else 2 if group * 2 <= REGISTERS // 2 else 1
    num_vectors = min(4, max(1, (REGISTERS - 8) // group))
    return (0,) * group, (0,) * num_slots, (0,) * num_vectors, TOKENS[kv], TOKENS[act]


def _tables(state: LaneState) -> tuple[int, ...]:
    """Return the addresses of the tables, in the kernels' order."""
    return (
        state.keys.data_ptr(),
        state.values.data_ptr(),
        state.positions.data_ptr(),
        state.scores.data_ptr(),
        state.num_seen.data_ptr(),
        state.victims.data_ptr(),
    )


def _rule(spec: StepSpec) -> tuple[int, ...]:
    """Put a spec's integers in the kernels' order."""
    rule = spec.rule
    return (
        _STATISTICS[rule.statistic],
        int(rule.rank == "age"),
        spec.num_sinks,
        spec.window,
        int(spec.per_layer),
        spec.horizon or 0,
        rule.grace,
    )


def _check(
    q: Tensor, k: Tensor, v: Tensor, lanes: Tensor, at: Tensor, state: LaneState, out: Tensor
) -> None:
    """Refuse what the kernels would misread."""
    N, Hq, D = q.shape
    Hkv = state.keys.shape[1]
    _check_state(state)
    for name, x, heads in (("q", q, Hq), ("k", k, Hkv), ("v", v, Hkv), ("out", out, Hq)):
        if x.dtype != q.dtype or x.dtype not in TOKENS:
            raise TypeError(f"{name} must be of q's type, one of {list(TOKENS)}, got {x.dtype}")
        is_row = x.stride(2) == 1 and (x.stride(1) == D or heads == 1)
        if x.shape != (N, heads, D) or not is_row or x.is_cuda:
            raise ValueError(
                f"{name} must be [{N},{heads},{D}] on a CPU, each row contiguous, "
                f"got {tuple(x.shape)} with strides {x.stride()} on {x.device}"
            )
    if Hq % Hkv or state.keys.shape[3] != D:
        raise ValueError(f"q's heads must share KV heads {tuple(state.keys.shape)}, got {Hq}, {D}")
    _check_ints(lanes, "lanes", N)
    _check_ints(at, "at", N)


def _check_ints(x: Tensor, name: str, num: int) -> None:
    """Refuse what is not a plain int32 [N]."""
    if x.dtype != torch.int32 or x.shape != (num,) or not x.is_contiguous() or x.is_cuda:
        raise ValueError(f"{name} must be a contiguous int32 [{num}] on a CPU, got {x!r}")


def _check_state(state: LaneState) -> None:
    """Refuse tables of other types or layouts."""
    keys = state.keys
    if keys.dtype not in TOKENS or state.values.dtype != keys.dtype:
        raise TypeError(f"keys and values must be one of {list(TOKENS)}, got {keys.dtype}")
    for name in ("keys", "values", "positions", "scores", "num_seen", "victims"):
        x: Tensor = getattr(state, name)
        if not x.is_contiguous() or x.is_cuda:
            raise ValueError(f"{name} must be contiguous on a CPU, got {x.stride()} on {x.device}")
