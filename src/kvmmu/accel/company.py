"""What stands beside a simulation: the functions of study.py, each returning plain JSON."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np

from kvmmu.accel.bounds import attention_bound
from kvmmu.accel.designs import Design, baselines
from kvmmu.accel.dram.layouts import compare_layouts
from kvmmu.accel.dram.spec import Corner
from kvmmu.accel.pipeline.machine import Machine
from kvmmu.accel.pricing import GROUPS, Prices, energy_j, make_prices
from kvmmu.accel.request import Request, settle
from kvmmu.accel.results import PhaseResult
from kvmmu.accel.runner import Runner
from kvmmu.accel.simulate import Simulation, simulate
from kvmmu.accel.spec.accelerator import balance
from kvmmu.accel.workload import Workload
from kvmmu.errors import KVMMUError

__all__ = [
    "MAX_BATCH",
    "attention_bounds",
    "context_curve",
    "iso_capacity",
    "layouts",
    "mmu_variants",
    "on_dram",
    "sensitivity",
]

MAX_BATCH = 256
"""Most lanes that the iso-capacity comparison tries: its programs grow with the batch."""


def on_dram(request: Request, name: str) -> dict[str, Any]:
    """Return the ratios on another DRAM, or why it cannot be."""
    try:
        made = simulate(replace(request, dram=name))
    except (KVMMUError, ValueError) as error:
        return {"refused": str(error)}
    return {
        "ratios": made.ratios,
        "gbps": made.dram.peak_gbps,
        "balance": balance(made.spec, made.dram.peak_gbps, made.request.batch),
        "bound": {scope: made.ours.scope(scope).bound for scope in made.ours.phases},
        "cross_checked": made.dram.cross_checked,
    }


def sensitivity(made: Simulation) -> list[dict[str, Any]]:
    """Move one group of energy constants at a time to its low and high figures.

    All others are nominal, whatever corner the run itself was priced at.
    """
    full = next((o for o in made.others if o.name.startswith("full")), None)
    corners = {c: _corner_prices(made, c) for c in ("low", "nominal", "high")}
    base = corners["nominal"]
    rows = []
    for group, units in GROUPS.items():
        row: dict[str, Any] = {"group": group}
        for corner in ("low", "nominal", "high"):
            mine = _energy_at(made.ours.total, units, base["ours"], corners[corner]["ours"])
            row[corner] = {"energy_j": mine}
            if full is not None:
                theirs = _energy_at(full.total, units, base["full"], corners[corner]["full"])
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


def _energy_at(part: PhaseResult, units: tuple[str, ...], base: Prices, moved: Prices) -> float:
    """Return energy with the named units at the prices `moved`, the others at `base`."""
    cycles = part.cycles("overlapped")
    at_base = energy_j(base, part.cost.counts, cycles=cycles)
    at_moved = energy_j(moved, part.cost.counts, cycles=cycles)
    is_leak = "leakage" in units
    return sum(
        at_moved[unit] if unit in units or (is_leak and unit.startswith("leak_")) else value
        for unit, value in at_base.items()
    )


def context_curve(made: Simulation) -> list[dict[str, Any]]:
    """Return one decode step's delay, energy and bytes at contexts around the run's."""
    runner = Runner(made.request, made.spec, made.dram, made.model)
    designs = {"rce": made.ours.total.machine.design}
    full = next((o for o in made.others if o.name.startswith("full")), None)
    if full is not None:
        designs["full"] = full.total.machine.design
    batch = made.workload.header.geometry.batch
    longest = made.workload.longest_lane
    points = sorted({max(1, int(longest * share)) for share in np.linspace(0.125, 2.0, 16)})
    rows = []
    for name, design in designs.items():
        for n in points:
            part = runner.decode_step(design, made.workload, n, batch)
            rows.append(
                {
                    "design": name,
                    "context": n,
                    "delay_s": part.delay_s(),
                    "energy_j": part.energy_j(),
                    "kv_read_bytes": sum(part.dram_bytes[k] for k in ("kv_read", "kv_read_chunk")),
                }
            )
    return rows


def iso_capacity(made: Simulation) -> list[dict[str, Any]]:
    """Give every design its own largest batch; generation of the whole run, not of its end.

    A recorded run has its own lanes, so it has no such comparison.
    """
    if made.request.trace is not None or made.request.is_staggered:
        return []
    ours = made.ours.total.machine.design
    designs: list[Design] = [ours, *baselines(ours, num_tokens=made.workload.longest_lane)]
    return [row for design in designs if (row := _largest_batch(made, design)) is not None]


def _largest_batch(made: Simulation, design: Design) -> dict[str, Any] | None:
    """Return generation at the most lanes of a design that fit, None where none does."""
    one, two = (_at_batch(made, n) for n in (1, 2))
    first, second = (
        runner.capacity(runner.machine(design, run), run) for runner, run in (one, two)
    )
    batch = min(MAX_BATCH, 1 + int((made.dram.capacity_bytes - first) // (second - first)))
    if batch < 1:
        return None
    runner, run = _at_batch(made, batch)
    decode = tuple(part for part in run.segments if part.step.phase == "decode")
    if not decode:
        return None
    part = runner.design(design, replace(run, segments=decode)).phases["decode"]
    return {
        "design": design.name,
        "title": design.title,
        "batch": batch,
        "is_capped": batch == MAX_BATCH,
        "tokens_per_s": part.tokens / part.delay_s(),
        "energy_j_per_token": part.energy_j() / part.tokens,
        "bound": part.bound,
        "context": made.workload.longest_lane,
    }


def _at_batch(made: Simulation, batch: int) -> tuple[Runner, Workload]:
    """Return the run of a simulation with another number of lanes."""
    workload, request = settle(replace(made.request, batch=batch), made.model, made.spec)
    return Runner(request, made.spec, made.dram, made.model), workload


def layouts(made: Simulation) -> dict[str, Any]:
    """Return the cost of every layout and mapping, best first."""
    machine = made.ours.total.machine
    choices = compare_layouts(
        made.dram,
        row_bytes=machine.row_bytes,
        num_kv_heads=made.model.num_kv_heads,
        num_slots=machine.design.num_slots,
    )
    return {
        "chosen": {
            "layout": machine.design.layout,
            "mapping": " ".join(made.dram.address.fields_lsb_to_msb),
        },
        "choices": [asdict(choice) for choice in choices],
    }


def attention_bounds(made: Simulation) -> dict[str, Any]:
    """Return each design's least attention traffic beside what it moves."""
    return {r.name: attention_bound(r).to_json() for r in (made.ours, *made.others)}


def mmu_variants(made: Simulation) -> list[dict[str, Any]]:
    """Return the KV-MMU's share for each granularity and store, at every corner.

    Beside them the same chip in high-performance SRAM: leakage, not switching, is what can make
    a KV-MMU cost a per cent. Time does not depend on flavour or corner, so each run is timed once.
    """
    rows = []
    for granularity in ("layer", "head"):
        for store in ("dram", "sram"):
            overrides = dict(made.request.overrides) | {"mmu.store": store}
            request = replace(made.request, granularity=granularity, overrides=overrides)
            about = {"granularity": granularity, "store": store}
            try:
                run = simulate(request, names=())
            except (KVMMUError, ValueError) as error:
                rows.append(about | {"refused": str(error)})
                continue
            for flavour in dict.fromkeys((made.spec.process.sram_flavour, "hp")):
                rows.append(about | {"sram_flavour": flavour} | _mmu_corners(run, flavour))
    return rows


def _mmu_corners(run: Simulation, flavour: str) -> dict[str, Any]:
    """Price a run anew in an SRAM flavour, at every corner."""
    try:
        spec = run.spec.with_overrides({"process.sram_flavour": flavour})
    except KVMMUError as error:
        return {"refused": str(error)}
    row: dict[str, Any] = {}
    corners: tuple[Corner, ...] = ("low", "nominal", "high")
    for corner in corners:
        runner = Runner(replace(run.request, corner=corner), spec, run.dram, run.model)
        priced = {}
        for name, result in (("ours", run.ours), ("unscored", run.unscored)):
            total = result.total
            machine = runner.machine(total.machine.design, run.workload)
            part = replace(total, machine=machine, prices=make_prices(machine))
            priced[name] = replace(result, phases={"all": part})
        again = replace(run, ours=priced["ours"], unscored=priced["unscored"])
        row[corner] = again.mmu_share() | {"mmu_area_mm2": _mmu_area(again.ours.total.machine)}
    return row


def _mmu_area(machine: Machine) -> float:
    """Return the area there for scores: tables, logic, an online softmax's logits buffer."""
    area = machine.chip.area_mm2
    units = ["mmu_score", "mmu_logic"]
    if machine.design.softmax_form == "online":
        units.append("logits_buffer")
    return sum(area[unit] for unit in units)
