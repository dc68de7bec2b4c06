"""RCE, Runtime Cache Eviction (Moradifirouzabadi and Kang, doi 10.1109/JETCAS.2025.3568716).

Rule: the token with the least accumulated attention leaves and the new token takes its slot.
Parameters:
    decay = 1.0          what is left of a score after each further token, in (0, 1]
    normalize = "age"    "age": divide by the (decayed) number of queries that saw the token;
                         "none": the plain sum, which favours old tokens
    fixed_point = False  16-bit integer scores, bit for bit those of kvmmu.fixed_point and the RTL
Differs from the paper: its abstract fixes the replacement of the least relevant token by the new
one at constant size; the score's decay and normalisation, protection of sinks and window, and
the choice of the victim before the attention (from scores up to the previous token) are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kvmmu.fixed_point import MANTISSA_MAX, MAX_CHUNK
from kvmmu.policies.base import POLICIES, Policy, Seen, SlotView, StateSpec

__all__ = ["RCE"]

_MAX_SHIFT = 12
"""A sum is below 2**16 + 2**24 (chunks of at most 256 queries), so 9 shifts always suffice."""


@POLICIES.register("rce")
@dataclass(frozen=True)
class RCE(Policy):
    """Evict the least accumulated attention. Raises ValueError for parameters out of range."""

    decay: float = 1.0
    normalize: Literal["none", "age"] = "age"
    fixed_point: bool = False

    def __post_init__(self) -> None:
        is_number = isinstance(self.decay, int | float) and not isinstance(self.decay, bool)
        if not (is_number and 0.0 < self.decay <= 1.0):
            raise ValueError(f"decay must lie in (0, 1], got {self.decay!r}")
        if self.normalize not in ("none", "age"):
            raise ValueError(f"normalize must be 'none' or 'age', got {self.normalize!r}")
        if not isinstance(self.fixed_point, bool):
            raise ValueError(f"fixed_point must be True or False, got {self.fixed_point!r}")
        if not self.fixed_point:
            return
        if self.normalize != "none":
            raise ValueError(
                "normalize must be 'none' with fixed_point=True (the hardware has no divider), "
                f"got {self.normalize!r}"
            )
        if self.decay < 1.0 and self.decay_shift is None:
            raise ValueError(
                "decay must be 1 - 2**-k for k in 1..16 with fixed_point=True, "
                f"got {self.decay!r}; take for instance 0.9375 or 0.984375"
            )

    @property
    def decay_shift(self) -> int | None:
        """Return k where decay = 1 - 2**-k, None where there is no such k or no decay."""
        if self.decay == 1.0:
            return None
        k = round(-math.log2(1.0 - self.decay))
        return k if 1 <= k <= 16 and self.decay == 1.0 - 2.0**-k else None

    @property
    def ops_per_slot(self) -> int:
        """Decay or divide, add, compare."""
        return 3

    @property
    def needs(self) -> frozenset[str]:
        """Ask for the attention mass, and for the protection if scores are integers."""
        return frozenset({"mass", "protected"} if self.fixed_point else {"mass"})

    @property
    def state(self) -> Mapping[str, StateSpec]:
        """Keep one shared exponent per score table if scores are integers."""
        return {"exponent": StateSpec("head", "int32")} if self.fixed_point else {}

    @property
    def max_queries(self) -> int | None:
        """Take no more queries at once than the integer accumulator holds."""
        return MAX_CHUNK if self.fixed_point else None

    @property
    def query_decay(self) -> float:
        """Weigh a chunk's queries as if they had come one by one."""
        return self.decay

    def priority(self, view: SlotView) -> Tensor:
        """Rank by score, or by score per query that saw the token. -> [B,Hkv,N]."""
        if self.normalize == "none":
            return view.scores
        age = (view.num_seen - view.positions).clamp(min=1).float()
        if self.decay < 1.0:  # 1 + g + g**2 + ... over the queries seen
            age = -torch.expm1(age * math.log(self.decay)) / (1.0 - self.decay)
        return view.scores / age

    def update(self, view: SlotView, seen: Seen) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Add this call's attention to what is left of the scores. -> [B,Hkv,N]."""
        if self.fixed_point:
            return self._update_integers(view, seen)
        kept = view.scores
        if self.decay < 1.0:
            kept = kept * self.decay ** seen.num_queries.float()
        return kept + seen.planes["mass"], view.state

    def _update_integers(self, view: SlotView, seen: Seen) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Do what kvmmu.fixed_point does, on int64 tensors; mantissas stay exact in float32."""
        words = self.mass_words(seen, granularity=view.granularity)  # [B,Hkv,N]
        exponent = view.state["exponent"][:, :, None].long()  # [B,Hkv,1]
        acc = self._decayed(view.scores.long(), seen) + (words >> exponent)
        assert view.protected is not None
        counts = ~view.protected & (view.positions >= 0)
        largest = torch.where(counts, acc, 0).amax(-1, keepdim=True)  # [B,Hkv,1]
        shift = torch.zeros_like(largest)  # the least that makes `largest` fit
        for s in range(_MAX_SHIFT):
            shift = shift + ((largest >> s) > MANTISSA_MAX)
        acc = torch.where(view.positions >= 0, (acc >> shift).clamp(max=MANTISSA_MAX), 0)
        return acc.float(), {"exponent": (exponent + shift)[:, :, 0].int()}

    def mass_words(self, seen: Seen, *, granularity: str) -> Tensor:
        """Return the UQ0.16 mass per slot as the integer KV-MMU consumes it. int64 [B,Hkv,N].

        It is the mean over the query heads that share a score, summed over the real queries.
        """
        mass = seen.planes["mass"]
        if granularity == "layer":
            mass = mass.mean(1, keepdim=True).expand_as(mass)
        words = (mass.double() / seen.group_size * 65536 + 0.5).floor().long()
        return words.clamp(max=MANTISSA_MAX * seen.num_queries.long())

    def _decayed(self, mantissa: Tensor, seen: Seen) -> Tensor:
        """Take ceil(m * 2**-k) off, once per real query. int64 [B,Hkv,N]."""
        k = self.decay_shift
        if k is None:
            return mantissa
        for i in range(seen.max_queries):
            less = mantissa - ((mantissa + (1 << k) - 1) >> k)
            mantissa = torch.where(seen.num_queries > i, less, mantissa)
        return mantissa
