"""Space: what a search may choose of a chip, and how a choice changes a specification.

Node, Vdd, flavour, clock, bank size and the store of the score tables are the accelerator's and
stay. Ports are no choice: each is as wide as its banks give, up to the widest preset's (the model
charges banks, and wires as a share of the array's area). A point is one value of every axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvmmu.accel.chip.chip import build_chip
from kvmmu.accel.dram.spec import list_drams, load_dram
from kvmmu.accel.spec.accelerator import AcceleratorSpec
from kvmmu.errors import SpecError
from kvmmu.registry import unknown_name
from kvmmu.units import BITS_PER_BYTE

__all__ = ["CACHES", "Axis", "Point", "Space", "like_drams", "make_space"]

CACHES = ("rce", "full")
Point = Mapping[str, Any]

_BUFFERS = ("weight", "kv", "activation", "logits")
_WIDEST_BYTES = {"weight": 256, "kv": 256, "activation": 256, "logits": 128}
"""Assumed: the ports of hbm_server, the widest preset."""
_SIDES = (8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 56, 64, 72, 80, 96, 112, 128, 160, 192, 256)
_BANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_WAYS = (2, 4, 8, 16, 32, 64)
_OF_RCE = frozenset({"num_slots", "softmax_form", "mmu_ways"})


@dataclass(frozen=True)
class Axis:
    """One choice. Ordered values stand from small to large; `own` is the accelerator's."""

    name: str
    values: tuple[Any, ...]
    own: Any
    is_ordered: bool = True


@dataclass(frozen=True)
class Space:
    """All choices of one accelerator."""

    spec: AcceleratorSpec
    axes: tuple[Axis, ...]

    def axes_of(self, cache: str) -> tuple[Axis, ...]:
        """Return the axes that a cache has: the full one has no slots, scores or KV-MMU."""
        return tuple(a for a in self.axes if cache == "rce" or a.name not in _OF_RCE)

    def own_point(self, cache: str) -> dict[str, Any]:
        """Return the accelerator's own values, or the nearest that an axis has."""
        return {axis.name: axis.own for axis in self.axes_of(cache)}

    def specification(self, point: Point) -> AcceleratorSpec:
        """Return the accelerator with a point's choices. Raises SpecError for what cannot be."""
        return self.spec.with_overrides(self._overrides(point))

    def _overrides(self, point: Point) -> dict[str, Any]:
        bank = self.spec.buffers
        made: dict[str, Any] = {
            "array.rows": point["rows"],
            "array.cols": point["cols"],
            "softmax.ways": point["softmax_ways"],
            "vector.ways": point["vector_ways"],
            "bits.weights": point["weight_bits"],
            "bits.kv": point["kv_bits"],
            "layout": point["layout"],
        }
        for name in _BUFFERS:
            banks = point[f"{name}_banks"]
            made[f"buffers.{name}_kib"] = banks * bank.bank_kib
            given = banks * bank.port_bits // BITS_PER_BYTE
            made[f"buffers.{name}_port_bytes"] = min(given, _WIDEST_BYTES[name])
        if "mmu_ways" in point:
            made["mmu.ways"] = point["mmu_ways"]
        return made


def make_space(
    spec: AcceleratorSpec,
    *,
    slots: tuple[int, ...],
    bits: tuple[int, ...] = (),
    drams: tuple[str, ...] = (),
    area_mm2: float | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> Space:
    """Return the space around a specification.

    bits: widths allowed for weights and KV (default: the accelerator's own). drams: those allowed
    (default: like_drams). fixed: axes held at one value. With area_mm2, values that alone exceed
    it are left out. Raises SpecError for an accelerator without KV-MMU or area model, ValueError
    for an axis or a value that is unknown.
    """
    spec.required_mmu()
    if spec.all_in is not None:
        raise SpecError(
            f"{spec.name} must give energy and area by parts to be searched, got an all-in figure"
        )
    axes = [*_logic_axes(spec), *_choice_axes(spec, slots, bits, drams)]
    return _within(Space(spec, _held(axes, fixed or {})), area_mm2)


def like_drams(name: str) -> tuple[str, ...]:
    """List the presets of at most twice a DRAM's bandwidth, itself among them.

    What drives the pins (PHY, controller) is in no area budget: a faster class would come free.
    """
    most_gbps = 2 * load_dram(name).peak_gbps
    return tuple(sorted({name, *(n for n in list_drams() if load_dram(n).peak_gbps <= most_gbps)}))


def _logic_axes(spec: AcceleratorSpec) -> list[Axis]:
    """List array, buffers and ways."""
    own: dict[str, tuple[tuple[int, ...], int]] = {
        "rows": (_SIDES, spec.array.rows),
        "cols": (_SIDES, spec.array.cols),
    }
    for name in _BUFFERS:
        banks = getattr(spec.buffers, f"{name}_kib") // spec.buffers.bank_kib
        own[f"{name}_banks"] = (_BANKS, banks)
    own["softmax_ways"] = (_WAYS, spec.softmax.ways)
    own["vector_ways"] = (_WAYS, spec.vector.ways)
    own["mmu_ways"] = (_WAYS, spec.required_mmu().ways)
    return [Axis(name, tuple(sorted({*v, mine})), mine) for name, (v, mine) in own.items()]


def _choice_axes(
    spec: AcceleratorSpec, slots: tuple[int, ...], bits: tuple[int, ...], drams: tuple[str, ...]
) -> list[Axis]:
    """List widths, slots, DRAM, layout and softmax form."""
    if not slots:
        raise ValueError("slots must name at least one number of slots, got none")

    def widths(own: int) -> tuple[int, ...]:
        return tuple(sorted(set(bits) or {own}))

    def nearest(values: tuple[int, ...], own: int) -> int:
        return min(values, key=lambda value: (abs(value - own), value))

    counts = tuple(sorted(set(slots)))
    weights, kv = widths(spec.bits.weights), widths(spec.bits.kv)
    drams = tuple(sorted(set(drams))) or like_drams(spec.dram)
    for name in drams:
        load_dram(name)  # an unknown one is refused by name
    return [
        Axis("weight_bits", weights, nearest(weights, spec.bits.weights)),
        Axis("kv_bits", kv, nearest(kv, spec.bits.kv)),
        Axis("num_slots", counts, counts[-1]),
        Axis("dram", drams, spec.dram if spec.dram in drams else drams[0], is_ordered=False),
        Axis("layout", ("slot", "split", "head"), spec.layout, is_ordered=False),
        Axis("softmax_form", ("online", "two_pass", "three_pass"), spec.softmax.form, False),
    ]


def _held(axes: list[Axis], fixed: Mapping[str, Any]) -> tuple[Axis, ...]:
    """Hold the fixed axes at their value. Raises ValueError for what an axis does not know."""
    names = [axis.name for axis in axes]
    for name in fixed:
        if name not in names:
            raise ValueError(unknown_name("choice", name, names))
    made = []
    for axis in axes:
        if axis.name in fixed:
            value = _known(axis, fixed[axis.name])
            axis = Axis(axis.name, (value,), value, axis.is_ordered)
        made.append(axis)
    return tuple(made)


def _known(axis: Axis, value: Any) -> Any:
    """Return the value of an axis that the text or number names."""
    for known in axis.values:
        if str(known) == str(value):
            return known
    listed = ", ".join(map(str, axis.values))
    raise ValueError(f"{axis.name} must be one of {listed}, got {value!r}")


def _within(space: Space, area_mm2: float | None) -> Space:
    """Leave out values that exceed the area even with the least of everything else.

    What an axis still needs at least one of stays: its points are refused one by one.
    """
    if area_mm2 is None:
        return space
    least = {axis.name: axis.values[0] for axis in space.axes}
    kept = []
    for axis in space.axes:
        values = axis.values
        if axis.is_ordered and axis.name not in ("num_slots", "weight_bits", "kv_bits"):
            values = tuple(v for v in values if _area(space, least | {axis.name: v}) <= area_mm2)
        own = axis.own if axis.own in values or not values else values[-1]
        kept.append(Axis(axis.name, values or axis.values[:1], own, axis.is_ordered))
    return Space(space.spec, tuple(kept))


def _area(space: Space, point: Point) -> float:
    """Return a point's area without score tables; none where it cannot be built."""
    try:
        return build_chip(space.specification(point)).total_area_mm2
    except SpecError:
        return 0.0
