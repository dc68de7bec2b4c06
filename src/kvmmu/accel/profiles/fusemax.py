"""FuseMax: one-pass attention on a 2D array whose PEs also take exponentials.

Nayak et al., MICRO 2024 (arXiv 2406.10491). Queries lie on the columns, keys on the rows of the 2D
array; the running maximum, denominator and numerator are corrected once per block of keys on the
1D array, in the shadow of the 2D array. Cycles of one block of (rows x columns) scores:
    2D: QK head_dim, local maximum 1, exponential (MACs) + 1 subtraction, sum 1, PV head_dim
    1D: running maximum 1, its correction, denominator 1 + 1, numerator head_dim + head_dim
    time = max(QK + maximum, old corrections) + running maximum
           + max(exponential + sum, correction + denominator) + max(PV, numerator)
FLAT, the rival on the same arrays, leaves softmax to the 1D array and keeps a block of whole rows
of scores on chip; what does not fit is written and read twice.
"""

from __future__ import annotations

from statistics import fmean
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
from kvmmu.accel.profiles.roofline import longer_of
from kvmmu.units import GB

__all__ = ["FuseMax"]


class Arrays(Section):
    """State both arrays, the width of a value and the MACs of an exponential."""

    rows: int
    columns: int
    vector_lanes: int
    value_bytes: int
    exponential_macs: int


class Flat(Section):
    """State how FLAT runs on these arrays: operations a score on the 1D array, and its buffer."""

    softmax_operations: int
    buffer_bytes: int
    tile_queries: int


class Models(Section):
    """State the encoders measured: (heads, head_dim) of each, batch and lengths."""

    encoders: dict[str, tuple[int, int]]
    batch: int
    lengths: tuple[int, ...]
    example: str
    example_length: int


class DecodeMapping(Section):
    """State what a decode step needs beyond the workload."""

    head_dim: int
    queries_per_head: int


class FuseMaxParameters(BaseModel):
    """Be the facts of FuseMax and of FLAT beside it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arrays: Arrays
    flat: Flat
    models: Models
    decode: DecodeMapping


def block_cycles(arrays: Arrays, *, head_dim: int, length: float) -> tuple[float, int]:
    """Return cycles of one block of scores, and those in which the 2D array works."""
    ratio = arrays.columns / arrays.vector_lanes  # 1D passes per column
    first = head_dim + 1
    exponential = arrays.exponential_macs + 2
    # The division of the outputs, once per query, is spread over its blocks of keys.
    old = ratio * (1 + head_dim + head_dim * arrays.rows / length)
    correction = ratio * (arrays.exponential_macs + 2)
    new = ratio * head_dim
    cycles = max(first, old) + ratio + max(exponential, correction) + max(head_dim, new)
    return cycles, first + exponential + head_dim


def attention_s(
    machine: Machine, facts: FuseMaxParameters, *, heads: int, head_dim: int, length: int
) -> tuple[float, float]:
    """Return seconds of self-attention under FuseMax and under FLAT."""
    arrays, flat, lanes = facts.arrays, facts.flat, facts.models.batch * heads
    scores = lanes * length**2
    hertz, gbps = machine.clock_mhz * 1e6, machine.bandwidth_gbps * GB
    cycles, _ = block_cycles(arrays, head_dim=head_dim, length=length)
    array_s = scores / (arrays.rows * arrays.columns) / hertz  # of one cycle a block
    row_bytes = head_dim * arrays.value_bytes
    once = 4 * lanes * length * row_bytes  # Q, K, V and the output
    fused_s = max(cycles * array_s, once / gbps)
    tile_bytes = flat.tile_queries * length * arrays.value_bytes
    spilled = max(0.0, 1 - flat.buffer_bytes / tile_bytes)
    again = 2 * lanes * length * row_bytes * (length / flat.tile_queries - 1)  # K and V per tile
    traffic = once + max(again, 0) + 4 * spilled * scores * arrays.value_bytes
    softmax_s = flat.softmax_operations * scores / arrays.vector_lanes / hertz
    return fused_s, max(2 * head_dim * array_s, softmax_s, traffic / gbps)


@DATAFLOWS.register("fusemax")
class FuseMax(Dataflow):
    """Keep the 2D array busy with QK, exponentials and PV of one block after another."""

    parameters = FuseMaxParameters

    def figures(self, machine: Machine, parameters: Any) -> dict[str, float]:
        """Return the mean speed-up over FLAT, one latency, and the 2D array's utilisation in it."""
        models, ratios = parameters.models, []
        for heads, head_dim in models.encoders.values():
            for length in models.lengths:
                fused, flat = attention_s(
                    machine, parameters, heads=heads, head_dim=head_dim, length=length
                )
                ratios.append(flat / fused)
        heads, head_dim = models.encoders[models.example]
        length = models.example_length
        fused, _ = attention_s(machine, parameters, heads=heads, head_dim=head_dim, length=length)
        cycles, busy = block_cycles(parameters.arrays, head_dim=head_dim, length=length)
        return {"speedup": fmean(ratios), "latency": fused, "utilisation": busy / cycles}

    def decode_step(
        self, machine: Machine, parameters: Any, workload: DecodeWorkload
    ) -> StepEstimate:
        """Fill columns with lanes for the weights, with a head's own queries for attention."""
        arrays, decode = parameters.arrays, parameters.decode
        cycles, _ = block_cycles(arrays, head_dim=decode.head_dim, length=workload.context)
        columns = min(workload.batch, arrays.columns)
        queries = min(decode.queries_per_head, arrays.columns)
        weights = workload.batch * workload.macs_per_lane / (arrays.rows * columns)
        attention = workload.batch * workload.attention_macs_per_lane / (arrays.rows * queries)
        attention *= cycles / (2 * decode.head_dim)
        compute_s = (weights + attention) / (machine.clock_mhz * 1e6)
        dram_bytes = workload.weight_bytes + workload.batch * workload.kv_bytes_per_lane
        memory_s = dram_bytes / (machine.bandwidth_gbps * GB)
        return longer_of(memory_s, compute_s, dram_bytes=dram_bytes)
