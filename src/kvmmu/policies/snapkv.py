"""SnapKV (Li et al., NeurIPS 2024, arXiv:2404.14469).

Rule: after the prompt, keep the tokens to which its last queries attend, pooled over neighbours,
and those last tokens themselves; then hand over to a step policy.
Parameters:
    then = "rce"               the step policy for the tokens that follow
    observation_window = None  the last queries that vote; None = min(32, max(1, C // 4))
    kernel_size = 5            neighbours pooled together, odd
    pooling = "avg"            "avg" or "max"
Differs from the paper: the query heads of a KV head vote by their mean; a prompt fed in several
calls is chosen from at the end of each call, among what is held and the call's tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d

from kvmmu.kernels.step import StepRule
from kvmmu.policies.base import POLICIES, Policy, Seen, SlotView, StateSpec, is_count

__all__ = ["SnapKV"]


@POLICIES.register("snapkv")
@dataclass(frozen=True)
class SnapKV(Policy):
    """Choose once by the last queries' attention, then follow `then`.

    Raises ValueError for parameters out of range or a `then` that is no step policy.
    """

    then: str | Policy = "rce"
    observation_window: int | None = None
    kernel_size: int = 5
    pooling: Literal["avg", "max"] = "avg"

    kind: ClassVar[Literal["step", "selector"]] = "selector"

    def __post_init__(self) -> None:
        votes, size = self.observation_window, self.kernel_size
        if votes is not None and not (is_count(votes) and votes >= 1):
            raise ValueError(f"observation_window must be an integer of at least 1, got {votes!r}")
        if not (is_count(size) and size >= 1 and size % 2 == 1):
            raise ValueError(f"kernel_size must be an odd and positive integer, got {size!r}")
        if self.pooling not in ("avg", "max"):
            raise ValueError(f"pooling must be 'avg' or 'max', got {self.pooling!r}")
        if self.step.max_queries is not None:  # `step` raises for a `then` that is no step policy
            raise ValueError(
                f"then must take a prompt of any length at once, got {self.step!r}, which takes "
                f"{self.step.max_queries} tokens; use it without fixed_point, or as the policy"
            )

        if self.step.query_block is not None:
            raise ValueError(
                f"then must not forget queries in blocks, got {self.step!r}; use its decay instead"
            )
        if self.step == type(self.step)():  # H2O() and "h2o" are one policy
            object.__setattr__(self, "then", self.step.name)

    @property
    def step(self) -> Policy:
        """The step policy that follows. Raises ValueError if `then` names no step policy."""
        step = POLICIES.make(self.then)
        if step.kind != "step":
            raise ValueError(f"then must be a step policy, got {step.name!r}")
        return step

    @property
    def ops_per_slot(self) -> int:
        """Count what the step policy counts: the selection is once a prompt."""
        return self.step.ops_per_slot

    @property
    def needs(self) -> frozenset[str]:
        """Ask for the last queries' attention, and for what the step policy asks."""
        return self.step.needs | {"last"}

    @property
    def query_decay(self) -> float:
        """Weigh queries as the step policy does."""
        return self.step.query_decay

    @property
    def grace(self) -> int:
        """Count attention from the age on from which the step policy does."""
        return self.step.grace

    @property
    def num_last(self) -> int:
        """Count the queries that vote."""
        return self.observation_window or 32

    @property
    def state(self) -> Mapping[str, StateSpec]:
        """Keep what the step policy keeps."""
        return self.step.state

    @property
    def step_rule(self) -> StepRule | None:
        """Decode as the step policy does."""
        return self.step.step_rule

    def bind(self, *, num_slots: int, num_sinks: int, window: int) -> Policy:
        """Settle the observation window for C slots. Raises ValueError if C cannot hold it."""
        votes = self.observation_window
        if votes is None:
            votes = min(32, max(1, num_slots // 4))
        elif votes + num_sinks > num_slots:
            raise ValueError(
                f"observation_window must be at most num_slots - num_sinks = "
                f"{num_slots - num_sinks}, got {votes}; raise num_slots or lower it"
            )
        then = self.step.bind(num_slots=num_slots, num_sinks=num_sinks, window=window)
        return dataclasses.replace(self, then=then, observation_window=votes)

    def priority(self, view: SlotView) -> Tensor:
        """Rank as the step policy does. -> [B,Hkv,N]."""
        return self.step.priority(view)

    def update(self, view: SlotView, seen: Seen) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Score as the step policy does. -> [B,Hkv,N]."""
        return self.step.update(view, seen)

    def select(self, view: SlotView, seen: Seen) -> Tensor:
        """Rank a prompt by its last queries' pooled attention. -> [B,Hkv,N]."""
        is_voter = view.positions >= view.num_seen - seen.num_last
        votes = seen.planes["last"] / seen.num_last.clamp(min=1)  # [B,Hkv,N]
        votes = torch.where(is_voter, 0, votes)  # as the paper: pooled without the window's own
        pad = self.kernel_size // 2
        if self.pooling == "max":
            pooled = max_pool1d(votes, self.kernel_size, stride=1, padding=pad)
        else:
            pooled = avg_pool1d(votes, self.kernel_size, stride=1, padding=pad)
        return torch.where(is_voter, 2.0, pooled)  # a mean of probabilities is at most 1

    def params(self) -> dict[str, Any]:
        """Return the parameters, the step policy's included."""
        return super().params() | {"then": {"name": self.step.name} | self.step.params()}
