"""What the lm-eval model "kvmmu" takes: one cache for every request, checked before it is made."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from kvmmu.errors import KVMMUError
from kvmmu.evals.policy_text import parse_policy
from kvmmu.evals.settings import call_size, chunk_size, count_slots
from kvmmu.hf.cache import SlotCache
from kvmmu.policies.base import POLICIES, Policy
from kvmmu.registry import unknown_name

__all__ = ["CacheArguments", "MissingExtraError", "as_arguments"]


class MissingExtraError(KVMMUError, ImportError):
    """Say which extra of kvmmu brings a package that is not installed."""


@dataclass(frozen=True)
class CacheArguments:
    """The cache of a request: num_slots, or ceil(tokens / compression), or full (no eviction).

    None stands for a default, so that a full cache can refuse what was given; a policy may be
    text as on the command line. A prefill's chunks are at most max(16, C // 4) tokens.
    Raises ValueError or TypeError.
    """

    num_slots: int | None = None
    compression: float | None = None
    full: bool = False
    policy: str | Policy | None = None
    granularity: str | None = None
    positions: str | None = None
    num_sinks: int | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.full, bool):
            raise ValueError(f"full must be True or False, got {self.full!r}")
        asked = {"num_slots": self.num_slots, "compression": self.compression}
        names = [name for name, value in asked.items() if value is not None]
        names += ["full"] if self.full else []
        if len(names) != 1:
            raise ValueError(
                "exactly one of num_slots, compression and full must be given, got "
                f"{' and '.join(names) or 'none'}"
            )
        if isinstance(self.policy, str):
            object.__setattr__(self, "policy", parse_policy(self.policy))
        if self.full and self.parts:
            raise ValueError(f"full must go without {min(self.parts)}: a full cache evicts nothing")

    @property
    def parts(self) -> dict[str, Any]:
        """The options of a SlotCache that were given."""
        names = ("policy", "granularity", "positions", "num_sinks", "window")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def label(self) -> str:
        """Name the cache in a table."""
        if self.full:
            return "full cache"
        name = POLICIES.make(self.policy or "rce").name
        if self.num_slots is not None:
            return f"{name}, {self.num_slots} slots"
        return f"{name} 1/{self.compression:g}"

    def slots(self, num_tokens: int) -> int:
        """C for a request of num_tokens tokens, what is scored or generated included."""
        if self.num_slots is not None:
            return self.num_slots
        assert self.compression is not None
        return count_slots(num_tokens, self.compression)

    def chunk_size(self, num_tokens: int) -> int:
        """T for a request of num_tokens tokens."""
        return chunk_size(self.policy or "rce", self.slots(num_tokens))

    def call_size(self, num_tokens: int) -> int:
        """Tokens of a request that one call takes."""
        return call_size(self.policy or "rce", self.slots(num_tokens), num_tokens)

    def make(self, model: Any, num_tokens: int) -> SlotCache:
        """Make the cache of one request. Raises ValueError where so few slots cannot be."""
        slots = self.slots(num_tokens)
        options = self.parts | {"chunk_size": self.chunk_size(num_tokens)}
        try:
            return SlotCache.for_model(model, slots, batch_size=1, **options)
        except ValueError as error:
            if self.compression is None:
                raise
            raise ValueError(
                f"compression {self.compression:g} of a request of {num_tokens} tokens makes "
                f"{slots} slots: {error}; or give num_slots"
            ) from error

    def describe(self) -> dict[str, Any]:
        """Return what was asked for, as JSON values."""
        policy = None if self.full else POLICIES.make(self.policy or "rce")
        row = {f.name: getattr(self, f.name) for f in fields(self)}
        return row | {"policy": policy and {"name": policy.name} | policy.params()}


def as_arguments(given: dict[str, Any]) -> CacheArguments:
    """Make the arguments from a dict. Raises ValueError that suggests a known name."""
    known = [f.name for f in fields(CacheArguments)]
    for name in given:
        if name not in known:
            hint = "; several parameters of a policy need model_args as a dict"
            raise ValueError(unknown_name("argument of model 'kvmmu'", name, known) + hint)
    return CacheArguments(**given)
