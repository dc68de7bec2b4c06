"""PIM-GPT: vector-matrix products inside the DRAM banks, everything else on a small ASIC.

Wu, Wang and Lu, npj Unconventional Computing 1:4, 2024 (arXiv 2310.09385). Weights and KV lie
spread over all banks; a bank multiplies what its open row delivers with a broadcast vector. A
product serves one vector, so the weights are read again for every lane of a batch. Row misses,
vector transfers and the ASIC's softmax are not modelled.
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
from kvmmu.accel.profiles.roofline import bound_step

__all__ = ["PIMGPT"]


class Banks(Section):
    """State the memory: channels, banks of each, MACs of each bank, bytes a MAC reads."""

    channels: int
    banks_per_channel: int
    macs_per_bank: int
    value_bytes: int

    def bandwidth_gbps(self, clock_mhz: float) -> float:
        """Return what all banks together read for their MACs."""
        macs = self.channels * self.banks_per_channel * self.macs_per_bank
        return macs * self.value_bytes * clock_mhz / 1e3


class Rival(Section):
    """State the bandwidth of the GPU it was compared with."""

    bandwidth_gbps: float


class PIMGPTParameters(BaseModel):
    """Be the facts of PIM-GPT beyond its machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    banks: Banks
    gpu: Rival


@DATAFLOWS.register("pim_gpt")
class PIMGPT(Dataflow):
    """Read weights and KV in the banks, once for every lane."""

    parameters = PIMGPTParameters

    def figures(self, machine: Machine, parameters: Any) -> dict[str, float]:
        """Return the speed-up over a GPU if both only read, at full bandwidth."""
        inside_gbps = parameters.banks.bandwidth_gbps(machine.clock_mhz)
        return {"speedup": inside_gbps / parameters.gpu.bandwidth_gbps}

    def decode_step(
        self, machine: Machine, parameters: Any, workload: DecodeWorkload
    ) -> StepEstimate:
        """Bound the step by what the banks read; no lane shares a read with another."""
        lane_bytes = workload.weight_bytes + workload.kv_bytes_per_lane
        macs = workload.macs_per_lane + workload.attention_macs_per_lane
        return bound_step(workload.batch * lane_bytes, workload.batch * macs, machine)
