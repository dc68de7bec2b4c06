"""The fused step: one call a layer replaces, attends, scores and finds the next victim.

What `KVMMU.forward` does for one new token with five kernels and a policy, a fused step does in
one pass over the slots, for policies whose rule is a StepRule. It is the same KV-MMU: positions,
scores and slots are equal (floats within rounding); contract tests run both.

Contract of `step(q, k, v, lanes, at, state, spec, out)`. q [N,Hq,D], k, v [N,Hkv,D] are N new
tokens, one of each of N different lanes; lanes int32 [N] names them, -1 = no token in this row;
at int32 [N] is each token's logical position, num_seen[lane]. For every row with a lane b:

    1  slot = victims[b,h]: k, v and `at` are written there, its score becomes 0; num_seen[b] =
       at + 1.
    2  attention of the row's query heads over the slots of their KV head that hold a token
       (within the horizon, if there is one), softmax in float32 -> out [N,Hq,D].
    3  the scores of KV head h become, with p the probabilities of its G query heads,
           "mass"    decay * score + sum over the group of p
           "max"     max(decay * score, mean over the group of p)
           "newest"  mean over the group of p
           None      what they were
       where mass and max count p only for tokens at least `grace` older than the query.
    4  victims[b,h] = the slot that the token at + 1 will take: empty ones first, then tokens out
       of the horizon's reach, then the least score ("score") or position ("age") of those not
       protected; ties to the lowest slot. Protected are positions < num_sinks and the last
       max(window, 1), the token at + 1 included. With per_layer, scores are summed over the KV
       heads and all heads have the same victim.

A row without a lane writes nothing; its `out` is 0. Rows do not touch each other: a row's result
is the same bits whatever the other rows hold. All tensors of `state` change in place and never
move. `refresh(lanes, state, spec)` does 4 alone, for lanes whose slots were filled in another way
(a prompt's chunks, a clear, a restored snapshot).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

__all__ = ["FusedKernel", "LaneState", "StepRule", "StepSpec"]


@dataclass(frozen=True)
class StepRule:
    """What a policy does in a decode step, in words that a fused kernel knows."""

    statistic: Literal["mass", "max", "newest"] | None
    decay: float = 1.0
    grace: int = 0
    rank: Literal["score", "age"] = "score"


@dataclass(frozen=True)
class StepSpec:
    """One layer's rule and the KV-MMU's own: settled once, when the lanes are made."""

    rule: StepRule
    scale: float
    num_sinks: int
    window: int
    per_layer: bool = False
    horizon: int | None = None


@dataclass(frozen=True)
class LaneState:
    """One layer's slots of all lanes; the tensors of its store and slot table themselves.

    keys, values [B,Hkv,C,D] contiguous; positions int32, scores float32 [B,Hkv,C];
    num_seen int32 [B]; victims int32 [B,Hkv], the slot that each lane's next token takes.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    scores: Tensor
    num_seen: Tensor
    victims: Tensor


class FusedKernel(Protocol):
    """The two functions that a fused kernel file offers; see the module's contract."""

    def step(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lanes: Tensor,
        at: Tensor,
        state: LaneState,
        spec: StepSpec,
        out: Tensor,
    ) -> None:
        """Take N new tokens in and attend."""
        ...

    def refresh(self, lanes: Tensor, state: LaneState, spec: StepSpec) -> None:
        """Find the next victims of the lanes named, int32 [N], -1 = none."""
        ...
