"""Policy: who leaves. The contract that every policy file fulfils.

A policy is a frozen dataclass that only decides. The KV-MMU owns the slots, protects sinks and
window, fills empty slots first, breaks ties to the lowest slot, and stores all state.

Contract.
    `priority(view)` is pure, finite, float32, larger stays; its entries at empty slots
        (position -1) are ignored. It sees scores up to the previous step (decode path) or up to
        the chunk's last query (chunk path), never the future.
    `update(view, seen)` returns the new scores and the new state, also pure. It runs after each
        attention, over C slots (decode) or C + T candidates (chunk; newcomers start at 0).
    Both treat rows, layers and, unless scores are summed for granularity "layer", KV heads
        apart, and depend on the set of tokens held, not on the order of their slots.
    `needs` names what the KV-MMU must hand over, among NEEDS; nothing else is filled in.
    `state` names further tensors kept in the slot table beside `score`.
    A `selector` also has `select(view, seen)`: the priority by which a prompt's tokens are
        chosen, over candidates sorted by position (empty ones first).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from kvmmu.kernels.step import StepRule
from kvmmu.registry import Registry

__all__ = [
    "NEEDS",
    "POLICIES",
    "Policy",
    "Seen",
    "SlotView",
    "StateSpec",
    "is_count",
    "list_policies",
    "register",
]

NEEDS = ("mass", "max", "newest", "last", "last_sq", "k", "v", "protected")
"""Planes of the kernel (see kernels/contract.py), the K and V held, the protection mask."""


_IN_RULE = frozenset({"priority", "update", "query_decay", "grace"})
"""What a policy's `step_rule` speaks of."""


@dataclass(frozen=True)
class StateSpec:
    """One tensor of policy state. per "slot" [B,Hkv,C], "head" [B,Hkv], "vector" [B,Hkv,D].

    Slot-wise state follows its token; a newcomer's starts at 0. dtype is a torch dtype's name.
    """

    per: Literal["slot", "head", "vector"]
    dtype: str = "float32"


@dataclass(frozen=True)
class SlotView:
    """What a policy may look at: N candidates of every row and KV head of one layer.

    positions int32 [B,Hkv,N], -1 = empty; scores float32 [B,Hkv,N]; num_seen int32 [B,1,1],
    the tokens whose queries the scores hold; k, v [B,Hkv,N,D] if the policy needs them;
    protected bool [B,Hkv,N] likewise; state as the policy's `state` declares it.
    """

    positions: Tensor
    scores: Tensor
    num_seen: Tensor
    layer_idx: int
    num_layers: int
    granularity: str
    k: Tensor | None = None
    v: Tensor | None = None
    protected: Tensor | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """What one call's attention showed. planes float32 [B,Hkv,N] by name; counts int32 [B,1,1].

    num_queries are the real queries of this call, num_last those among them that the planes
    "last" and "last_sq" add up; max_queries is Q, pads included; group_size is G, the query
    heads of a KV head.
    """

    planes: Mapping[str, Tensor]
    num_queries: Tensor
    num_last: Tensor
    max_queries: int
    group_size: int


@dataclass(frozen=True)
class Policy(ABC):
    """Rank the tokens of a cache; see the module's contract."""

    name: ClassVar[str]
    kind: ClassVar[Literal["step", "selector"]] = "step"

    def __init_subclass__(cls) -> None:
        """Take back a `step_rule` that was said of another `update` or `priority`."""
        super().__init_subclass__()
        if "step_rule" not in vars(cls) and not _IN_RULE.isdisjoint(vars(cls)):
            cls.step_rule = Policy.step_rule  # type: ignore[method-assign]

    @property
    def ops_per_slot(self) -> int:
        """Additions, multiplications and comparisons per slot and step (for cost models)."""
        return 1

    @property
    def needs(self) -> frozenset[str]:
        """Name what this policy needs, among NEEDS."""
        return frozenset()

    @property
    def state(self) -> Mapping[str, StateSpec]:
        """Declare the tensors kept in the slot table beside the score."""
        return {}

    @property
    def max_queries(self) -> int | None:
        """Largest number of queries that one update can take, None for no limit."""
        return None

    @property
    def query_decay(self) -> float:
        """Weight that a query keeps, per later token, in the planes "mass" and "max", in (0, 1]."""
        return 1.0

    @property
    def query_block(self) -> int | None:
        """Length b of the blocks [n * b, (n + 1) * b) of positions by which queries are forgotten.

        None to forget none; otherwise the planes "mass" and "max" hold the queries of the newest
        block and of the one before it, "last" and "last_sq" those of the newest block.
        """
        return None

    @property
    def grace(self) -> int:
        """Age in tokens from which on the planes "mass" and "max" count what a token gets."""
        return 0

    @property
    def num_last(self) -> int:
        """Count the last queries of a call that the planes "last" and "last_sq" add up."""
        return 1

    @property
    def step_rule(self) -> StepRule | None:
        """Say a decode step in the words of fused kernels, None if they cannot say it.

        A rule promises that `update` with one query and `priority` do what it says, and that no
        state but the score is needed; a subclass that changes one of them says its own or has
        none. A policy without one is decoded by the KV-MMU's separate kernels.
        """
        return None

    def bind(self, *, num_slots: int, num_sinks: int, window: int) -> Policy:
        """Return this policy with its defaults settled for a layer of C = num_slots slots.

        Raises ValueError if an explicit parameter cannot be met.
        """
        return self

    @abstractmethod
    def priority(self, view: SlotView) -> Tensor:
        """Rank the candidates, larger stays. -> float32 [B,Hkv,N]."""

    def update(self, view: SlotView, seen: Seen) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the scores float32 [B,Hkv,N] and the state after this call's attention."""
        return view.scores, view.state

    def select(self, view: SlotView, seen: Seen) -> Tensor:
        """Rank a prompt's tokens, sorted by position, once. -> float32 [B,Hkv,N]."""
        raise TypeError(f"policy {self.name!r} is not a selector")

    def params(self) -> dict[str, Any]:
        """Return the parameters as plain JSON values, nested policies included."""
        return {
            key: {"name": value.name} | value.params()
            if isinstance(value := getattr(self, key), Policy)
            else value
            for key in asdict(self)
        }


POLICIES: Registry[Policy] = Registry(
    "policy",
    Policy,  # type: ignore[type-abstract]
    "kvmmu.policies",
    group="kvmmu.policies",
)


def is_count(value: object) -> bool:
    """Tell whether a parameter is an integer, which True and 5.0 are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def list_policies() -> list[str]:
    """List the names of the registered policies, third-party ones included."""
    return POLICIES.names()


def register(name: str) -> Callable[[type[Policy]], type[Policy]]:
    """Return a class decorator that registers your own Policy under `name`.

    A package may instead name it in its entry points, group "kvmmu.policies". Raises ValueError
    if the name is taken or not lower case with underscores.
    """
    return POLICIES.register(name)
