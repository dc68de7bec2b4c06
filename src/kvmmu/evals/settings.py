"""The caches that are compared: a full one in two forms, and slots by policy and compression."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from kvmmu.codecs.base import CODECS, Codec
from kvmmu.evals.policy_text import write_policy
from kvmmu.hf.cache import SlotCache
from kvmmu.hf.enable import enabled
from kvmmu.policies.base import POLICIES, Policy
from kvmmu.slots.settings import Granularity

__all__ = ["Setting", "call_size", "chunk_size", "count_slots", "kv_nbytes"]


def count_slots(num_tokens: int, compression: float) -> int:
    """C for rows of num_tokens tokens."""
    return math.ceil(num_tokens / compression)


def chunk_size(policy: str | Policy | None, slots: int) -> int:
    """T: small, so that little is seen that the cache would not have kept. None is a full cache."""
    most = None if policy is None else POLICIES.make(policy).max_queries
    size = max(16, slots // 4)
    return size if most is None else min(size, most)


def call_size(policy: str | Policy | None, slots: int, num_tokens: int) -> int:
    """Tokens of a context that one call takes: T, or all for a selector, which wants them."""
    if policy is not None and POLICIES.make(policy).kind == "selector":
        return num_tokens
    return chunk_size(policy, slots)


@dataclass(frozen=True)
class Setting:
    """One cache to judge: the whole text kept, or ceil(N / compression) slots for N tokens.

    A prefill's chunks are at most max(16, C // 4) tokens, whatever the cache's default is.
    """

    kind: Literal["static", "dynamic", "slots"] = "slots"
    policy: str | Policy = "rce"
    compression: float = 1.0
    granularity: Granularity = "head"
    codec: str | Codec = "plain"

    def __post_init__(self) -> None:
        if self.kind not in ("static", "dynamic", "slots"):
            raise ValueError(f"kind must be static, dynamic or slots, got {self.kind!r}")
        if not 1 <= self.compression < math.inf or (self.kind != "slots" and self.compression != 1):
            raise ValueError(
                f"compression must be at least 1, and 1 for a full cache, got {self.compression!r}"
            )

    @property
    def label(self) -> str:
        """Name the cache in a table."""
        if self.kind != "slots":
            return {"static": "full StaticCache", "dynamic": "full DynamicCache"}[self.kind]
        codec = "" if self.codec == "plain" else f" {CODECS.make(self.codec)}"
        return f"{self.policy_label}{codec} 1/{self.compression:g}"

    @property
    def policy_label(self) -> str:
        """Name the policy as the command line writes it, with what differs from its defaults."""
        return write_policy(POLICIES.make(self.policy))

    def num_slots(self, num_tokens: int) -> int:
        """C for rows of num_tokens tokens."""
        return count_slots(num_tokens, self.compression)

    def chunk_size(self, num_tokens: int) -> int:
        """T for rows of num_tokens tokens."""
        return chunk_size(self._evicting, self.num_slots(num_tokens))

    def call_size(self, num_tokens: int) -> int:
        """Tokens of a context that one call takes, for rows of num_tokens tokens."""
        return call_size(self._evicting, self.num_slots(num_tokens), num_tokens)

    @property
    def _evicting(self) -> str | Policy | None:
        """The policy, None for a full cache."""
        return self.policy if self.kind == "slots" else None

    def check(self, num_tokens: int) -> None:
        """Raise ValueError where rows of num_tokens tokens leave too few slots."""
        if self.kind != "slots":
            return
        slots = self.num_slots(num_tokens)
        try:
            options = SlotCache(slots, **self._parts(num_tokens)).options
            options.policy.bind(num_slots=slots, num_sinks=options.num_sinks, window=options.window)
        except ValueError as error:
            raise ValueError(
                f"compression {self.compression:g} of {num_tokens} tokens makes {slots} slots: "
                f"{error}; or lower compression"
            ) from error

    def _parts(self, num_tokens: int) -> dict[str, Any]:
        """The options of a SlotCache for rows of num_tokens tokens."""
        return {
            "policy": self.policy,
            "granularity": self.granularity,
            "codec": self.codec,
            "chunk_size": self.chunk_size(num_tokens),
        }

    def make(self, model: Any, *, batch_size: int, num_tokens: int) -> Any:
        """Make the cache for rows of num_tokens tokens."""
        if self.kind == "slots":
            slots, parts = self.num_slots(num_tokens), self._parts(num_tokens)
            return SlotCache.for_model(model, slots, batch_size=batch_size, **parts)
        return _full_cache(model, self.kind, num_tokens)

    def enabled(self, model: Any) -> AbstractContextManager[Any]:
        """Return what the model must run inside of."""
        return enabled(model) if self.kind == "slots" else nullcontext(model)


def kv_nbytes(cache: Any) -> int:
    """Bytes of the tensors that hold K and V, of whichever cache."""
    if isinstance(cache, SlotCache):
        return cache.kv_nbytes
    tensors = [t for layer in cache.layers for t in (layer.keys, layer.values)]
    return sum(t.nbytes for t in tensors if t is not None)


def _full_cache(model: Any, kind: str, num_tokens: int) -> Any:
    """Make transformers' own cache, of the class that its generate() uses for the name."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=1,
        do_sample=False,
        cache_implementation=kind,
        return_dict_in_generate=True,
    )
    made = type(out.past_key_values)
    if kind == "dynamic":
        return made(config=model.config)
    return made(config=model.config, max_cache_len=num_tokens)
