"""Roofline: a step takes the longer of its bytes at full bandwidth and its MACs at full rate.

Nothing is lost and everything overlaps, so it is a lower bound of time. The published figures of
the H200 are measured throughputs; their distance from the bound is what the software leaves.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from kvmmu.accel.profiles.base import (
    DATAFLOWS,
    Dataflow,
    DecodeWorkload,
    Machine,
    Section,
    StepEstimate,
)
from kvmmu.units import GB

__all__ = ["MeasuredDecode", "Roofline", "bound_step", "longer_of"]


class MeasuredDecode(Section):
    """State a dense decoder and how it was run when its throughput was published."""

    num_layers: int
    hidden: int
    kv_hidden: int
    intermediate: int
    vocabulary: int
    linear_bytes: int
    head_bytes: int
    kv_bytes: int
    batch: int
    prompt: int
    generated: int

    def workload(self) -> DecodeWorkload:
        """Return the decode step at the mean context, prompt + generated / 2."""
        attention = 2 * self.hidden * (self.hidden + self.kv_hidden)
        linear = self.num_layers * (attention + 3 * self.hidden * self.intermediate)
        head = self.vocabulary * self.hidden
        context = self.prompt + self.generated // 2
        return DecodeWorkload(
            weight_bytes=linear * self.linear_bytes + head * self.head_bytes,
            kv_bytes_per_lane=2.0 * self.num_layers * self.kv_hidden * self.kv_bytes * context,
            macs_per_lane=linear + head,
            attention_macs_per_lane=2.0 * self.num_layers * self.hidden * context,
            batch=self.batch,
            context=max(context, 1),
        )


class RooflineParameters(BaseModel):
    """Name the measured runs, each under the key of its figure."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    runs: dict[str, MeasuredDecode]


def bound_step(dram_bytes: float, macs: float, machine: Machine) -> StepEstimate:
    """Return the larger of bytes / bandwidth and MACs / (PEs * clock) as the time."""
    memory_s = dram_bytes / (machine.bandwidth_gbps * GB)
    compute_s = macs / (machine.num_pes * machine.clock_mhz * 1e6)
    return longer_of(memory_s, compute_s, dram_bytes=dram_bytes)


def longer_of(memory_s: float, compute_s: float, *, dram_bytes: float) -> StepEstimate:
    """Return a step in which memory and compute overlap in full."""
    if memory_s >= compute_s:
        return StepEstimate(memory_s, dram_bytes, "memory")
    return StepEstimate(compute_s, dram_bytes, "compute")


@DATAFLOWS.register("roofline")
class Roofline(Dataflow):
    """Read weights once a step and KV once a lane, all of it overlapped."""

    parameters = RooflineParameters

    def figures(self, machine: Machine, parameters: Any) -> dict[str, float]:
        """Return tokens a second of every run."""
        return {
            key: run.batch / self.decode_step(machine, parameters, run.workload()).time_s
            for key, run in parameters.runs.items()
        }

    def decode_step(
        self, machine: Machine, parameters: Any, workload: DecodeWorkload
    ) -> StepEstimate:
        """Bound the step by the machine's bandwidth and MAC rate."""
        kv_bytes = workload.batch * workload.kv_bytes_per_lane
        macs = workload.batch * (workload.macs_per_lane + workload.attention_macs_per_lane)
        return bound_step(workload.weight_bytes + kv_bytes, macs, machine)
