"""Simulate a run on an accelerator: RCE beside every baseline on the same chip and DRAM.

    request -> machine (spec, chip, DRAM, model) -> workload (regular or recorded) -> every design
            -> delays, energies, bytes, ratios

Nothing here is fitted: what the paper claims is looked up and compared, never aimed at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kvmmu.accel.chip.chip import MmuTables, build_chip
from kvmmu.accel.designs import Design, baselines, rce
from kvmmu.accel.dram.patterns import Corner
from kvmmu.accel.dram.spec import DramSpec, load_dram
from kvmmu.accel.pipeline.counts import counts
from kvmmu.accel.pipeline.machine import Machine
from kvmmu.accel.pipeline.timing import Cost, StepTimer
from kvmmu.accel.pricing import make_prices
from kvmmu.accel.results import MODES, DesignResult, PhaseResult
from kvmmu.accel.spec.accelerator import AcceleratorSpec
from kvmmu.accel.spec.load import load_accelerator, load_model
from kvmmu.accel.spec.model import ModelSpec
from kvmmu.accel.workload import (
    RegularRun,
    Workload,
    read_workload,
    regular_events,
    regular_header,
)
from kvmmu.errors import CapacityError, SpecError
from kvmmu.geometry import CacheGeometry
from kvmmu.trace.reader import read

__all__ = ["HARDWARE_POLICIES", "MODES", "SCOPES", "Request", "Runner", "Simulation", "our_design", "settle", "simulate"]

SCOPES = ("decode", "end_to_end")
HARDWARE_POLICIES = {
    "rce": True,
    "h2o": True,
    "tova": True,
    "streaming_llm": False,
    "random": False,
}
"""Policies that the KV-MMU of the chip can run -> whether they need its scores (attention mass)."""


@dataclass(frozen=True)
class Request:
    """What to simulate. None means: the accelerator's, or the rule beside it.

    num_slots: ceil((prompt + generate) / compression); chunk: min(256, num_slots), as the library.
    """

    accelerator: str | Path = "jetcas65"
    model: str | Path = "llama_7b"
    batch: int = 16
    prompt: int = 2048
    generate: int = 2048
    num_slots: int | None = None
    compression: float = 8.0
    chunk: int | None = None
    num_sinks: int = 4
    window: int | None = None
    kv_bits: int | None = None
    granularity: str | None = None
    layout: str | None = None
    softmax_form: str | None = None
    dram: str | Path | None = None
    corner: Corner = "nominal"
    is_staggered: bool = False
    trace: Path | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("batch", "prompt", "generate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.compression < 1:
            raise ValueError(f"compression must be at least 1, got {self.compression}")


@dataclass(frozen=True, eq=False)
class Simulation:
    """RCE and its baselines on one machine, one DRAM, one corner."""

    request: Request
    spec: AcceleratorSpec
    dram: DramSpec
    model: ModelSpec
    workload: Workload
    ours: DesignResult
    unscored: DesignResult
    others: tuple[DesignResult, ...]

    @cached_property
    def ratios(self) -> dict[str, Any]:
        """Return baseline / ours: {name: {scope: {mode: {"energy", "delay"}}}}; above 1 = gained.

        Modes: both overlapped; baseline serial, ours overlapped; both serial.
        """
        return {
            other.name: {
                scope: _ratio(other.scope(scope), self.ours.scope(scope))
                for scope in SCOPES
                if scope == "end_to_end" or scope in self.ours.phases
            }
            for other in self.others
            if other.fits
        }

    def mmu_share(self, scope: str = "end_to_end", mode: str = "overlapped") -> dict[str, float]:
        """Return the KV-MMU's parts as shares of all energy.

        tables: logic, score tables, their traffic and leakage. with_collection: what the whole
        run would save without scores, that is tables, the second look at every logit, and rows
        that wait until it is known who stays.
        """
        part, plain = self.ours.scope(scope), self.unscored.scope(scope)
        whole = part.energy_j(mode)
        terms = part.mmu_energy_j(mode)
        tables = sum(value for name, value in terms.items() if name != "mmu_collect")
        shares = {name: value / whole for name, value in terms.items()}
        return shares | {
            "tables": tables / whole,
            "with_collection": (whole - plain.energy_j(mode)) / whole,
        }

    @property
    def notes(self) -> list[str]:
        """Say what a reader must know of this run."""
        made = [f"{other.title}: does not fit {self.dram.name}" for other in self.others if not other.fits]
        longest, most = self.workload.longest_lane, self.model.max_positions
        if longest > most:
            made.append(
                f"{longest} tokens exceed the {most} positions that {self.model.name} was trained "
                "with: the costs hold, its text would not"
            )
        return made

    def stall_cycles(self, scope: str = "end_to_end") -> float:
        """Return the cycles by which the KV-MMU lengthens the run, scores and staging included."""
        mine, plain = self.ours.scope(scope), self.unscored.scope(scope)
        return mine.cycles("overlapped") - plain.cycles("overlapped")


def _ratio(other: PhaseResult, ours: PhaseResult) -> dict[str, dict[str, float]]:
    pairs = {
        "overlapped": ("overlapped", "overlapped"),
        "baseline_serial": ("serial", "overlapped"),
        "serial": ("serial", "serial"),
    }
    return {
        name: {
            "energy": other.energy_j(theirs) / ours.energy_j(mine),
            "delay": other.delay_s(theirs) / ours.delay_s(mine),
        }
        for name, (theirs, mine) in pairs.items()
    }


def simulate(
    request: Request, *, names: tuple[str, ...] | None = None, exact: bool = False
) -> Simulation:
    """Simulate a request; `names` limits the baselines. exact=True steps through every step.

    Raises SpecError for what the machine cannot do, CapacityError where the run does not fit its
    DRAM, ValueError for a wrong argument, TraceError for a wrong trace.
    """
    spec = load_accelerator(request.accelerator).with_overrides(dict(request.overrides))
    model = load_model(request.model)
    dram = load_dram(request.dram or spec.dram)
    workload, request = settle(request, model, spec)
    ours = our_design(request, spec, workload)
    run = Runner(request, spec, dram, model, exact=exact)
    mine = run.design(ours, workload)
    if not mine.fits:
        raise CapacityError(
            f"weights and KV must fit the {dram.capacity_bytes / 1e9:.1f} GB of {dram.name}, got "
            f"{mine.capacity_bytes / 1e9:.1f} GB for {model.name} at batch {request.batch}; "
            "take fewer lanes or slots, fewer bits, or a larger DRAM"
        )
    plain = replace(ours, has_scores=False, softmax_form="online")
    others = [
        run.baseline(design, workload)
        for design in baselines(ours, num_tokens=workload.longest_lane)
        if names is None or design.name in names
    ]
    return Simulation(
        request, spec, dram, model, workload, mine, run.design(plain, workload), tuple(others)
    )


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

    def machine(self, design: Design, workload: Workload) -> Machine:
        """Build the machine for a design; without scores it has no score tables."""
        num_layers, batch, num_tables, most = workload.header.table_shape
        tables = None
        if design.has_scores:
            count = batch * num_layers * num_tables
            kept = 2 * num_tables if self.spec.mmu.store == "dram" else count
            tables = MmuTables(num_tables=count, slots_per_table=most, tables_on_chip=kept)
        chip = build_chip(self.spec, corner=self.request.corner, mmu_tables=tables)
        return Machine(chip, self.dram, self.model, design, batch, self.request.corner)

    def design(self, design: Design, workload: Workload, *, chunk: int | None = None) -> DesignResult:
        """Price a whole workload under one design."""
        machine = self.machine(design, workload)
        timer, prices = StepTimer(machine, exact=self.exact), make_prices(machine)
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
            chunk=chunk or workload.header.chunk_size,
            kv_bits=design.kv_bits,
            capacity_bytes=capacity,
            fits=capacity <= self.dram.capacity_bytes,
            phases=phases,
        )

    def baseline(self, design: Design, workload: Workload) -> DesignResult:
        """Price a baseline; a regular run gives it the chunk with which its prefill is fastest."""
        if self.request.trace is not None or self.request.is_staggered:
            return self.design(design, workload)
        best: DesignResult | None = None
        for chunk in self._chunks():
            run = replace_chunk(workload, self.request, chunk)
            made = self.design(design, run, chunk=chunk)
            if best is None or _prefill_s(made) < _prefill_s(best):
                best = made
        assert best is not None
        return best

    def _chunks(self) -> list[int]:
        """List the chunk sizes a baseline may choose from, ours among them."""
        own, prompt = self.request.chunk or 1, self.request.prompt
        return sorted({min(own, prompt), min(4 * own, prompt), prompt})


def _prefill_s(result: DesignResult) -> float:
    part = result.phases.get("prefill")
    return part.delay_s() if part else 0.0


def replace_chunk(workload: Workload, request: Request, chunk: int) -> Workload:
    """Return the regular run of a request at another chunk size."""
    if chunk == workload.header.chunk_size:
        return workload
    header = replace(workload.header, chunk_size=chunk)
    run = RegularRun(request.prompt, request.generate, chunk, request.is_staggered)
    return read_workload(header, regular_events(header, run))


# Requests -----------------------------------------------------------------------------------


def settle(
    request: Request, model: ModelSpec, spec: AcceleratorSpec
) -> tuple[Workload, Request]:
    """Return the workload and the request with every None settled."""
    if request.trace is not None:
        return _recorded(request, model)
    total = request.prompt + request.generate
    slots = request.num_slots or int(-(-total // request.compression))
    window = request.window if request.window is not None else max(1, slots // 8)
    if slots <= request.num_sinks + window:
        raise ValueError(
            f"num_slots must exceed num_sinks + window = {request.num_sinks + window}, got {slots}; "
            "raise num_slots or lower window"
        )
    chunk = request.chunk or min(256, slots)
    bits = request.kv_bits or spec.bits.kv
    granularity = request.granularity or spec.mmu.granularity
    geometry = CacheGeometry(
        num_layers=model.num_layers,
        batch=request.batch,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        slots=(min(slots, total),) * model.num_layers,
        dtype=f"int{bits}",
        itemsize=max(1, bits // 8),
    )
    header = regular_header(
        geometry,
        granularity=granularity,
        chunk=chunk,
        num_sinks=request.num_sinks,
        window=window,
        model=model.name,
    )
    run = RegularRun(request.prompt, request.generate, chunk, request.is_staggered)
    settled = replace(
        request, num_slots=slots, window=window, chunk=chunk, kv_bits=bits, granularity=granularity
    )
    return read_workload(header, regular_events(header, run)), settled


def _recorded(request: Request, model: ModelSpec) -> tuple[Workload, Request]:
    """Read a trace. Raises SpecError where its geometry is not the simulated one."""
    assert request.trace is not None
    trace = read(request.trace)
    header, g = trace.header, trace.header.geometry
    wanted = {
        "num_layers": (model.num_layers, g.num_layers),
        "num_kv_heads": (model.num_kv_heads, g.num_kv_heads),
        "head_dim": (model.head_dim, g.head_dim),
    }
    if request.num_slots is not None:
        wanted["num_slots"] = (request.num_slots, max(g.slots))
    for name, (simulated, recorded) in wanted.items():
        if simulated != recorded:
            raise SpecError(
                f"{name} of the trace must be the simulated one, {simulated} for {model.name}, "
                f"got {recorded} in {request.trace}"
            )
    if header.policy not in HARDWARE_POLICIES:
        raise SpecError(
            f"the trace's policy must be one that the KV-MMU can run "
            f"({', '.join(HARDWARE_POLICIES)}), got {header.policy!r}"
        )
    workload = read_workload(header, trace.events())
    if not workload.segments:
        raise SpecError(f"the trace must hold at least one step, got none in {request.trace}")
    settled = replace(
        request,
        batch=g.batch,
        num_slots=max(g.slots),
        window=header.window,
        num_sinks=header.num_sinks,
        chunk=header.chunk_size,
        granularity=header.granularity,
        prompt=workload.num_tokens_in("prefill") or 1,
        generate=workload.num_tokens_in("decode") or 1,
    )
    return workload, settled


def our_design(request: Request, spec: AcceleratorSpec, workload: Workload) -> Design:
    """Return the design under study, with what the request overrides."""
    made = rce(
        num_slots=max(workload.header.geometry.slots),
        kv_bits=request.kv_bits or spec.bits.kv,
        form=_one_of("softmax_form", request.softmax_form or spec.softmax.form, FORMS),
        granularity=_one_of("granularity", workload.header.granularity, ("layer", "head")),
        layout=_one_of("layout", request.layout or spec.layout, ("slot", "split", "head")),
    )
    return replace(made, has_scores=HARDWARE_POLICIES[workload.header.policy])


FORMS = ("online", "two_pass", "three_pass")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> Any:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return value


# What is no step ----------------------------------------------------------------------------


def _moved(machine: Machine, workload: Workload) -> Cost | None:
    """Return the cost of lanes copied by reorders and of slots merged; None without any.

    A copied row is read and written; a merge reads and writes one row of each layer of its lane.
    """
    rows = 0.0
    for copy in workload.copies:
        live = sum(copy.live) if machine.design.keeps == "slots" else copy.seen * len(copy.live)
        rows += live * copy.count
    if machine.design.is_ours:
        rows += workload.merged_lanes * machine.model.num_layers
    if not rows:
        return None
    moved = 2 * rows * machine.row_bytes
    cycles = machine.dram_cycles("copy", moved)
    return Cost(cycles, cycles, counts({"copy_dram_bytes": moved, "dram_cycles": cycles}))


def _capacity(machine: Machine, workload: Workload) -> int:
    """Return the DRAM bytes needed at the fullest: weights, K and V, tables backed in DRAM."""
    header, model, design = workload.header, machine.model, machine.design
    weights = machine.model.num_parameters * machine.weight_bits // 8
    longest = workload.longest_lane
    rows = sum(
        header.geometry.slots[layer]
        if design.keeps == "slots"
        else design.stored(longest, header.geometry.slots[layer])
        for layer in range(model.num_layers)
    )
    kv = header.geometry.batch * rows * machine.row_bytes
    tables = 0
    if design.has_scores and machine.chip.spec.mmu.store == "dram":
        entry_bits = machine.chip.spec.mmu.score_bits + machine.chip.spec.mmu.position_bits
        tables = header.geometry.batch * rows * machine.num_tables * entry_bits // 8
    return int(weights + kv + tables)


