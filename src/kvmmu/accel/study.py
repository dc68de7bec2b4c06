"""A study: one simulation and all that must stand beside it before its ratios mean anything.

other DRAMs       the same ratios on at least one more DRAM
sensitivity       each group of energy constants at its low and its high figure, alone
context           one decode step against the context: flat for RCE, linear for the full cache
iso-capacity      every design at its own largest batch that fits the DRAM
bounds            the least traffic that attention needs, beside what each design moves
layouts           slot layout and address mapping, the chosen pair and the others
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kvmmu.accel.bounds import attention_bound
from kvmmu.accel.designs import Design, baselines
from kvmmu.accel.dram.layouts import compare_layouts
from kvmmu.accel.pipeline.timing import StepTimer, derive_step
from kvmmu.accel.pricing import GROUPS, energy_j, make_prices
from kvmmu.accel.results import PhaseResult
from kvmmu.accel.simulate import SCOPES, Request, Runner, Simulation, simulate
from kvmmu.accel.spec.accelerator import balance
from kvmmu.accel.workload import Step
from kvmmu.errors import SpecError

__all__ = ["PAPER", "Study", "other_dram", "study"]

PAPER = {"energy": 1.52, "delay": 3.62, "mmu_share": 0.0111, "batch": 16, "node_nm": 65}
"""What the abstract of Moradifirouzabadi and Kang, IEEE JETCAS 15(2), 2025 claims."""

MAX_BATCH = 256
"""Most lanes that the iso-capacity comparison tries: its programs grow with the batch."""


@dataclass(frozen=True, eq=False)
class Study:
    """A simulation with its company; every field of `extra` is plain JSON."""

    main: Simulation
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {"simulation": simulation_json(self.main), "paper": PAPER, **self.extra}


def study(
    request: Request,
    *,
    drams: tuple[str, ...] = (),
    accuracy: dict[str, Any] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Study:
    """Simulate a request and everything beside it; `drams` are further DRAMs to compare on.

    accuracy: what was measured with the same policy, size and numbers, or None for "not measured".
    """
    say("designs")
    main = simulate(request)
    extra: dict[str, Any] = {"accuracy": accuracy, "labels": _labels(request)}
    others = drams or (other_dram(main.dram.name),)
    extra["other_drams"] = {}
    for name in others:
        say(f"on {name}")
        extra["other_drams"][name] = _on_dram(request, name)
    say("sensitivity")
    extra["sensitivity"] = _sensitivity(main)
    say("cost against context")
    extra["context"] = _context(main)
    say("iso-capacity")
    extra["iso_capacity"] = _iso_capacity(main)
    say("layouts")
    extra["layouts"] = _layouts(main)
    extra["bounds"] = _bounds(main)
    return Study(main, extra)


def other_dram(name: str) -> str:
    """Return the DRAM to compare with: DDR4 beside LPDDR4, else LPDDR4."""
    return "ddr4_3200_x64" if name.startswith("lpddr4") else "lpddr4_3200_x64"


def _labels(request: Request) -> dict[str, str]:
    source = f"trace {request.trace.name}" if request.trace else "regular shape"
    return {"kind": "simulated", "workload": source}


# JSON of one simulation ---------------------------------------------------------------------


def simulation_json(made: Simulation) -> dict[str, Any]:
    """Return a simulation as plain JSON values."""
    machine = made.ours.total.machine
    chip, request = machine.chip, made.request
    scopes = [s for s in SCOPES if s == "end_to_end" or s in made.ours.phases]
    return {
        "configuration": _configuration(made),
        "ours": made.ours.to_json(),
        "unscored": made.unscored.to_json(),
        "baselines": [other.to_json() for other in made.others],
        "ratios": made.ratios,
        "mmu_share": {scope: made.mmu_share(scope) for scope in scopes},
        "stall_cycles": {scope: made.stall_cycles(scope) for scope in scopes},
        "area_mm2": dict(chip.area_mm2) | {"total": chip.total_area_mm2},
        "leakage_w": dict(chip.leakage_w) | {"total": chip.total_leakage_w},
        "reduction": reduction(made),
        "notes": made.notes,
        "num_steps": made.workload.num_steps,
        "lane_events": dict(made.workload.lane_events),
        "is_trace": request.trace is not None,
    }


def reduction(made: Simulation) -> dict[str, float]:
    """Return (P + G) / C, and the bytes read by the full cache over those read by ours."""
    kinds = ("kv_read", "kv_read_chunk")

    def read(part: PhaseResult) -> float:
        return sum(part.dram_bytes[kind] for kind in kinds)

    full = next(other for other in made.others if other.name.startswith("full"))
    slots = max(made.workload.header.geometry.slots)
    rates = {"compression": made.workload.longest_lane / slots}
    if "decode" in made.ours.phases:
        rates["decode_kv_bytes"] = read(full.phases["decode"]) / max(
            read(made.ours.phases["decode"]), 1.0
        )
    return rates


def _configuration(made: Simulation) -> dict[str, Any]:
    """Return the resolved configuration: everything that the figures depend on."""
    request, spec, dram, model = made.request, made.spec, made.dram, made.model
    design = made.ours.total.machine.design
    return {
        "accelerator": spec.name,
        "title": spec.title,
        "node_nm": spec.process.node_nm,
        "vdd_v": spec.process.vdd_v,
        "sram_flavour": spec.process.sram_flavour,
        "clock_mhz": spec.clock.clock_mhz,
        "array": f"{spec.array.rows} x {spec.array.cols}",
        "buffers_kib": {
            name: getattr(spec.buffers, f"{name}_kib")
            for name in ("weight", "kv", "activation", "logits")
        },
        "bits": {"weights": spec.bits.weights, "activations": spec.bits.activations}
        | {"kv": design.kv_bits},
        "softmax": design.softmax_form,
        "mmu": None
        if spec.mmu is None
        else {"ways": spec.mmu.ways, "store": spec.mmu.store, "score_bits": spec.mmu.score_bits},
        "granularity": design.granularity,
        "layout": design.layout,
        "dram": dram.name,
        "dram_gbps": dram.peak_gbps,
        "dram_capacity_bytes": dram.capacity_bytes,
        "dram_mapping": str(dram.mapping),
        "scheduler_window": dram.scheduler_window,
        "dram_cross_checked": dram.cross_checked,
        "balance": balance(spec, dram.peak_gbps, request.batch),
        "model": model.name,
        "num_parameters": model.num_parameters,
        "batch": request.batch,
        "prompt": request.prompt,
        "generate": request.generate,
        "num_slots": request.num_slots,
        "num_sinks": request.num_sinks,
        "window": request.window,
        "chunk": request.chunk,
        "corner": request.corner,
        "overrides": {key: str(value) for key, value in request.overrides.items()},
    }


# What stands beside it ----------------------------------------------------------------------


def _on_dram(request: Request, name: str) -> dict[str, Any]:
    """Return the ratios on another DRAM, or why it cannot be."""
    try:
        made = simulate(replace(request, dram=name))
    except (SpecError, ValueError) as error:
        return {"refused": str(error)}
    return {
        "ratios": made.ratios,
        "gbps": made.dram.peak_gbps,
        "balance": balance(made.spec, made.dram.peak_gbps, made.request.batch),
        "bound": {scope: made.ours.scope(scope).bound for scope in made.ours.phases},
        "cross_checked": made.dram.cross_checked,
    }


def _sensitivity(made: Simulation) -> list[dict[str, Any]]:
    """Move one group of energy constants at a time to its low and high figures."""
    full = next((o for o in made.others if o.name.startswith("full")), None)
    corners = {c: _corner_prices(made, c) for c in ("low", "high")}
    rows = []
    for group, units in GROUPS.items():
        row: dict[str, Any] = {"group": group}
        for corner in ("low", "nominal", "high"):
            mine = _energy_at(made.ours.total, units, corners.get(corner, {}).get("ours"))
            row[corner] = {"energy_j": mine}
            if full is not None:
                theirs = _energy_at(full.total, units, corners.get(corner, {}).get("full"))
                row[corner]["energy_ratio"] = theirs / mine
        rows.append(row)
    return rows


def _corner_prices(made: Simulation, corner: Any) -> dict[str, Any]:
    """Return the prices of our design and of the full cache at a corner."""
    runner = Runner(replace(made.request, corner=corner), made.spec, made.dram, made.model)
    designs = {"ours": made.ours.total.machine.design}
    full = next((o for o in made.others if o.name.startswith("full")), None)
    if full is not None:
        designs["full"] = full.total.machine.design
    return {n: make_prices(runner.machine(d, made.workload)) for n, d in designs.items()}


def _energy_at(part: PhaseResult, units: tuple[str, ...], prices: Any) -> float:
    """Return energy with the named units priced anew, the others as they are."""
    base = part.energy_by_unit_j()
    if prices is None:
        return sum(base.values())
    moved = energy_j(prices, part.cost.counts, cycles=part.cycles("overlapped"))
    is_leak = "leakage" in units
    return sum(
        moved[unit] if unit in units or (is_leak and unit.startswith("leak_")) else value
        for unit, value in base.items()
    )


def _context(made: Simulation) -> list[dict[str, Any]]:
    """Return one decode step's delay, energy and bytes at contexts around the run's."""
    runner = Runner(made.request, made.spec, made.dram, made.model)
    designs = {"rce": made.ours.total.machine.design}
    full = next((o for o in made.others if o.name.startswith("full")), None)
    if full is not None:
        designs["full"] = full.total.machine.design
    batch = made.workload.header.geometry.batch
    slots = made.workload.header.geometry.slots
    longest = made.workload.longest_lane
    points = sorted({max(1, int(longest * share)) for share in np.linspace(0.125, 2.0, 16)})
    rows = []
    for name, design in designs.items():
        machine = runner.machine(design, made.workload)
        timer, prices = StepTimer(machine), make_prices(machine)
        for n in points:
            shape = Step((1,) * batch, (1,) * batch, ())
            seen = (n - 1,) * batch
            step = derive_step(shape, seen, design, slots, num_tables=machine.num_tables)
            cost = timer.step(step)
            part = PhaseResult(machine, prices, cost, 1, batch)
            rows.append(
                {
                    "design": name,
                    "context": n,
                    "delay_s": part.delay_s(),
                    "energy_j": part.energy_j(),
                    "kv_read_bytes": part.dram_bytes["kv_read"],
                }
            )
    return rows


def _iso_capacity(made: Simulation) -> list[dict[str, Any]]:
    """Give every design its own largest batch; compare tokens a second and joules a token."""
    ours = made.ours.total.machine.design
    designs: list[Design] = [ours, *baselines(ours, num_tokens=made.workload.longest_lane)]
    return [row for design in designs if (row := _largest_batch(made, design)) is not None]


def _largest_batch(made: Simulation, design: Design) -> dict[str, Any] | None:
    """Return decode at the largest batch of a design, at the run's longest context."""
    slots = made.workload.header.geometry.slots
    n = made.workload.longest_lane
    runner = Runner(made.request, made.spec, made.dram, made.model)
    machine = runner.machine(design, made.workload)
    weights = made.model.num_parameters * machine.weight_bits // 8
    lane = sum(
        (C if design.keeps == "slots" else design.stored(n, C)) * machine.row_bytes for C in slots
    )
    batch = min(MAX_BATCH, int((made.dram.capacity_bytes - weights) // max(lane, 1)))
    if batch < 1:
        return None
    timer, prices = StepTimer(machine), make_prices(machine)
    shape = Step((1,) * batch, (1,) * batch, ())
    step = derive_step(shape, (n - 1,) * batch, design, slots, num_tables=machine.num_tables)
    part = PhaseResult(machine, prices, timer.step(step), 1, batch)
    return {
        "design": design.name,
        "batch": batch,
        "is_capped": batch == MAX_BATCH,
        "tokens_per_s": batch / part.delay_s(),
        "energy_j_per_token": part.energy_j() / batch,
        "bound": part.bound,
        "context": n,
    }


def _layouts(made: Simulation) -> dict[str, Any]:
    """Return the cost of every layout and mapping, best first."""
    machine = made.ours.total.machine
    choices = compare_layouts(
        made.dram,
        row_bytes=machine.row_bytes,
        num_kv_heads=made.model.num_kv_heads,
        num_slots=machine.design.num_slots,
    )
    return {
        "chosen": {"layout": machine.design.layout, "mapping": str(made.dram.mapping)},
        "choices": [choice.to_json() for choice in choices],
    }


def _bounds(made: Simulation) -> dict[str, Any]:
    """Return each design's least attention traffic beside what it moves."""
    kinds = ("kv_read", "kv_read_chunk", "kv_write", "kv_stage")
    rows = {}
    for result in (made.ours, *made.others):
        bound = attention_bound(result.total.machine, made.workload)
        moved = {
            name: sum(part.dram_bytes[kind] for kind in kinds)
            for name, part in result.phases.items()
        }
        rows[result.name] = bound.to_json() | {"moved_bytes": moved}
    return rows
