"""What a simulation says of one design: delay, energy by unit, bytes by kind, what binds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvmmu.accel.pipeline.counts import DRAM_KINDS, INDEX
from kvmmu.accel.pipeline.machine import Machine
from kvmmu.accel.pipeline.timing import Cost
from kvmmu.accel.pricing import MMU_UNITS, Prices, energy_j
from kvmmu.accel.workload import Workload
from kvmmu.units import seconds_of_cycles

__all__ = ["MODES", "DesignResult", "PhaseResult"]

MODES = ("overlapped", "serial")
_UNITS = ("dram", "array", "softmax", "vector", "mmu")


@dataclass(frozen=True, eq=False)
class PhaseResult:
    """Cost of a part of a run, priced. tokens are new tokens of all lanes."""

    machine: Machine
    prices: Prices
    cost: Cost
    steps: int
    tokens: int

    def cycles(self, mode: str) -> float:
        """Return the chip's cycles, units overlapped or one after the other."""
        return self.cost.overlapped_cycles if mode == "overlapped" else self.cost.serial_cycles

    def delay_s(self, mode: str = "overlapped") -> float:
        """Return seconds."""
        return seconds_of_cycles(self.cycles(mode), clock_mhz=self.prices.clock_mhz)

    def energy_by_unit_j(self, mode: str = "overlapped") -> dict[str, float]:
        """Return joules by unit; leak_* and dram_background follow the delay."""
        return energy_j(self.prices, self.cost.counts, cycles=self.cycles(mode))

    def energy_j(self, mode: str = "overlapped") -> float:
        """Return joules of all units."""
        return sum(self.energy_by_unit_j(mode).values())

    @property
    def dram_bytes(self) -> dict[str, float]:
        """DRAM bytes by kind of traffic, reads and writes."""
        return {kind: float(self.cost.counts[INDEX[f"{kind}_dram_bytes"]]) for kind in DRAM_KINDS}

    @property
    def busy_cycles(self) -> dict[str, float]:
        """Cycles each unit works."""
        return {unit: float(self.cost.counts[INDEX[f"{unit}_cycles"]]) for unit in _UNITS}

    @property
    def bound(self) -> str:
        """Name what binds: memory where the DRAM works longest, else compute, or on-chip ports.

        Ports: the array works longest, and most of that time it waits for a buffer's port.
        """
        busy = self.busy_cycles
        if max(busy, key=lambda unit: busy[unit]) == "dram":
            return "memory"
        waits = self.cost.counts[INDEX["port_cycles"]]
        return "on-chip ports" if waits > busy["array"] / 2 else "compute"

    @property
    def num_macs(self) -> float:
        """Products with weights and in attention, second looks for scores included."""
        names = ("gemm_macs", "attention_macs", "collect_macs")
        return float(sum(self.cost.counts[INDEX[name]] for name in names))

    @property
    def utilisation(self) -> dict[str, float]:
        """Share of the overlapped delay in which each unit works; macs: of all PEs' products."""
        cycles = max(self.cost.overlapped_cycles, 1.0)
        array = self.machine.chip.spec.array
        share = {unit: busy / cycles for unit, busy in self.busy_cycles.items()}
        return share | {"macs": self.num_macs / (array.rows * array.cols * cycles)}

    def mmu_energy_j(self, mode: str = "overlapped") -> dict[str, float]:
        """Return the KV-MMU's joules: logic, score tables, their DRAM traffic, leakage, looks.

        With an online softmax the logits buffer is there for the scores alone, and is theirs.
        """
        by_unit = self.energy_by_unit_j(mode)
        names = [*MMU_UNITS, *(u for u in by_unit if u.startswith("leak_mmu"))]
        design = self.machine.design
        if design.has_scores and design.softmax_form == "online":
            names += ["logits_buffer", "leak_logits_buffer"]
        return {name: by_unit[name] for name in names}

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "steps": self.steps,
            "tokens": self.tokens,
            "bound": self.bound,
            "delay_s": {mode: self.delay_s(mode) for mode in MODES},
            "energy_j": {mode: self.energy_j(mode) for mode in MODES},
            "energy_by_unit_j": {mode: self.energy_by_unit_j(mode) for mode in MODES},
            "dram_bytes": self.dram_bytes,
            "busy_cycles": self.busy_cycles,
            "utilisation": self.utilisation,
            "macs": self.num_macs,
        }


@dataclass(frozen=True, eq=False)
class DesignResult:
    """One design's whole run. capacity_bytes: weights, K and V and tables at the run's fullest.

    workload is the run that was priced: a baseline's may have other chunks than ours.
    """

    name: str
    title: str
    chunk: int
    kv_bits: int
    capacity_bytes: int
    fits: bool
    phases: dict[str, PhaseResult]
    workload: Workload

    @property
    def total(self) -> PhaseResult:
        """The whole run."""
        parts = list(self.phases.values())
        cost = sum((p.cost for p in parts[1:]), start=parts[0].cost)
        return PhaseResult(
            parts[0].machine,
            parts[0].prices,
            cost,
            sum(p.steps for p in parts),
            sum(p.tokens for p in parts),
        )

    def scope(self, name: str) -> PhaseResult:
        """Return the part of the run that a ratio is about: "decode" or "end_to_end"."""
        return self.total if name == "end_to_end" else self.phases[name]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "title": self.title,
            "chunk": self.chunk,
            "kv_bits": self.kv_bits,
            "capacity_bytes": self.capacity_bytes,
            "fits": self.fits,
            "phases": {name: part.to_json() for name, part in self.phases.items()},
            "total": self.total.to_json(),
        }
