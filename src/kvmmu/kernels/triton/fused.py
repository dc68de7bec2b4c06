"""The fused step on CUDA: `step` and `refresh`. Contract: kernels/step.py.

    one victim a head, slots whole      1 launch    attend_slots
    one victim a head, slots split      2 launches  attend_slots, finish_slots
    per_layer                           1 more      choose_slots, which adds the heads' scores up

The sum over heads is a launch of its own because one program per row would have to score all
heads alone: at batch 1, C = 4096 and eight KV heads one multiprocessor would read half a
megabyte of logits, several times what the launch costs.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvmmu.kernels.step import LaneState, StepSpec
from kvmmu.kernels.triton.fused_kernels import attend_slots, finish_slots
from kvmmu.kernels.triton.launch import (
    IS_INTERPRETED,
    OPTIONS,
    block_rows,
    choose_splits,
    num_processors,
    on_device,
    pad,
    scratch,
)
from kvmmu.kernels.triton.scoring import choose_slots

__all__ = ["refresh", "step"]

_SCORE_TILE = 4096
"""Logits that a program scores at once: 32 registers a thread with four warps."""

_STAGES = 5
"""Of the pipeline: positions run ahead of V, whose mask they are, so five make two buffers of V."""

_CHOOSE_TILE = 1024
"""Slots that a program compares at once."""


@dataclass(frozen=True)
class _Plan:
    """What is settled by shapes and rule: constants of the kernels, splits, sizes."""

    splits: int
    span: int
    num_warps: int
    shape: dict[str, Any]
    rule: dict[str, Any]
    blocks: dict[str, int]


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

    Raises ValueError if q, k or v differ in dtype from the slots, or rows are not dense.
    """
    N, Hq, D = q.shape
    _, Hkv, C, _ = state.keys.shape
    _check(q, k, v, out, state)
    if N == 0:
        return
    device = q.device
    splits = choose_splits(N * Hkv, C, num_processors(device))
    plan = _plan(Hq, Hkv, C, D, q.dtype, spec, splits)
    logits = scratch("logits", N * Hq * C, device)
    peaks = scratch("peaks", N * Hq * plan.splits, device)
    sums = scratch("sums", N * Hq * plan.splits, device)
    partials = sums if plan.splits == 1 else scratch("partials", N * Hq * plan.splits * D, device)
    with on_device(device):
        attend_slots[(N * Hkv, plan.splits)](
            q,
            k,
            v,
            lanes,
            at,
            state.keys,
            state.values,
            state.positions,
            state.scores,
            state.num_seen,
            state.victims,
            out,
            logits,
            peaks,
            sums,
            partials,
            spec.scale * math.log2(math.e),
            spec.rule.decay,
            *q.stride()[:2],
            *k.stride()[:2],
            *v.stride()[:2],
            *out.stride()[:2],
            **plan.shape,
            **plan.rule,
            **plan.blocks,
            UPCAST=IS_INTERPRETED and q.dtype == torch.bfloat16,  # it multiplies their bits
            SPAN=plan.span,
            SPLITS=plan.splits,
            num_warps=plan.num_warps,
            num_stages=_STAGES,
            **OPTIONS,
        )
        if plan.splits > 1:
            _finish(lanes, at, state, spec, out, (logits, peaks, sums, partials), plan)
        if spec.per_layer:
            _choose(lanes, state, spec)


def refresh(lanes: Tensor, state: LaneState, spec: StepSpec) -> None:
    """Find the next victims of the lanes named, int32 [N], -1 = none."""
    if lanes.shape[0]:
        with on_device(lanes.device):
            _choose(lanes, state, spec)


def _finish(
    lanes: Tensor,
    at: Tensor,
    state: LaneState,
    spec: StepSpec,
    out: Tensor,
    parts: tuple[Tensor, Tensor, Tensor, Tensor],
    plan: _Plan,
) -> None:
    """Launch what adds up splits; parts: logits, peaks, sums, partials."""
    grid = (lanes.shape[0] * plan.shape["HKV"],)
    finish_slots[grid](
        lanes,
        at,
        state.positions,
        state.scores,
        state.victims,
        out,
        *parts,
        spec.rule.decay,
        *out.stride()[:2],
        **plan.shape,
        **plan.rule,
        SPLITS=plan.splits,
        SP=pad(plan.splits),
        GS=plan.blocks["GS"],
        DP=plan.blocks["DP"],
        BS=plan.blocks["BS"],
        num_warps=4,
        **OPTIONS,
    )


def _choose(lanes: Tensor, state: LaneState, spec: StepSpec) -> None:
    """Launch the choice of victims alone."""
    _, Hkv, C = state.positions.shape
    choose_slots[(lanes.shape[0], 1 if spec.per_layer else Hkv)](
        lanes,
        state.positions,
        state.scores,
        state.num_seen,
        state.victims,
        HKV=Hkv,
        C=C,
        **_order(spec),
        PER_LAYER=spec.per_layer,
        BS=min(pad(C), _CHOOSE_TILE),
        num_warps=4,
        **OPTIONS,
    )


@functools.lru_cache(maxsize=1024)
def _plan(
    Hq: int, Hkv: int, C: int, D: int, dtype: torch.dtype, spec: StepSpec, splits: int
) -> _Plan:
    """Settle what does not change from step to step; `splits` as wished, whole tiles each."""
    if Hq % Hkv:
        raise ValueError(f"query heads must be a multiple of the {Hkv} KV heads, got {Hq}")
    GS, DP = pad(Hq // Hkv), pad(D, least=16)
    BC = min(block_rows(DP, dtype.itemsize), pad(C, least=16))
    span = -(-C // (splits * BC)) * BC
    return _Plan(
        splits=-(-C // span),
        span=span,
        num_warps=8 if dtype == torch.float32 else 4,  # its products need twice the registers
        shape={"HKV": Hkv, "G": Hq // Hkv, "C": C, "D": D},
        rule={
            "STATISTIC": spec.rule.statistic or "none",
            "GRACE": spec.rule.grace,
            "CHOOSE": not spec.per_layer,
            **_order(spec),
        },
        blocks={
            "GP": max(16, GS),
            "DP": DP,
            "BC": BC,
            "GS": GS,
            "BS": min(pad(C), max(16, _SCORE_TILE // GS)),
        },
    )


def _order(spec: StepSpec) -> dict[str, Any]:
    """Name the constants of the order of leaving."""
    return {
        "AGE": spec.rule.rank == "age",
        "NUM_SINKS": spec.num_sinks,
        "WINDOW": max(spec.window, 1),
        "HORIZON": spec.horizon or 0,
    }


def _check(q: Tensor, k: Tensor, v: Tensor, out: Tensor, state: LaneState) -> None:
    """Refuse what the kernels would read wrongly."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype != state.keys.dtype:
            raise ValueError(f"{name} must have the slots' dtype {state.keys.dtype}, got {x.dtype}")
    for name, x in (("q", q), ("k", k), ("v", v), ("out", out)):
        if x.stride(-1) != 1:
            raise ValueError(f"{name} must be dense in its last dimension, got {x.stride()}")
