"""Runner: price a workload under one design after another on one machine."""

from __future__ import annotations

from dataclasses import replace

from kvmmu.accel.chip.chip import MmuTables, build_chip
from kvmmu.accel.designs import PAGE_TOKENS, Design
from kvmmu.accel.dram.spec import DramSpec
from kvmmu.accel.pipeline.counts import counts
from kvmmu.accel.pipeline.machine import Machine
from kvmmu.accel.pipeline.timing import Cost, StepTimer, derive_step
from kvmmu.accel.pricing import make_prices
from kvmmu.accel.request import Request
from kvmmu.accel.results import DesignResult, PhaseResult
from kvmmu.accel.spec.accelerator import AcceleratorSpec
from kvmmu.accel.spec.model import ModelSpec
from kvmmu.accel.workload import LaneCopy, RegularRun, Step, Workload, regular_workload
from kvmmu.units import BITS_PER_BYTE

__all__ = ["Runner"]


class Runner:
    """Run designs of one request on one machine."""

    def __init__(
        self,
        request: Request,
        spec: AcceleratorSpec,
        dram: DramSpec,
        model: ModelSpec,
        *,
        exact: bool = False,
    ) -> None:
        self.request, self.spec, self.dram, self.model = request, spec, dram, model
        self.exact = exact
        self._timers: dict[Design, StepTimer] = {}
        self._runs: dict[int, Workload] = {}

    def machine(self, design: Design, workload: Workload) -> Machine:
        """Build the machine for a design, with what it needs and no more.

        Without scores the chip has neither score tables nor the KV-MMU's logic; the buffer in which
        logits wait is there for scores, or for a softmax that passes over them again. The array
        multiplies K and V in the design's width.
        """
        num_layers, batch, _, most = workload.header.table_shape
        tables, spec = None, self.spec
        if design.kv_bits != spec.bits.kv:
            spec = spec.with_overrides({"bits.kv": design.kv_bits})
        if design.has_scores:
            self.spec.required_mmu()
            tables = MmuTables.of(
                self.spec,
                batch=batch,
                num_layers=num_layers,
                num_kv_heads=self.model.num_kv_heads,
                slots=most,
                granularity=design.granularity,
            )
        chip = build_chip(spec, corner=self.request.corner, mmu_tables=tables)
        if not design.has_scores:
            idle = ["mmu_logic", "mmu_score"]
            chip = chip.without(
                *idle, *(["logits_buffer"] if design.softmax_form == "online" else [])
            )
        return Machine(chip, self.dram, self.model, design, batch, self.request.corner)

    def timer(self, design: Design, workload: Workload) -> StepTimer:
        """Return the design's timer; equal steps of several runs are timed once."""
        if design not in self._timers:
            self._timers[design] = StepTimer(self.machine(design, workload), exact=self.exact)
        return self._timers[design]

    def design(self, design: Design, workload: Workload) -> DesignResult:
        """Price a whole workload under one design."""
        timer = self.timer(design, workload)
        machine, prices = timer.machine, make_prices(timer.machine)
        slots = workload.header.geometry.slots
        costs: dict[str, Cost] = {}
        steps: dict[str, int] = {}
        tokens: dict[str, int] = {}
        for segment in workload.segments:
            phase = segment.step.phase
            cost = timer.segment(segment, slots=slots)
            costs[phase] = costs[phase] + cost if phase in costs else cost
            steps[phase] = steps.get(phase, 0) + segment.count
            tokens[phase] = tokens.get(phase, 0) + segment.count * segment.step.num_queries
        moved = _moved(machine, workload)
        if moved is not None:
            costs["decode"] = costs.get("decode", Cost.nothing()) + moved
        phases = {
            name: PhaseResult(machine, prices, cost, steps.get(name, 0), tokens.get(name, 0))
            for name, cost in costs.items()
        }
        capacity = _capacity(machine, workload)
        return DesignResult(
            name=design.name,
            title=design.title,
            chunk=workload.header.chunk_size,
            kv_bits=design.kv_bits,
            capacity_bytes=capacity,
            fits=capacity <= self.dram.capacity_bytes,
            phases=phases,
            workload=workload,
        )

    def decode_step(
        self, design: Design, workload: Workload, context: int, batch: int
    ) -> PhaseResult:
        """Price one decode step of `batch` lanes, each at `context` tokens with the new one."""
        timer = self.timer(design, workload)
        shape = Step((1,) * batch, (1,) * batch, ())
        step = derive_step(
            shape,
            (context - 1,) * batch,
            design,
            workload.header.geometry.slots,
            num_tables=timer.machine.num_tables,
        )
        return PhaseResult(timer.machine, make_prices(timer.machine), timer.step(step), 1, batch)

    def baseline(self, design: Design, workload: Workload) -> DesignResult:
        """Price a baseline; a regular run gives it the chunk with which its prefill is fastest."""
        if self.request.trace is not None or self.request.is_staggered:
            return self.design(design, workload)
        runs = [self._at_chunk(workload, chunk) for chunk in self._chunks()]
        return self.design(design, min(runs, key=lambda run: self._prefill_cycles(design, run)))

    def _prefill_cycles(self, design: Design, workload: Workload) -> float:
        timer, slots = self.timer(design, workload), workload.header.geometry.slots
        return sum(
            timer.segment(part, slots=slots).overlapped_cycles
            for part in workload.segments
            if part.step.phase == "prefill"
        )

    @staticmethod
    def capacity(machine: Machine, workload: Workload) -> int:
        """Return the DRAM bytes that a design needs at the run's fullest."""
        return _capacity(machine, workload)

    def _chunks(self) -> list[int]:
        """List the chunk sizes a baseline may choose from, ours among them."""
        own, prompt = self.request.chunk or 1, self.request.prompt
        return sorted({min(own, prompt), min(4 * own, prompt), prompt})

    def _at_chunk(self, workload: Workload, chunk: int) -> Workload:
        """Return the regular run of the request at another chunk size."""
        if chunk == workload.header.chunk_size:
            return workload
        if chunk not in self._runs:
            header = replace(workload.header, chunk_size=chunk)
            run = RegularRun(self.request.prompt, self.request.generate, chunk)
            self._runs[chunk] = regular_workload(header, run)
        return self._runs[chunk]


def _moved(machine: Machine, workload: Workload) -> Cost | None:
    """Return the cost of lanes copied by reorders and of slots merged; None without any.

    A copied row is read and written, its scores with it; a paged cache shares its blocks and copies
    the last of each layer. A merge reads and writes one row of each layer of its lane.
    """
    design, rows = machine.design, 0.0
    for copy in workload.copies:
        rows += copy.count * _rows_copied(machine, copy)
    if design.is_ours:
        rows += workload.merged_lanes * machine.model.num_layers
    if not rows:
        return None
    row = machine.row_bytes + (machine.entry_bytes if design.has_scores else 0)
    moved = 2 * rows * row
    cycles = machine.dram_cycles("copy", moved)
    return Cost(cycles, cycles, counts({"copy_dram_bytes": moved, "dram_cycles": cycles}))


def _rows_copied(machine: Machine, copy: LaneCopy) -> float:
    design, layers = machine.design, len(copy.live)
    if design.reads == "pages":
        return PAGE_TOKENS * layers
    if design.keeps == "slots":
        return sum(copy.live)
    return design.stored(copy.seen, design.num_slots) * layers


def _capacity(machine: Machine, workload: Workload) -> int:
    """Return the DRAM bytes needed at the fullest: weights, K and V, tables backed in DRAM.

    Slots and whole regions are reserved for every lane (a region for the longest); pages and shares
    are taken as tokens come, so that what all lanes hold at once counts.
    """
    header, design = workload.header, machine.design
    weights = machine.model.num_parameters * machine.weight_bits // BITS_PER_BYTE
    slots = header.geometry.slots
    if design.keeps == "slots":
        rows = header.geometry.batch * sum(slots)
    elif design.reads == "pages" or design.keeps == "share":
        rows = max(
            sum(design.stored(seen, C) for C in slots for seen in lanes)
            for lanes in workload.held()
        )
    else:
        longest = workload.longest_lane
        rows = header.geometry.batch * sum(design.stored(longest, C) for C in slots)
    tables = 0.0
    if design.has_scores and machine.mmu.store == "dram":
        tables = rows * machine.entry_bytes
        tables += header.geometry.batch * machine.model.num_layers * machine.table_bytes(0)
    return int(weights + rows * machine.row_bytes + tables)
