"""Lanes and tokens for Triton's fused step, and its comparison with the reference's.

The interpreter must be chosen before triton is imported: tests marked `interpreted` are skipped
but in the process that test_kernels_triton.py starts for them.
"""

from __future__ import annotations

import os
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from kvmmu.kernels import dispatch, fused_reference
from kvmmu.kernels.step import LaneState, StepRule, StepSpec

__all__ = [
    "IS_INTERPRETED",
    "RULES",
    "SPEC",
    "check",
    "copy",
    "interpreted",
    "lanes_of",
    "tokens_for",
]

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not IS_INTERPRETED, reason="runs in the interpreter's process")


def lanes_of(
    seed: int,
    *,
    batch: int = 4,
    heads: int = 2,
    slots: int = 21,
    dim: int = 8,
    dtype: torch.dtype = torch.float32,
) -> LaneState:
    """Lanes from empty to long past full, scores and places at random, NaN where no token is."""
    g = torch.Generator().manual_seed(seed)
    num_seen = torch.tensor([[0, max(slots - 2, 0), slots, 3 * slots][b % 4] for b in range(batch)])
    positions = torch.full((batch, heads, slots), -1, dtype=torch.int32)
    for b, seen in enumerate(num_seen.tolist()):
        for h in range(heads):
            held = torch.randperm(seen, generator=g)[:slots].int()
            where = torch.randperm(slots, generator=g)[: len(held)]
            positions[b, h, where] = held
    k, v = torch.randn(2, batch, heads, slots, dim, generator=g).to(dtype)
    k[positions < 0], v[positions < 0] = torch.nan, torch.nan
    scores = torch.rand(batch, heads, slots, generator=g) * (positions >= 0)
    return LaneState(
        k, v, positions, scores, num_seen.int(), torch.zeros(batch, heads, dtype=torch.int32)
    )


def copy(state: LaneState) -> LaneState:
    return LaneState(**{f.name: getattr(state, f.name).clone() for f in fields(state)})


def tokens_for(
    seed: int, state: LaneState, lanes: tuple[int, ...], group: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Draw q, k, v of one token a row, strides of q and v other than of k; lanes and at."""
    g = torch.Generator().manual_seed(seed)
    _, heads, _, dim = state.keys.shape
    qkv = torch.randn(len(lanes), heads * (group + 2), dim, generator=g).to(state.keys.dtype)
    q, k, v = qkv.split([heads * group, heads, heads], dim=1)
    rows = torch.tensor(lanes, dtype=torch.int32)
    at = torch.where(rows < 0, 7, state.num_seen[rows.clamp(min=0).long()]).int()
    return q, k.contiguous(), v, rows, at


def check(
    state: LaneState,
    spec: StepSpec,
    lanes: tuple[int, ...] = (2, -1, 0, 3),
    *,
    seed: int,
    group: int = 3,
    steps: int = 1,
    atol: float = 2e-6,
) -> None:
    """Run steps in both kernels, each from the reference's state, and compare all they change."""
    ours = dispatch.resolve_fused("triton", "cpu")
    fused_reference.refresh(torch.arange(state.keys.shape[0], dtype=torch.int32), state, spec)
    for i in range(steps):
        theirs = copy(state)
        tokens = tokens_for(seed + i, state, lanes, group)
        out, want = (torch.full_like(tokens[0], 9.0) for _ in "ab")
        ours.step(*tokens, theirs, spec, out)
        fused_reference.step(*tokens, state, spec, want)
        assert float((out.float() - want.float()).abs().max()) < atol
        assert float((theirs.scores - state.scores).abs().max()) < 2e-6
        for name in ("positions", "num_seen"):
            assert torch.equal(getattr(theirs, name), getattr(state, name)), name
        for name in ("keys", "values"):
            pair = (getattr(s, name).nan_to_num(77.0) for s in (theirs, state))
            assert torch.equal(*pair), name
        again = copy(theirs)  # near scores may round to another order: judge by its own
        live = torch.tensor([b for b in lanes if b >= 0], dtype=torch.int32)
        fused_reference.refresh(live, again, spec)
        assert torch.equal(theirs.victims, again.victims)


RULES = {
    "mass": StepRule("mass"),
    "decayed mass": StepRule("mass", decay=0.75, grace=3),
    "max": StepRule("max", decay=0.875, grace=1),
    "newest": StepRule("newest"),
    "age": StepRule(None, rank="age"),
    "score kept": StepRule(None),
    "mass by age": StepRule("mass", rank="age"),
}
SPEC = StepSpec(RULES["mass"], scale=0.4, num_sinks=2, window=3)
