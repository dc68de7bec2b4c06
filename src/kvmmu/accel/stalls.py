"""Stalls: by how many cycles the KV-MMU makes a decode step longer, and how many ways take none.

A stall is the difference between two runs of the pipeline, everything else equal: a decode step of
full lanes with the KV-MMU as it is built, and with one that is infinitely fast: it takes any number
of probabilities in a cycle, has every table in place at once and knows the victim with the last
probability. Causes are added one after the other, so they sum to the whole:

    score input   a beat a cycle, `ways` slots each; the softmax waits where it makes them faster
    table swap    tables of the DRAM store change places on chip, and come after its latency
    search        LATENCY_CYCLES from the last beat to the victim

What is no stall stands apart: the second look at the logits (`collection`, the softmax's time) and
the tables' bytes on the DRAM's pins (`traffic`), both there however fast the KV-MMU is.

A rescale holds the stream up. After n tokens a table has had at most ceil(log2 n) of them (a score
grows by at most 65,535 << 0 a token, and each rescale doubles what fits), so they are shown as the
worst step there could be, every table rescaled at once, and as their share of a whole run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvmmu.accel.chip.mmu_timing import AS_BUILT, WAYS, MmuTiming, num_rows, rescale_cycles
from kvmmu.accel.designs import Design
from kvmmu.accel.dram.spec import load_dram
from kvmmu.accel.pipeline.machine import Machine
from kvmmu.accel.pipeline.timing import StepTimer, derive_step
from kvmmu.accel.request import Request, our_design, settle
from kvmmu.accel.runner import Runner
from kvmmu.accel.simulate import Simulation
from kvmmu.accel.spec.load import load_accelerator, load_model
from kvmmu.accel.workload import Step, Workload

__all__ = ["CAUSES", "StallStudy", "Stalls", "stalls", "stalls_of"]

CAUSES = ("score input", "table swap", "search")
_FAST = AS_BUILT.without("takes_input", "swaps", "searches")
_TIMINGS: tuple[MmuTiming, ...] = (
    _FAST,
    AS_BUILT.without("swaps", "searches"),
    AS_BUILT.without("searches"),
    AS_BUILT,
)


@dataclass(frozen=True)
class Stalls:
    """Stall cycles of one decode step by cause; what is no stall; the step itself.

    rescale_cycles: further stalls if every table were rescaled in the step. is_built: the RTL has
    that many ways for that many slots.
    """

    ways: int
    is_built: bool
    step_cycles: int
    by_cause: dict[str, int]
    collection_cycles: int
    traffic_cycles: int
    rescale_cycles: int

    @property
    def total(self) -> int:
        """Stall cycles of the step, rescales apart."""
        return sum(self.by_cause.values())


@dataclass(frozen=True)
class StallStudy:
    """Stalls for each number of ways, the first of them the accelerator's own.

    rescales_per_table: at most, over the longest lane; rescale_share: of a run's decode cycles, at
    most, at the accelerator's ways.
    """

    rows: tuple[Stalls, ...]
    rescales_per_table: int
    rescale_share: float

    @property
    def own(self) -> Stalls:
        """The accelerator's own ways."""
        return self.rows[0]

    @property
    def least_ways(self) -> int | None:
        """The fewest ways that the RTL is built with and that never stall; None: none of them."""
        good = [row.ways for row in self.rows if row.is_built and not row.total]
        return min(good, default=None)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "own_ways": self.own.ways,
            "least_ways": self.least_ways,
            "rescales_per_table": self.rescales_per_table,
            "rescale_share": self.rescale_share,
            "rows": [
                {**vars(row), "total": row.total}
                for row in sorted(self.rows, key=lambda row: row.ways)
            ],
        }


def stalls(request: Request, *, ways: Sequence[int] = (1, *WAYS)) -> StallStudy:
    """Return the stalls of a request's decode step. Raises SpecError for what cannot be built."""
    spec = load_accelerator(request.accelerator).with_overrides(dict(request.overrides))
    model, dram = load_model(request.model), load_dram(request.dram or spec.dram)
    workload, request = settle(request, model, spec)
    runner = Runner(request, spec, dram, model)
    return _study(runner, our_design(request, spec, workload), workload, ways)


def stalls_of(made: Simulation, *, ways: Sequence[int] = (1, *WAYS)) -> StallStudy | None:
    """Return the stalls of a simulation's decode step; None without scores or without decode."""
    design = made.ours.total.machine.design
    if not design.has_scores or "decode" not in made.ours.phases:
        return None
    runner = Runner(made.request, made.spec, made.dram, made.model)
    return _study(runner, design, made.workload, ways)


def _study(runner: Runner, design: Design, workload: Workload, ways: Sequence[int]) -> StallStudy:
    own = runner.spec.required_mmu().ways
    machine = runner.machine(design, workload)
    batch, longest = workload.header.geometry.batch, max(2, workload.longest_lane)
    step = derive_step(
        Step((1,) * batch, (1,) * batch, ()),
        (longest - 1,) * batch,
        design,
        workload.header.geometry.slots,
        num_tables=machine.num_tables,
    )
    rows = tuple(
        _stalls(replace(machine, chip=_with_ways(machine, n)), step)
        for n in dict.fromkeys((own, *ways))
    )
    most = (longest - 1).bit_length()
    held = max(max(run.live) + 1 for run in step.runs)
    tables = batch * len(workload.header.geometry.slots) * machine.num_tables
    worst = most * tables * rescale_cycles(num_rows(held, own))
    share = worst / (longest * rows[0].step_cycles)
    return StallStudy(rows, most, share)


def _with_ways(machine: Machine, ways: int) -> Any:
    """Return the chip with other ways: only what takes time is looked at, so its SRAM stays."""
    spec = machine.chip.spec.with_overrides({"mmu.ways": ways})
    return replace(machine.chip, spec=spec)


def _stalls(machine: Machine, step: Step) -> Stalls:
    """Time the step with one cause after another."""

    def cycles(timing: MmuTiming, scored: Machine = machine) -> int:
        return int(StepTimer(replace(scored, mmu_timing=timing)).step(step).overlapped_cycles)

    plain = replace(machine, design=replace(machine.design, has_scores=False))
    times = [cycles(timing) for timing in _TIMINGS]
    resident = cycles(_FAST.without("moves_tables"))
    slots, ways = machine.design.num_slots, machine.mmu.ways
    return Stalls(
        ways=ways,
        is_built=ways in WAYS and slots >= 2 * ways,
        step_cycles=times[-1],
        by_cause={name: b - a for name, a, b in zip(CAUSES, times, times[1:])},
        collection_cycles=resident - cycles(AS_BUILT, plain),
        traffic_cycles=times[0] - resident,
        rescale_cycles=cycles(replace(AS_BUILT, rescales=True)) - times[-1],
    )
