"""Duplex: a GPU and near-memory processors on one HBM; each layer runs where its Op/B fits.

Yun et al., MICRO 2024 (arXiv 2409.01141). Logic-PIM reads the same stacks with 4x the bandwidth
and 8 operations a byte. Decode attention goes to Logic-PIM, dense layers to the xPU; experts lie in
four memory spaces, and each space is processed by one of the two at a time. Every operation is
bound by bytes or operations of its processor; all-reduces are rings of 2 (n - 1) hops.

The workload is continuous batching in steady state: of all stages, batch / generated also prefill
one request; tokens spread evenly over the experts that are hit. Normalisation, softmax, activations
and the reads of activations are left out.
"""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from kvmmu.accel.profiles.base import (
    DATAFLOWS,
    Dataflow,
    DecodeWorkload,
    Machine,
    Section,
    StepEstimate,
)
from kvmmu.units import BITS_PER_BYTE, GB

__all__ = ["Duplex"]

Mode = Literal["gpu", "duplex", "coprocessing"]


class XPU(Section):
    """State the GPU-like processor."""

    tflops: float
    bandwidth_gbps: float


class Links(Section):
    """State the links between devices and between nodes."""

    device_gbps: float
    device_latency_us: float
    node_gbps: float
    node_latency_us: float


class MoE(Section):
    """State a mixture-of-experts model and the system it runs on."""

    num_layers: int
    hidden: int
    intermediate: int
    ffn_matrices: int
    group_size: int
    num_experts: int
    top_k: int
    moe_every: int
    nodes: int
    devices_per_node: int
    lengths: tuple[int, ...]


class Protocol(Section):
    """State batches, memory spaces and the cases that the paper names one by one."""

    batches: tuple[int, ...]
    memory_spaces: int
    single_model: str
    single_batch: int
    single_length: int
    latency_model: str
    latency_batch: int


class DuplexParameters(BaseModel):
    """Be the facts of Duplex beyond Logic-PIM, which is the profile's machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    xpu: XPU
    links: Links
    models: dict[str, MoE]
    protocol: Protocol


class _System:
    """Time stages of one model, in seconds."""

    def __init__(self, machine: Machine, facts: DuplexParameters, model: MoE) -> None:
        self.facts, self.model = facts, model
        self.value_bytes = machine.precision_bits // BITS_PER_BYTE
        self._xpu = facts.xpu.bandwidth_gbps * GB, facts.xpu.tflops * 1e12
        self._pim = machine.bandwidth_gbps * GB, 2e6 * machine.num_pes * machine.clock_mhz
        self.weights = model.ffn_matrices * model.hidden * model.intermediate

    def xpu(self, weights: float, vectors: float) -> float:
        """Return seconds of a product of `weights` values with `vectors` vectors on the xPU."""
        return self._seconds(self._xpu, weights, vectors)

    def pim(self, weights: float, vectors: float) -> float:
        """Return seconds of the same product on Logic-PIM."""
        return self._seconds(self._pim, weights, vectors)

    def _seconds(self, processor: tuple[float, float], weights: float, vectors: float) -> float:
        bandwidth, flops = processor
        return max(weights * self.value_bytes / bandwidth, 2 * weights * vectors / flops)

    def all_reduce(self, devices: int, tokens: float) -> float:
        """Return seconds of a ring all-reduce of `tokens` hidden vectors."""
        links = self.facts.links
        piece = tokens * self.model.hidden * self.value_bytes / devices
        hop = links.device_latency_us * 1e-6 + piece / (links.device_gbps * GB)
        return 2 * (devices - 1) * hop

    def experts(self, mode: Mode, tokens: float, *, is_mixed: bool) -> float:
        """Return seconds of one MoE layer over `tokens` tokens of all nodes."""
        model = self.model
        devices = model.nodes * model.devices_per_node
        missed = math.pow(1 - model.top_k / model.num_experts, tokens)
        hit = model.num_experts * (1 - missed)
        vectors = tokens * model.top_k / hit
        if mode == "coprocessing":  # experts split inside a node, spread over nodes
            share, count = model.devices_per_node, hit / model.nodes
        else:  # whole experts, split only where devices outnumber them
            share = max(1, devices // model.num_experts)
            count = hit * share / devices
        xpu, pim = (run(self.weights / share, vectors) for run in (self.xpu, self.pim))
        if mode == "coprocessing":
            spaces = self.facts.protocol.memory_spaces
            each = count / spaces
            return min(max(n * each * xpu, (spaces - n) * each * pim) for n in range(spaces + 1))
        return count * (xpu if mode == "gpu" or is_mixed else pim)

    def exchange(self, mode: Mode, tokens: float) -> float:
        """Return seconds in which one MoE layer's tokens travel."""
        model, links = self.model, self.facts.links
        local = tokens / model.nodes
        devices = model.nodes * model.devices_per_node
        share = max(1, devices // model.num_experts)
        if mode == "coprocessing":
            time_s = 2 * self.all_reduce(model.devices_per_node, local)
        else:
            gather = self.all_reduce(model.devices_per_node, local)
            time_s = gather + (self.all_reduce(share, tokens) if share > 1 else 0.0)
        if model.nodes > 1:
            sent = local * model.top_k * model.hidden * self.value_bytes / model.devices_per_node
            time_s += 2 * (links.node_latency_us * 1e-6 + sent / (links.node_gbps * GB))
        return time_s

    def stage(self, mode: Mode, *, batch: int, context: float, prefill: int) -> float:
        """Return seconds of one stage: `batch` decoding lanes and `prefill` tokens of another."""
        model, n = self.model, self.model.devices_per_node
        lanes, tokens = batch / model.nodes, (batch + prefill) / model.nodes
        kv_hidden = model.hidden // model.group_size
        projections = 2 * model.hidden * (model.hidden + kv_hidden)
        reduce_s = self.all_reduce(n, tokens)
        dense_s = self.xpu(projections / n, tokens) + reduce_s
        run = self.xpu if mode == "gpu" else self.pim
        # A group's queries share each key and value: as many vectors as the group is large.
        decode_s = run(2 * lanes * context * kv_hidden / n, model.group_size)
        flops = 2.0 * prefill**2 * model.hidden / n  # causal: half of 4 P^2 d
        prefill_s = flops / self._xpu[1]
        overlap = mode == "coprocessing"
        attention_s = max(decode_s, prefill_s) if overlap else decode_s + prefill_s
        experts_s = self.experts(mode, batch + prefill, is_mixed=prefill > 0)
        moe_s = experts_s + self.exchange(mode, batch + prefill)
        ffn_s = self.xpu(self.weights / n, tokens) + reduce_s
        moe_layers = model.num_layers // model.moe_every
        plain = model.num_layers - moe_layers
        return model.num_layers * (dense_s + attention_s) + moe_layers * moe_s + plain * ffn_s

    def speedup(self, mode: Mode, *, batch: int, length: int) -> float:
        """Return throughput over the GPU's at prompt = generated = `length`."""
        share = batch / length  # of stages that also prefill a request
        times = []
        for which in ("gpu", mode):
            lanes: dict[str, Any] = {"batch": batch, "context": 1.5 * length}
            decode = self.stage(which, prefill=0, **lanes)
            mixed = self.stage(which, prefill=length, **lanes)
            times.append((1 - share) * decode + share * mixed)
        return times[0] / times[1]


@DATAFLOWS.register("duplex")
class Duplex(Dataflow):
    """Send dense layers to the xPU, decode attention and cold experts to Logic-PIM."""

    parameters = DuplexParameters

    def figures(self, machine: Machine, parameters: Any) -> dict[str, float]:
        """Return speed-ups over the grid of models, batches and lengths, and two single cases."""
        case = parameters.protocol
        systems = {
            name: _System(machine, parameters, model) for name, model in parameters.models.items()
        }

        def grid(mode: Mode) -> list[float]:
            return [
                system.speedup(mode, batch=batch, length=length)
                for system in systems.values()
                for batch in case.batches
                for length in system.model.lengths
            ]

        full = grid("coprocessing")
        single = systems[case.single_model]
        slow = systems[case.latency_model]
        reductions = []
        for length in slow.model.lengths:
            lanes: dict[str, Any] = {"batch": case.latency_batch, "context": 1.5 * length}
            ratio = slow.stage("coprocessing", prefill=0, **lanes)
            ratio /= slow.stage("gpu", prefill=0, **lanes)
            reductions.append(100 * (1 - ratio))
        return {
            "mean_speedup": fmean(full),
            "best_speedup": max(full),
            "best_speedup_alone": max(grid("duplex")),
            "mixtral_speedup": single.speedup(
                "coprocessing", batch=case.single_batch, length=case.single_length
            ),
            "token_latency": fmean(reductions),
        }

    def decode_step(
        self, machine: Machine, parameters: Any, workload: DecodeWorkload
    ) -> StepEstimate:
        """Run the weights of a dense model on the xPU, then attention on Logic-PIM."""
        xpu, batch = parameters.xpu, workload.batch
        kv_bytes = batch * workload.kv_bytes_per_lane
        weights = (
            workload.weight_bytes / (xpu.bandwidth_gbps * GB),
            2 * batch * workload.macs_per_lane / (xpu.tflops * 1e12),
        )
        attention = (
            kv_bytes / (machine.bandwidth_gbps * GB),
            batch * workload.attention_macs_per_lane / (machine.num_pes * machine.clock_mhz * 1e6),
        )
        time_s = max(weights) + max(attention)  # each bound by its own, one after the other
        reading_s = sum(max(pair) for pair in (weights, attention) if pair[0] >= pair[1])
        dram_bytes = workload.weight_bytes + kv_bytes
        return StepEstimate(time_s, dram_bytes, "memory" if 2 * reading_s >= time_s else "compute")
