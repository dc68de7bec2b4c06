"""Machine: one chip, one DRAM, one model and one design, with the prices the plans ask for.

Every kind of DRAM traffic has its own access pattern, whose speed and energy the command-level
model gives. All of a byte's time and energy come from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import NoReturn

from kvmmu.accel.chip.chip import Chip
from kvmmu.accel.chip.mmu import HEADER_BYTES
from kvmmu.accel.chip.mmu_timing import AS_BUILT, MmuTiming
from kvmmu.accel.designs import PAGE_TOKENS, Design
from kvmmu.accel.dram.patterns import Pattern, PatternCost, pattern_cost
from kvmmu.accel.dram.spec import Corner, DramSpec
from kvmmu.accel.pipeline.counts import DRAM_KINDS
from kvmmu.accel.spec.accelerator import Mmu
from kvmmu.accel.spec.model import ModelSpec
from kvmmu.errors import SpecError
from kvmmu.units import BITS_PER_BYTE, bytes_of_bits

__all__ = ["Machine"]

_STREAM_BYTES = 1 << 20
"""Region of a stream pattern: large enough that its ends do not matter."""


@dataclass(frozen=True)
class Machine:
    """Hold what a step is priced with.

    Raises SpecError where a buffer cannot hold one tile of what must pass through it.
    """

    chip: Chip
    dram: DramSpec
    model: ModelSpec
    design: Design
    batch: int
    corner: Corner = "nominal"
    mmu_timing: MmuTiming = AS_BUILT

    def __post_init__(self) -> None:
        if self.row_bytes > self.kv_tile_bytes:
            self.refuse_buffer("kv", 2 * self.row_bytes)
        if self.weight_tile_bytes < self.chip.spec.array.cols:
            self.refuse_buffer("weight", 2 * self.chip.spec.array.cols)

    # Sizes ------------------------------------------------------------------------------------

    @property
    def weight_bits(self) -> int:
        return self.chip.spec.bits.weights

    @property
    def weight_bytes(self) -> float:
        """Bytes of one weight; half a byte at 4 bits."""
        return self.weight_bits / BITS_PER_BYTE

    @property
    def activation_bytes(self) -> int:
        return bytes_of_bits(1, self.chip.spec.bits.activations)

    @property
    def logit_bytes(self) -> float:
        """Bytes of a logit that waits."""
        return self.chip.spec.bits.logits / BITS_PER_BYTE

    @property
    def kv_value_bytes(self) -> float:
        return self.design.kv_bits / BITS_PER_BYTE

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of K and V of one token in one layer."""
        return self.design.row_bytes(self.model.num_kv_heads, self.model.head_dim)

    @property
    def mmu(self) -> Mmu:
        """The KV-MMU. Raises SpecError for an accelerator without one."""
        return self.chip.spec.required_mmu()

    @property
    def num_tables(self) -> int:
        """Score tables of one lane and layer."""
        return self.model.num_kv_heads if self.design.granularity == "head" else 1

    @property
    def entry_bytes(self) -> float:
        """Bytes in DRAM of one slot of one layer's score tables: scores and positions."""
        mmu = self.mmu
        return self.num_tables * (
            bytes_of_bits(1, mmu.score_bits) + bytes_of_bits(1, mmu.position_bits)
        )

    def table_bytes(self, slots: int) -> float:
        """Bytes in DRAM of one layer's score tables of a lane with `slots` slots, headers too."""
        return slots * self.entry_bytes + self.num_tables * HEADER_BYTES

    @property
    def table_latency_cycles(self) -> int:
        """Cycles from asking for a table until it begins to come.

        From the DRAM: a closed row is opened. Per head, the tables of two lanes wait in SRAM.
        """
        if self.design.granularity == "head":
            return self.chip.spec.process.sram_read_cycles
        t = self.dram.timings
        cycles = t.t_rp_cycles + t.t_rcd_rd_cycles + t.t_cl_cycles + t.burst_cycles
        return ceil(cycles * self.chip.spec.clock.clock_mhz / t.clock_mhz)

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.model.num_heads // self.model.num_kv_heads

    @property
    def weight_tile_bytes(self) -> int:
        """Half of the weight buffer: the other half is being filled."""
        return self.chip.memories["weight"].capacity_bytes // 2

    @property
    def kv_tile_bytes(self) -> int:
        """Half of the KV buffer: the other half is being filled."""
        return self.chip.memories["kv"].capacity_bytes // 2

    @property
    def activation_capacity(self) -> int:
        return self.chip.memories["activation"].capacity_bytes

    def stays(self, num_bytes: float) -> bool:
        """Say whether a tensor stays on chip: half of the buffer is its, half its successor's."""
        return num_bytes <= self.activation_capacity // 2

    # Time -------------------------------------------------------------------------------------

    def port_cycles(self, memory: str, num_bytes: float) -> int:
        """Cycles that a memory's port needs for `num_bytes`."""
        return ceil(num_bytes / self.chip.memories[memory].port_bytes_per_cycle)

    def dram_cycles(self, kind: str, num_bytes: float, *, heads: int | None = None) -> int:
        """Chip cycles that the DRAM needs for `num_bytes` of a kind of traffic, with refresh."""
        if num_bytes <= 0:
            return 0
        cost = self.pattern(kind, heads=heads)
        return ceil(num_bytes * self.chip.spec.clock.clock_mhz / (1e3 * cost.gbps))

    # Traffic ----------------------------------------------------------------------------------

    def pattern(self, kind: str, *, heads: int | None = None) -> PatternCost:
        """Return what a kind of traffic costs; `heads` KV heads are fetched together by a chunk."""
        key = (kind, heads)
        if key not in self._patterns:
            self._patterns[key] = pattern_cost(
                self.dram, self._pattern_of(kind, heads), corner=self.corner
            )
        return self._patterns[key]

    def patterns(self) -> Iterator[Pattern]:
        """Yield the pattern of every kind of traffic, each group of KV heads on its own."""
        for kind in DRAM_KINDS:
            groups: Iterable[int | None] = (None,)
            if kind == "kv_read_chunk":
                groups = range(1, self.model.num_kv_heads + 1)
            for heads in groups:
                if heads is None or self.model.num_kv_heads % heads == 0:
                    yield self._pattern_of(kind, heads)

    @cached_property
    def _patterns(self) -> dict[tuple[str, int | None], PatternCost]:
        return {}

    def _pattern_of(self, kind: str, heads: int | None) -> Pattern:
        """Say which access pattern a kind of traffic has in this design's layout."""
        region = self.row_bytes * max(self.design.num_slots, 2 * PAGE_TOKENS)
        if kind == "kv_read":
            return self._read_pattern(region)
        if kind == "kv_read_chunk":
            piece = self._head_piece(heads or self.model.num_kv_heads)
            if piece >= self.row_bytes:
                return self._read_pattern(region)
            return Pattern("strided", piece, region, stride_bytes=self.row_bytes // 2)
        if kind == "copy":
            return Pattern("sequential", region, region, is_write=True)
        if kind == "kv_write":
            return Pattern("random", self.write_piece_bytes, region, is_write=True)
        if kind == "embedding":
            width = bytes_of_bits(self.model.hidden_size, self.weight_bits)
            return Pattern("random", width, _STREAM_BYTES)
        if kind == "page_table":
            return Pattern("random", self.page_entry_bytes, _STREAM_BYTES)
        return Pattern("sequential", _STREAM_BYTES, _STREAM_BYTES)

    def _read_pattern(self, region: int) -> Pattern:
        """Return the pattern in which attention reads a lane's region of a layer."""
        reads, row = self.design.reads, self.row_bytes
        if reads == "pages":
            return Pattern("random", PAGE_TOKENS * row, region)
        if reads == "gather":
            return Pattern("random", self._gather_piece(), region)
        if self.design.softmax_form != "online" and self.design.layout != "split":
            # K of every slot, then V of every slot.
            return Pattern("strided", row // 2, region, stride_bytes=row)
        return Pattern("sequential", region, region)

    def _gather_piece(self) -> int:
        """Contiguous bytes that an irregular read finds: a row, or one head's K or V."""
        if self.design.granularity == "layer":
            return self.row_bytes if self.design.layout == "slot" else self.row_bytes // 2
        return self.write_piece_bytes

    def _head_piece(self, heads: int) -> int:
        """Contiguous bytes of `heads` KV heads of a slot; a head's own region is contiguous."""
        if heads == self.model.num_kv_heads or self.design.layout == "head":
            return self.row_bytes
        return max(1, self.row_bytes * heads // (2 * self.model.num_kv_heads))

    @property
    def write_piece_bytes(self) -> int:
        """Contiguous bytes that one new row writes in this layout, for one score table."""
        heads = self.model.num_kv_heads
        if self.design.layout == "head":
            return max(1, self.row_bytes // heads)
        half = self.row_bytes // 2
        if self.design.granularity == "head":
            return max(1, half // heads)
        return self.row_bytes if self.design.layout == "slot" else half

    @property
    def page_entry_bytes(self) -> int:
        """Bytes of one block number in a page table: a 32-bit word."""
        return 4

    # Refusals ---------------------------------------------------------------------------------

    def refuse_buffer(self, memory: str, needed: float) -> NoReturn:
        """Raise SpecError for a buffer that cannot hold a double-buffered tile."""
        got = self.chip.memories[memory].capacity_bytes
        raise SpecError(
            f"buffers.{memory}_kib of {self.chip.spec.name} must hold two tiles, at least "
            f"{ceil(needed)} bytes for {self.model.name}, got {got}; make it larger"
        )
