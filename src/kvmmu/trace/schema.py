"""What a trace holds: its header and its three kinds of events, with the shapes of their arrays.

B lanes, L layers, H tables a layer (KV heads, or 1 for granularity "layer"), S decode steps,
C the largest number of slots of any layer, C_l that of layer l, T tokens of a chunk, N rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from kvmmu.geometry import CacheGeometry

__all__ = [
    "LANE_KINDS",
    "NOT_WRITTEN",
    "VERSION",
    "ChunkEvent",
    "DecodeBlock",
    "Event",
    "LaneEvent",
    "TraceHeader",
    "check_event",
    "flatten_writes",
    "masses_nbytes",
]

VERSION = 1
NOT_WRITTEN = -2  # `evicted` where no token was written; -1 where the slot was empty
LANE_KINDS = ("admit", "release", "reset", "reorder", "merge")
Array = NDArray[Any]


@dataclass(frozen=True)
class TraceHeader:
    """Say once what every event of a trace is about; created_by names the program that ran.

    chunk_size is the prefill chunk T; decay_shift is k where the fixed-point score decays by
    1 - 2**-k; has_masses is set by the writer. Raises ValueError if a value breaks its rule.
    """

    geometry: CacheGeometry
    policy: str
    granularity: Literal["head", "layer"]
    num_sinks: int
    window: int
    chunk_size: int
    kvmmu_version: str
    created_by: str
    policy_parameters: Mapping[str, Any] = field(default_factory=dict)
    positions: Literal["original", "in_cache"] = "original"
    layer_types: tuple[str, ...] = ()
    model: str | None = None
    decay_shift: int | None = None
    has_masses: bool = False

    def __post_init__(self) -> None:
        if self.granularity not in ("head", "layer"):
            raise ValueError(f"granularity must be 'head' or 'layer', got {self.granularity!r}")
        if self.positions not in ("original", "in_cache"):
            raise ValueError(f"positions must be 'original' or 'in_cache', got {self.positions!r}")
        if self.layer_types and len(self.layer_types) != self.geometry.num_layers:
            raise ValueError(
                f"layer_types must name each of the {self.geometry.num_layers} layers, "
                f"got {self.layer_types!r}"
            )

    @property
    def num_tables(self) -> int:
        """Score tables of one lane and layer: the H of every shape."""
        return self.geometry.num_kv_heads if self.granularity == "head" else 1

    @property
    def table_shape(self) -> tuple[int, int, int, int]:
        """Shape [L, B, H, C] of one value a slot."""
        g = self.geometry
        return g.num_layers, g.batch, self.num_tables, max(g.slots)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain["geometry"] = self.geometry.to_json()
        plain["policy_parameters"] = dict(self.policy_parameters)
        plain["layer_types"] = list(self.layer_types)
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> TraceHeader:
        """Build a header from what to_json returned."""
        fields = dict(plain)
        geometry = dict(fields["geometry"])
        geometry["slots"] = tuple(geometry["slots"])
        fields["geometry"] = CacheGeometry(**geometry)
        fields["layer_types"] = tuple(fields["layer_types"])
        return cls(**fields)


@dataclass(frozen=True, eq=False)
class DecodeBlock:
    """S consecutive decode steps: one new token a lane at most.

    num_queries is 0 for a pad or a finished row; slots is the slot written, -1 where none was;
    evicted the position that left, -1 = the slot was empty, -2 = nothing written; positions the
    token's own; n_valid the slots that attention read, the new one included. masses holds the
    words that the fixed-point KV-MMU consumed, 0 where a lane had no query or no such slot.
    """

    ARRAYS: ClassVar[dict[str, tuple[str, str]]] = {
        "steps": ("<i8", "S"),
        "num_queries": ("<i4", "SB"),
        "slots": ("<i4", "SLBH"),
        "evicted": ("<i4", "SLBH"),
        "positions": ("<i4", "SB"),
        "n_valid": ("<i4", "SLB"),
        "masses": ("<u2", "SLBHC"),
    }
    steps: Array
    num_queries: Array
    slots: Array
    evicted: Array
    positions: Array
    n_valid: Array
    masses: Array | None = None


@dataclass(frozen=True, eq=False)
class ChunkEvent:
    """One layer's commit of a chunk of T tokens, lane by lane.

    valid [B, T] marks the real tokens; n_valid the live slots read before the chunk; the rows
    (lanes, heads, slots, evicted, positions) list the writes; num_dropped counts real tokens
    that were never written. masses covers the C_l slots, then the T tokens.
    """

    ARRAYS: ClassVar[dict[str, tuple[str, str]]] = {
        "valid": ("|b1", "BT"),
        "n_valid": ("<i4", "B"),
        "lanes": ("<i4", "N"),
        "heads": ("<i4", "N"),
        "slots": ("<i4", "N"),
        "evicted": ("<i4", "N"),
        "positions": ("<i4", "N"),
        "num_dropped": ("<i4", "BH"),
        "masses": ("<u4", "BHM"),
    }
    step: int
    layer: int
    valid: Array
    n_valid: Array
    lanes: Array
    heads: Array
    slots: Array
    evicted: Array
    positions: Array
    num_dropped: Array
    masses: Array | None = None

    @property
    def num_queries(self) -> Array:
        """Real tokens of each lane [B]."""
        counts: Array = np.asarray(self.valid).sum(axis=-1)
        return counts


@dataclass(frozen=True, eq=False)
class LaneEvent:
    """Something that befell whole lanes; a reorder gives lanes[i] what sources[i] held."""

    ARRAYS: ClassVar[dict[str, tuple[str, str]]] = {
        "lanes": ("<i4", "N"),
        "sources": ("<i4", "N"),
    }
    kind: str
    step: int
    lanes: Array
    sources: Array | None = None


Event = DecodeBlock | ChunkEvent | LaneEvent


def check_event(event: Event, header: TraceHeader) -> dict[str, Array]:
    """Return the event's arrays in their stored types; optional ones only where present.

    Raises ValueError, or TypeError for what is not whole numbers, naming the array.
    """
    num_layers, batch, num_tables, most_slots = header.table_shape
    sizes = {"L": num_layers, "B": batch, "H": num_tables, "C": most_slots}
    if isinstance(event, ChunkEvent):
        if not 0 <= event.layer < num_layers:
            raise ValueError(f"layer must be in [0, {num_layers}), got {event.layer}")
        sizes["C"] = header.geometry.slots[event.layer]
        sizes["M"] = sizes["C"] + np.asarray(event.valid).shape[-1]
    arrays: dict[str, Array] = {}
    for name, (dtype, letters) in event.ARRAYS.items():
        value = getattr(event, name)
        if value is not None:
            arrays[name] = _stored(name, np.asarray(value), np.dtype(dtype))
            _check_shape(name, arrays[name].shape, letters, sizes)
    _check_ranges(event, arrays, sizes)
    return arrays


def _stored(name: str, value: Array, dtype: np.dtype[Any]) -> Array:
    if value.dtype.kind not in "iub" or (dtype.kind == "b") != (value.dtype.kind == "b"):
        raise TypeError(f"{name} must be of type {dtype.name}, got {value.dtype}")
    if dtype.kind != "b" and value.size and value.dtype != dtype:
        low, high = int(value.min()), int(value.max())
        if low < np.iinfo(dtype).min or high > np.iinfo(dtype).max:
            raise ValueError(f"{name} must fit {dtype.name}, got [{low}, {high}]")
    return np.ascontiguousarray(value, dtype=dtype)


def _check_shape(name: str, shape: tuple[int, ...], letters: str, sizes: dict[str, int]) -> None:
    """Compare a shape with its letters; the first array with a new letter fixes its size."""
    fits = len(shape) == len(letters)
    if not fits or any(sizes.setdefault(a, n) != n for a, n in zip(letters, shape)):
        wanted = ", ".join(f"{a}={sizes[a]}" if a in sizes else a for a in letters)
        raise ValueError(f"{name} must have shape [{wanted}], got {list(shape)}")


def _check_ranges(event: Event, arrays: dict[str, Array], sizes: dict[str, int]) -> None:
    limits = {"slots": sizes["C"], "lanes": sizes["B"], "sources": sizes["B"], "heads": sizes["H"]}
    for name, limit in limits.items():
        value = arrays.get(name)
        if value is None or not value.size:
            continue
        lowest = -1 if isinstance(event, DecodeBlock) else 0
        if int(value.min()) < lowest or int(value.max()) >= limit:
            raise ValueError(
                f"{name} must be in [{lowest}, {limit}), got [{value.min()}, {value.max()}]"
            )
    if isinstance(event, LaneEvent):
        if event.kind not in LANE_KINDS:
            raise ValueError(f"kind must be one of {', '.join(LANE_KINDS)}, got {event.kind!r}")
        if (event.kind == "reorder") != (event.sources is not None):
            raise ValueError(f"sources must be given for a reorder alone, got kind {event.kind!r}")


def flatten_writes(
    slots: Array, positions: Array, *, evicted: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """Turn dense writes [B, H, K] (slot -1 = none) into rows: lanes, heads, slots, evicted, pos."""
    lanes, heads, turns = np.nonzero(slots >= 0)
    at = (lanes, heads, turns)
    return lanes, heads, slots[at], evicted[at], positions[at]


def masses_nbytes(
    geometry: CacheGeometry,
    num_steps: int,
    *,
    granularity: str = "head",
    num_chunks: int = 0,
    chunk_size: int = 0,
) -> int:
    """Bytes that the masses of a recording take before compression: say it before recording."""
    tables = geometry.batch * (geometry.num_kv_heads if granularity == "head" else 1)
    step_bytes = 2 * tables * geometry.num_layers * max(geometry.slots)
    chunk_bytes = 4 * tables * sum(slots + chunk_size for slots in geometry.slots)
    return num_steps * step_bytes + num_chunks * chunk_bytes
