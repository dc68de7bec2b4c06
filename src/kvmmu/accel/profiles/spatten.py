"""SpAtten: attention bound by HBM, made smaller by what is never fetched.

Wang, Zhang and Han, HPCA 2021 (arXiv 2012.09852). Tokens and heads of little accumulated
probability leave for good (cascade pruning), values of little probability are not fetched (local
pruning), and keys come as high bits first; their low bits follow only where softmax is flat. So
    DRAM bytes = fetched keys and values x heads x (high bits + share of flat rows x low bits) / 8
and time is bytes / bandwidth or MACs / multipliers, whichever is longer, as fetch, QK, softmax and
PV are one pipeline. Top-k is not modelled: the paper sizes it to keep up.
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

__all__ = ["SpAtten"]


class Pruning(Section):
    """State mean reductions: fetched tokens and values, and heads."""

    tokens_all: float
    tokens_gpt2: float
    heads: float


class Bits(Section):
    """State widths: unpruned reference, the two usual high parts, the low part."""

    reference: int
    high_small: int
    high_large: int
    low: int


class Fetches(Section):
    """State what a published workload fetches, summed over queries, layers and heads."""

    queries: int
    flat_queries: int
    keys: int
    flat_keys: int
    values: int
    key_bits: int
    low_bits: int
    value_bits: int
    head_dim: int


class SpAttenParameters(BaseModel):
    """Be the facts of SpAtten beyond its machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pruning: Pruning
    bits: Bits
    gpt2_small: Fetches
    gpt2_medium: Fetches


def throughput(machine: Machine, run: Fetches) -> float:
    """Return the TFLOPS (2 a MAC) at which a workload's fetches and MACs can run."""
    key_bits = run.keys * run.key_bits + run.flat_keys * run.low_bits
    fetched = run.head_dim * (key_bits + run.values * run.value_bits) / 8
    # A flat row's keys are multiplied again once their low bits are there.
    macs = run.head_dim * (run.keys + run.flat_keys + run.values)
    return 2 * macs / bound_step(fetched, macs, machine).time_s / 1e12


@DATAFLOWS.register("spatten")
class SpAtten(Dataflow):
    """Fetch only the kept tokens, values and heads, high bits first."""

    parameters = SpAttenParameters

    def figures(self, machine: Machine, parameters: Any) -> dict[str, float]:
        """Return the reduction of DRAM access, and the throughput of the two GPT-2 workloads."""
        bits, flat = parameters.bits, parameters.gpt2_small
        high = (bits.high_small + bits.high_large) / 2  # assumed: both pairs as often
        mean_bits = high + flat.flat_queries / flat.queries * bits.low
        pruned = parameters.pruning.tokens_all * parameters.pruning.heads
        runs = (parameters.gpt2_small, parameters.gpt2_medium)
        return {
            "dram_reduction": pruned * bits.reference / mean_bits,
            "gpt2_throughput": sum(throughput(machine, run) for run in runs) / len(runs),
        }

    def decode_step(
        self, machine: Machine, parameters: Any, workload: DecodeWorkload
    ) -> StepEstimate:
        """Divide KV and attention by GPT-2's pruning; the width of KV stays the workload's."""
        kept = 1.0 / (parameters.pruning.tokens_gpt2 * parameters.pruning.heads)
        kv_bytes = workload.batch * workload.kv_bytes_per_lane * kept
        attention = workload.attention_macs_per_lane * kept
        macs = workload.batch * (workload.macs_per_lane + attention)
        return bound_step(workload.weight_bytes + kv_bytes, macs, machine)
