"""Simulate a run on an accelerator: RCE beside every baseline on the same chip and DRAM.

    request -> machine (spec, chip, DRAM, model) -> workload (regular or recorded) -> every design
            -> delays, energies, bytes, ratios

Nothing here is fitted: what the paper claims is looked up and compared, never aimed at.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from kvmmu.accel.designs import baselines
from kvmmu.accel.dram.layouts import compare_layouts
from kvmmu.accel.dram.spec import DramSpec, load_dram
from kvmmu.accel.pipeline.work import logits_room
from kvmmu.accel.request import HARDWARE_POLICIES, Request, our_design, settle
from kvmmu.accel.results import MODES, DesignResult, PhaseResult
from kvmmu.accel.runner import Runner
from kvmmu.accel.spec.accelerator import AcceleratorSpec
from kvmmu.accel.spec.load import load_accelerator, load_model
from kvmmu.accel.spec.model import ModelSpec
from kvmmu.accel.workload import Workload
from kvmmu.errors import CapacityError
from kvmmu.units import GB, KIB, bytes_of_bits

__all__ = [
    "HARDWARE_POLICIES",
    "MODES",
    "SCOPES",
    "Request",
    "Runner",
    "Simulation",
    "our_design",
    "settle",
    "simulate",
]

SCOPES = ("decode", "end_to_end")
COLLECTION = ("mmu_collect", "logits_buffer", "leak_logits_buffer")
"""Terms of the KV-MMU that are there to have final probabilities, not to keep scores."""


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
    asked_slots: int | None = None

    @cached_property
    def ratios(self) -> dict[str, Any]:
        """Return baseline / ours: {name: {scope: {mode: {"energy", "delay"}}}}; above 1 = gained.

        Modes: both overlapped; baseline serial, ours overlapped; both serial. A baseline that does
        not fit the DRAM (`fits` of its result) is timed as if it did: say so beside its ratios.
        """
        return {
            other.name: {
                scope: _ratio(other.scope(scope), self.ours.scope(scope))
                for scope in SCOPES
                if scope == "end_to_end" or scope in self.ours.phases
            }
            for other in self.others
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
        tables = sum(value for name, value in terms.items() if name not in COLLECTION)
        shares = {name: value / whole for name, value in terms.items()}
        return shares | {
            "tables": tables / whole,
            "with_collection": (whole - plain.energy_j(mode)) / whole,
        }

    @property
    def notes(self) -> list[str]:
        """Say what a reader must know of this run."""
        made = [
            f"{other.title} needs {other.capacity_bytes / GB:.1f} GB, {self.dram.name} has "
            f"{self.dram.capacity_bytes / GB:.1f}: it does not fit, its figures are as if it did"
            for other in self.others
            if not other.fits
        ]
        machine = self.ours.total.machine
        logits = self.model.num_heads * machine.design.num_slots * machine.logit_bytes
        if machine.design.has_scores and machine.num_tables == 1 and logits > logits_room(machine):
            made.append(
                f"logits of all heads are {logits / KIB:.0f} KiB, the logits buffer has "
                f"{logits_room(machine) / KIB:.0f}: a KV-MMU with one table a layer takes a "
                "slot's probabilities of all heads in a row, so the groups' sums must wait "
                "outside it, which is not charged"
            )
        held = max(self.workload.header.geometry.slots)
        if self.asked_slots is not None and self.asked_slots > held:
            made.append(f"{held} slots are simulated of {self.asked_slots}: no lane fills more")
        longest, most = self.workload.longest_lane, self.model.max_positions
        if longest > most:
            made.append(
                f"{longest} tokens exceed the {most} positions that {self.model.name} was trained "
                "with: the costs hold, its text would not"
            )
        return made

    def scoring_cycles(self, scope: str = "end_to_end") -> float:
        """Return the cycles by which scores lengthen the run: traffic, staging, searches, stalls.

        What of a decode step is stalls, and why: stalls.py.
        """
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
    asked = request.num_slots
    workload, request = settle(request, model, spec)
    chosen = request
    if request.layout == "best":
        dram, chosen = _best_layout(request, spec, dram, model)
    ours = our_design(chosen, spec, workload)
    run = Runner(request, spec, dram, model, exact=exact)
    mine = run.design(ours, workload)
    if not mine.fits:
        raise CapacityError(
            f"weights and KV must fit the {dram.capacity_bytes / GB:.1f} GB of {dram.name}, got "
            f"{mine.capacity_bytes / GB:.1f} GB for {model.name} at batch {request.batch}; "
            "take fewer lanes or slots, fewer bits, or a larger DRAM"
        )
    plain = replace(ours, has_scores=False, softmax_form="online")
    others = [
        run.baseline(design, workload)
        for design in baselines(ours, num_tokens=workload.longest_lane)
        if names is None or design.name in names
    ]
    return Simulation(
        request,
        spec,
        dram,
        model,
        workload,
        mine,
        run.design(plain, workload),
        tuple(others),
        asked_slots=asked,
    )


def _best_layout(
    request: Request, spec: AcceleratorSpec, dram: DramSpec, model: ModelSpec
) -> tuple[DramSpec, Request]:
    """Return the DRAM with the mapping, and the request with the layout, of the fastest pair."""
    bits = spec.bits.kv if request.kv_bits is None else request.kv_bits
    first, *_ = compare_layouts(
        dram,
        row_bytes=bytes_of_bits(model.num_kv_per_token // model.num_layers, bits),
        num_kv_heads=model.num_kv_heads,
        num_slots=request.num_slots or 1,
    )
    return dram.with_address(first.fields_lsb_to_msb), replace(request, layout=first.layout)
