"""AcceleratorSpec: what an accelerator is. Sizes are KiB, widths bits or bytes as the name says.

Energy comes by parts (operations, registers, clock, SRAM, leakage) or as one all-in figure per
MAC, never as both; an all-in figure beside parts is a `cross_check_`. A specification that parses
is buildable: its node has tables, its Vdd lies in the fits, its banks keep up with the clock.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from kvmmu.accel.spec.scaling import Flavour, energy_factor, logic_node
from kvmmu.accel.spec.sourced import Band, Corner, Source, SpecModel, parse_spec
from kvmmu.accel.spec.tables import Bank, load_sram
from kvmmu.errors import SpecError
from kvmmu.units import BITS_PER_BYTE, GB

__all__ = ["AcceleratorSpec", "balance"]

_NAME = r"^[a-z][a-z0-9_]*$"


class Process(SpecModel):
    """Node, supply and the one flavour of all SRAM and logic."""

    node_nm: int = Field(gt=0)
    vdd_v: float = Field(gt=0)
    sram_flavour: Flavour
    sram_read_cycles: int = Field(gt=0, le=8)  # pipelined: a new access each cycle
    source: Source


class Clock(SpecModel):
    """The one clock of the chip."""

    clock_mhz: float = Field(gt=0)
    source: Source


class Bits(SpecModel):
    """Widths of what is stored and multiplied."""

    weights: int = Field(ge=2, le=16)
    kv: int = Field(ge=2, le=16)
    activations: int = Field(ge=4, le=16)
    logits: int = Field(ge=8, le=32)
    source: Source


class Array(SpecModel):
    """The grid of multiply-accumulate elements."""

    rows: int = Field(gt=0)
    cols: int = Field(gt=0)
    source: Source


class Buffers(SpecModel):
    """SRAM beside the array, all built of like banks; port bytes move in one cycle."""

    weight_kib: int = Field(gt=0)
    kv_kib: int = Field(gt=0)
    activation_kib: int = Field(gt=0)
    logits_kib: int = Field(gt=0)
    bank_kib: int = Field(gt=0)
    port_bits: int = Field(gt=0, multiple_of=8)
    weight_port_bytes: int = Field(gt=0)
    kv_port_bytes: int = Field(gt=0)
    activation_port_bytes: int = Field(gt=0)
    logits_port_bytes: int = Field(gt=0)
    source: Source

    @model_validator(mode="after")
    def _is_built_of_banks(self) -> Self:
        for name in ("weight", "kv", "activation", "logits"):
            size, port = getattr(self, f"{name}_kib"), getattr(self, f"{name}_port_bytes")
            if size % self.bank_kib:
                raise ValueError(
                    f"{name}_kib must be a multiple of bank_kib = {self.bank_kib}, got {size}"
                )
            widest = size // self.bank_kib * self.port_bits // BITS_PER_BYTE
            if port > widest:
                raise ValueError(
                    f"{name}_port_bytes must be at most {widest}, what {size // self.bank_kib} "
                    f"banks of {self.port_bits} bit give, got {port}; add banks or widen port_bits"
                )
        return self


class Softmax(SpecModel):
    """The unit between logits and probabilities: how often it passes over a row."""

    form: Literal["online", "two_pass", "three_pass"]
    ways: int = Field(gt=0)
    source: Source


class Vector(SpecModel):
    """The unit of norms, rotations, activations and residual sums."""

    ways: int = Field(gt=0)
    source: Source


class Mmu(SpecModel):
    """The KV-MMU: score tables, their store, and how many slots it takes in a cycle."""

    ways: int = Field(gt=0)
    score_bits: int = Field(ge=8, le=32)
    exponent_bits: int = Field(ge=4, le=16)
    position_bits: int = Field(ge=16, le=64)
    store: Literal["sram", "dram"]
    granularity: Literal["layer", "head"]
    source: Source


class Overheads(SpecModel):
    """What the parts cost beside the operations themselves, as shares of the MAC's energy."""

    clock_noc_share: Band
    pe_register_bits: int = Field(gt=0)
    wiring_area_share: Band
    source: Source


class AllIn(SpecModel):
    """One figure for all on-chip energy of a MAC: instead of parts, never beside them."""

    pj_per_mac: Band
    source: Source


class CrossChecks(SpecModel):
    """Whole figures to compare with; never part of a sum."""

    cross_check_pj_per_mac: Band | None = None
    cross_check_power_w: Band | None = None
    cross_check_area_mm2: Band | None = None
    source: Source


class AcceleratorSpec(SpecModel):
    """One accelerator. `overheads` (energy by parts) or `all_in`, exactly one of them."""

    name: str = Field(pattern=_NAME)
    title: str
    dataflow: str = Field(pattern=_NAME)
    process: Process
    clock: Clock
    bits: Bits
    array: Array
    buffers: Buffers
    softmax: Softmax
    vector: Vector
    mmu: Mmu | None = None
    dram: str = Field(pattern=_NAME)
    layout: Literal["slot", "split", "head"]
    overheads: Overheads | None = None
    all_in: AllIn | None = None
    cross_checks: CrossChecks | None = None

    @model_validator(mode="after")
    def _is_buildable(self) -> Self:
        if (self.overheads is None) == (self.all_in is None):
            raise ValueError(
                "energy must be given by parts (overheads) or as all_in, exactly one of them, got "
                f"{'neither' if self.all_in is None else 'both'}; "
                "name an all-in figure beside parts cross_checks.cross_check_pj_per_mac"
            )
        try:
            if self.all_in is None:
                self._check_process()
        except SpecError as error:  # pydantic passes on ValueError with the place
            raise ValueError(str(error)) from None
        return self

    def _check_process(self) -> None:
        """Refuse a Vdd outside a fit and banks that do not keep up with the clock."""
        bank = self.bank(self.buffers.bank_kib)
        node, vdd_v = self.logic_node, self.process.vdd_v
        energy_factor(node, vdd_v, to_node=node, to_vdd_v=vdd_v)
        period_ns = self.period_ns
        given = f"{self.buffers.bank_kib} KiB {self.process.sram_flavour} at {vdd_v} V"
        if bank.access_ns > self.process.sram_read_cycles * period_ns:
            raise SpecError(
                f"process.sram_read_cycles must cover the {bank.access_ns:.2f} ns access of a bank "
                f"({given}), got {self.process.sram_read_cycles} cycles of {period_ns:.2f} ns; "
                "read in more cycles, lower clock.clock_mhz or buffers.bank_kib"
            )
        if bank.cycle_ns > period_ns:
            raise SpecError(
                f"clock.clock_mhz must leave a bank its {bank.cycle_ns:.2f} ns cycle ({given}), "
                f"got {self.clock.clock_mhz:g} MHz; lower it to {1e3 / bank.cycle_ns:.0f} or "
                "lower buffers.bank_kib"
            )

    def bank(self, kib: float, *, corner: Corner = "nominal") -> Bank:
        """Return one SRAM bank of this process. Raises SpecError outside the table."""
        table = load_sram(self.process.node_nm)
        return table.bank(
            self.process.sram_flavour,
            kib,
            self.buffers.port_bits,
            vdd_v=self.process.vdd_v,
            corner=corner,
        )

    def required_mmu(self) -> Mmu:
        """Return the KV-MMU. Raises SpecError for an accelerator without one."""
        if self.mmu is None:
            raise SpecError(f"{self.name}: mmu must be given to run RCE, got none")
        return self.mmu

    @property
    def logic_node(self) -> str:
        """The node's row in the scaling fit."""
        return logic_node(self.process.node_nm, self.process.sram_flavour)

    @property
    def num_pes(self) -> int:
        """Multiply-accumulate elements of the array."""
        return self.array.rows * self.array.cols

    @property
    def period_ns(self) -> float:
        """One cycle."""
        return 1e3 / self.clock.clock_mhz

    def with_overrides(self, values: Mapping[str, Any]) -> Self:
        """Return the specification with dotted keys replaced. Raises SpecError by the key name."""
        raw = self.model_dump(mode="python", exclude_none=True)
        for key, value in values.items():
            *parents, last = key.split(".")
            place = raw
            for parent in parents:
                inner = place.setdefault(parent, {})  # an unknown name: refused by name below
                if not isinstance(inner, dict):
                    raise SpecError(f"{self.name}: key {key!r} must end at {parent!r}")
                place = inner
            place[last] = copy.deepcopy(value)
            if isinstance(place.get("source"), str) and last != "source":
                place["source"] += f"; {last} overridden"
        return parse_spec(type(self), raw, self.name)


def balance(spec: AcceleratorSpec, bandwidth_gbps: float, batch: int) -> float:
    """Return PEs over BW x B / f: below 1 the batch's step is compute-bound, above memory-bound.

    BW counts weights a second: at 8 bit one byte each.
    """
    if bandwidth_gbps <= 0 or batch < 1:
        raise ValueError(
            "bandwidth_gbps and batch must be positive, "
            f"got bandwidth_gbps={bandwidth_gbps!r}, batch={batch!r}"
        )
    weights_per_s = bandwidth_gbps * GB * BITS_PER_BYTE / spec.bits.weights
    return spec.num_pes * spec.clock.clock_mhz * 1e6 / (weights_per_s * batch)
