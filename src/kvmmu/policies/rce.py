"""RCE, Runtime Cache Eviction (Moradifirouzabadi and Kang, doi 10.1109/JETCAS.2025.3568716).

Rule: the token with the least attention so far leaves and the new token takes its slot.
Parameters:
    decay = None         what is left of a score after each further token, in (0, 1];
                         None: 1 - 2**-6 for a maximum, 1 (all of it) for a sum
    normalize = "none"   "age": divide a sum by the (decayed) number of queries that saw the token;
                         "none": the plain sum, which favours old tokens
    fixed_point = False  16-bit integer sums, bit for bit those of kvmmu.fixed_point and the RTL
    statistic = None     "max": keep the (decayed) largest attention; "mass": add attention up;
                         None: "mass" where another parameter asks for a sum, else "max"
    window_queries = None  w, even: only the last w / 2 + 1 to w queries count, in two accumulators
                         of w / 2 positions each that take turns; None: all queries
    value_norm = False   weigh the score by the length of the token's value, |v|
Differs from the paper: its abstract fixes the replacement of the least relevant token by the new
one at constant size; the score's statistic, decay, window and normalisation, protection of sinks
and window, and the choice of the victim before the attention (from scores up to the previous
token) are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kvmmu.fixed_point import MANTISSA_MAX, MAX_CHUNK
from kvmmu.kernels.step import StepRule
from kvmmu.policies.base import POLICIES, Policy, Seen, SlotView, StateSpec, is_count

__all__ = ["RCE"]

_DECAY = 1 - 2**-6
"""Of a maximum: among the powers of least perplexity; a shift and a subtraction in hardware
(docs/score-study.md)."""
_MAX_SHIFT = 12
"""A sum is below 2**16 + 2**24 (chunks of at most 256 queries), so 9 shifts always suffice."""


@POLICIES.register("rce")
@dataclass(frozen=True)
class RCE(Policy):
    """Evict the least attention so far. Raises ValueError for parameters out of range.

    After construction `statistic` and `decay` are settled: None stands in neither.
    """

    decay: float | None = None
    normalize: Literal["none", "age"] = "none"
    fixed_point: bool = False
    statistic: Literal["mass", "max"] | None = None
    window_queries: int | None = None
    value_norm: bool = False

    def __post_init__(self) -> None:
        if self.statistic is None:
            is_sum = self.fixed_point or self.normalize == "age" or self.window_queries is not None
            object.__setattr__(self, "statistic", "mass" if is_sum else "max")
        if self.decay is None:
            object.__setattr__(self, "decay", _DECAY if self.statistic == "max" else 1.0)
        decay = self.decay
        if not isinstance(decay, int | float) or isinstance(decay, bool) or not 0.0 < decay <= 1.0:
            raise ValueError(f"decay must lie in (0, 1], got {self.decay!r}")
        if self.normalize not in ("none", "age"):
            raise ValueError(f"normalize must be 'none' or 'age', got {self.normalize!r}")
        if self.statistic not in ("mass", "max"):
            raise ValueError(f"statistic must be 'mass' or 'max', got {self.statistic!r}")
        for name in ("fixed_point", "value_norm"):
            if not isinstance(value := getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {value!r}")
        w = self.window_queries
        if w is not None and not (is_count(w) and w >= 2 and w % 2 == 0):
            raise ValueError(f"window_queries must be an even integer of at least 2, got {w!r}")
        self._check_together()
        if self.fixed_point:
            self._check_integers()

    def _check_together(self) -> None:
        """Refuse what has no meaning together."""
        if self.statistic == "max" and self.normalize != "none":
            raise ValueError(
                "normalize must be 'none' with statistic='max' (a largest value grows with no "
                f"count of queries), got {self.normalize!r}"
            )
        if self.window_queries is None:
            return
        if self.statistic == "max":
            raise ValueError(
                "statistic must be 'mass' with window_queries, got 'max'; "
                "a decay forgets old maxima"
            )
        if self._decay < 1.0:
            raise ValueError(
                "decay must be 1.0 with window_queries (each forgets old queries in its own way), "
                f"got {self.decay!r}"
            )

    def _check_integers(self) -> None:
        """Refuse what the hardware's integer scores cannot be."""
        if self.normalize != "none":
            raise ValueError(
                "normalize must be 'none' with fixed_point=True (the hardware has no divider), "
                f"got {self.normalize!r}"
            )
        if self.statistic != "mass" or self.window_queries is not None or self.value_norm:
            raise ValueError(
                "fixed_point=True adds up plain attention mass: statistic must be 'mass', "
                "window_queries None and value_norm False, got "
                f"{self.statistic!r}, {self.window_queries!r} and {self.value_norm!r}"
            )
        if self._decay < 1.0 and self.decay_shift is None:
            raise ValueError(
                "decay must be 1 - 2**-k for k in 1..16 with fixed_point=True, "
                f"got {self.decay!r}; take for instance 0.9375 or 0.984375"
            )

    @property
    def _decay(self) -> float:
        """The decay, which __post_init__ has settled."""
        assert self.decay is not None
        return self.decay

    @property
    def decay_shift(self) -> int | None:
        """Return k where decay = 1 - 2**-k, None where there is no such k or no decay."""
        if self._decay == 1.0:
            return None
        k = round(-math.log2(1.0 - self._decay))
        return k if 1 <= k <= 16 and self._decay == 1.0 - 2.0**-k else None

    @property
    def ops_per_slot(self) -> int:
        """Count: add (or take the maximum) and compare; one more for each further rule.

        Decay, division and the window's second sum are one each; |v| is squares added over 64
        dimensions, as an order of magnitude, and a product (hardware may keep |v| in the slot).
        """
        more = (self._decay < 1.0) + (self.normalize == "age") + (self.window_queries is not None)
        return 2 + more + 65 * self.value_norm

    @property
    def needs(self) -> frozenset[str]:
        """Ask for the statistic, and for the protection if scores are integers."""
        more = {"protected"} if self.fixed_point else set()
        if self.window_queries is not None:
            more.add("last")
        if self.value_norm:
            more.add("v")
        assert self.statistic is not None
        return frozenset({self.statistic} | more)

    @property
    def state(self) -> Mapping[str, StateSpec]:
        """Keep one shared exponent per table of integers, or the window's older half."""
        if self.fixed_point:
            return {"exponent": StateSpec("head", "int32")}
        return {} if self.window_queries is None else {"older": StateSpec("slot")}

    @property
    def max_queries(self) -> int | None:
        """Take no more queries at once than the integer accumulator holds."""
        return MAX_CHUNK if self.fixed_point else None

    @property
    def query_decay(self) -> float:
        """Weigh a chunk's queries as if they had come one by one."""
        return self._decay

    @property
    def query_block(self) -> int | None:
        """Forget queries half a window at a time."""
        return None if self.window_queries is None else self.window_queries // 2

    @property
    def step_rule(self) -> StepRule | None:
        """Fold attention into what the decay leaves of the score, where that is all there is."""
        is_plain = self.normalize == "none" and self.window_queries is None
        if not is_plain or self.fixed_point or self.value_norm:
            return None
        return StepRule(self.statistic, decay=self._decay)

    def priority(self, view: SlotView) -> Tensor:
        """Rank by score, or by score per query that saw the token. -> [B,Hkv,N]."""
        scores = view.scores
        if self.window_queries is not None:
            scores = scores + view.state["older"]
        if self.normalize == "age":
            scores = scores / self._num_queries(view)
        if self.value_norm:
            assert view.v is not None
            scores = scores * view.v.float().norm(dim=-1)
        return scores

    def _num_queries(self, view: SlotView) -> Tensor:
        """Count the queries that a token's score holds, faded as the score is. -> [B,Hkv,N]."""
        age = (view.num_seen - view.positions).clamp(min=1)
        half = self.query_block
        if half is not None:  # the whole older half and what the newer one has so far
            newer = (view.num_seen - 1).clamp(min=0) % half + 1
            age = torch.minimum(age, half + newer)
        if self._decay == 1.0:
            return age.float()
        # 1 + g + g**2 + ...
        return -torch.expm1(age.float() * math.log(self._decay)) / (1.0 - self._decay)

    def update(self, view: SlotView, seen: Seen) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Add this call's attention to what is left of the scores. -> [B,Hkv,N]."""
        if self.fixed_point:
            return self._update_integers(view, seen)
        if self.window_queries is not None:
            return self._update_halves(view, seen)
        kept = view.scores
        if self._decay < 1.0:
            kept = kept * self._decay ** seen.num_queries.float()
        assert self.statistic is not None
        new = seen.planes[self.statistic]
        return torch.maximum(kept, new) if self.statistic == "max" else kept + new, view.state

    def _update_halves(self, view: SlotView, seen: Seen) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Add to the newer half; where a border was crossed, it becomes the older one."""
        half = self.query_block
        assert half is not None
        last = view.num_seen - 1
        before = last - seen.num_queries  # the last position before this call, -1 for none
        num_borders = last.clamp(min=0) // half - before.clamp(min=0) // half
        newer = seen.planes["last"] * seen.group_size
        rest = seen.planes["mass"] - newer  # of the block before the newest
        rest = torch.where(num_borders > 0, rest.clamp(min=0), 0)
        older = torch.where(num_borders == 1, view.scores, 0) + rest
        is_same = num_borders == 0
        older = torch.where(is_same, view.state["older"], older)
        return torch.where(is_same, view.scores + newer, newer), {"older": older}

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
