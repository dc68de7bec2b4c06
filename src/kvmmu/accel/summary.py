"""One simulation as plain JSON: the resolved configuration, results, ratios, shares."""

from __future__ import annotations

from typing import Any

from kvmmu.accel.results import PhaseResult
from kvmmu.accel.simulate import SCOPES, Simulation
from kvmmu.accel.spec.accelerator import balance

__all__ = ["configuration", "reduction", "simulation_json"]


def simulation_json(made: Simulation) -> dict[str, Any]:
    """Return a simulation as plain JSON values."""
    machine = made.ours.total.machine
    chip, request = machine.chip, made.request
    scopes = [s for s in SCOPES if s == "end_to_end" or s in made.ours.phases]
    return {
        "configuration": configuration(made),
        "ours": made.ours.to_json(),
        "unscored": made.unscored.to_json(),
        "baselines": [other.to_json() for other in made.others],
        "ratios": made.ratios,
        "mmu_share": {scope: made.mmu_share(scope) for scope in scopes},
        "scoring_cycles": {scope: made.scoring_cycles(scope) for scope in scopes},
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

    full = next((other for other in made.others if other.name.startswith("full")), None)
    slots, request = max(made.workload.header.geometry.slots), made.request
    tokens = made.workload.longest_lane if request.trace else request.prompt + request.generate
    rates = {"compression": tokens / slots}
    if full is not None and "decode" in made.ours.phases:
        rates["decode_kv_bytes"] = read(full.phases["decode"]) / max(
            read(made.ours.phases["decode"]), 1.0
        )
    return rates


def configuration(made: Simulation) -> dict[str, Any]:
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
        "dram_mapping": " ".join(dram.address.fields_lsb_to_msb),
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
