"""SlotTable: which token each slot of a layer holds, its score, and the policy's state."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from kvmmu.codecs.base import Rows
from kvmmu.kernels.contract import Kernel
from kvmmu.policies.base import Policy

__all__ = ["SlotTable"]


class SlotTable:
    """Positions int32 [B,Hkv,C] (-1 = empty), scores float32 [B,Hkv,C], num_seen int32 [B].

    All tensors are allocated once and overwritten in place. `state` holds what the policy
    declared: per slot [B,Hkv,C], per head [B,Hkv], or one vector per head [B,Hkv,D].
    """

    def __init__(
        self, shape: tuple[int, int, int, int], policy: Policy, device: torch.device, kernel: Kernel
    ) -> None:
        B, Hkv, C, D = shape
        self._kernel = kernel
        self.positions = torch.full((B, Hkv, C), -1, dtype=torch.int32, device=device)
        self.scores = torch.zeros(B, Hkv, C, device=device)
        self.num_seen = torch.zeros(B, dtype=torch.int32, device=device)
        sizes = {"slot": (B, Hkv, C), "head": (B, Hkv), "vector": (B, Hkv, D)}
        self.per = {name: spec.per for name, spec in policy.state.items()}
        self.state = {
            name: torch.zeros(sizes[spec.per], dtype=getattr(torch, spec.dtype), device=device)
            for name, spec in policy.state.items()
        }

    def num_valid(self) -> Tensor:
        """Count the tokens held by each row and KV head. -> int32 [B,Hkv]."""
        return (self.positions >= 0).sum(-1, dtype=torch.int32)

    def admit(self, slots: Tensor, positions: Tensor, valid: Tensor | None) -> None:
        """Give one slot per head to the new token, score 0. slots [B,Hkv], positions [B]."""
        rows = positions[:, None].expand_as(slots)
        self._kernel.write_slots(self.positions, slots, rows, valid)
        zeros = torch.zeros_like(slots, dtype=torch.float32)
        self._kernel.write_slots(self.scores, slots, zeros, valid)
        for name, per in self.per.items():
            if per == "slot":
                state = self.state[name]
                self._kernel.write_slots(state, slots, zeros.to(state.dtype), valid)

    def put(self, scores: Tensor, state: Mapping[str, Tensor]) -> None:
        """Overwrite scores [B,Hkv,C] and state after an attention over the slots."""
        self.scores.copy_(scores)
        for name, value in state.items():
            self.state[name].copy_(value)

    def put_chunk(
        self, positions: Tensor, scores: Tensor, state: Mapping[str, Tensor], at: Rows, new: Tensor
    ) -> None:
        """Keep the C old candidates' figures, then overwrite the slots `at` by candidates `new`.

        positions, scores and slot-wise state are [B,Hkv,C+T]; new int64 [R] indexes C+T.
        """
        C = self.positions.shape[2]
        index = (at.lane, at.head, at.slot)
        source = (at.lane, at.head, new)
        self.scores.copy_(scores[..., :C])
        self.scores[index] = scores[source]
        self.positions[index] = positions[source]
        for name, value in state.items():
            if self.per[name] != "slot":
                self.state[name].copy_(value)
                continue
            self.state[name].copy_(value[..., :C])
            self.state[name][index] = value[source]

    def clear(self) -> None:
        """Forget every token; nothing of the old scores or state stays."""
        self.positions.fill_(-1)
        self.scores.zero_()
        self.num_seen.zero_()
        for value in self.state.values():
            value.zero_()

    def lane(self, lane: int) -> SlotTable:
        """Return row `lane` as a table of one row that shares these tensors."""
        view, row = copy.copy(self), slice(lane, lane + 1)
        view.positions, view.scores = self.positions[row], self.scores[row]
        view.num_seen = self.num_seen[row]
        view.state = {name: value[row] for name, value in self.state.items()}
        return view

    def tensors(self) -> dict[str, Tensor]:
        """Name every persistent tensor; each has B as its first dimension."""
        named = {f"state.{name}": value for name, value in self.state.items()}
        return {
            "positions": self.positions,
            "scores": self.scores,
            "num_seen": self.num_seen,
        } | named
