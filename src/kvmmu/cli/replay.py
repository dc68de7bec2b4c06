"""The demonstration's trace on an accelerator: what its slots would cost in hardware, simulated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvmmu.errors import KVMMUError

if TYPE_CHECKING:
    from kvmmu.accel.results import DesignResult
    from kvmmu.accel.simulate import Simulation

__all__ = ["replay_trace"]

ACCELERATOR = "jetcas65"


def replay_trace(trace: Path, model: str | Path, *, label: str, dtype: str) -> dict[str, Any]:
    """Replay a trace with its cache and with the full one; returns JSON values.

    `label` names the cache that was traced, `dtype` the numbers with which accuracy was measured.
    What cannot be simulated is returned with the reason under "refused".
    """
    about = {"kind": "simulated", "accelerator": ACCELERATOR, "trace": trace.name, "label": label}
    try:
        return about | _replay(trace, model, dtype)
    except (KVMMUError, ValueError) as error:
        return about | {"refused": str(error)}


def _replay(trace: Path, model: str | Path, dtype: str) -> dict[str, Any]:
    from kvmmu.accel.request import Request
    from kvmmu.accel.simulate import simulate
    from kvmmu.accel.spec.load import load_accelerator

    bits = load_accelerator(ACCELERATOR).bits
    full = f"full_{bits.kv}bit"
    made = simulate(Request(accelerator=ACCELERATOR, model=model, trace=trace), names=(full,))
    request = made.request
    return {
        "dram": made.dram.name,
        "model": made.model.name,
        "batch": request.batch,
        "num_slots": request.num_slots,
        "num_tokens": made.workload.longest_lane,
        "granularity": request.granularity,
        "bits": {"weights": bits.weights, "kv": bits.kv, "activations": bits.activations},
        "accuracy": (
            f"answers and perplexity were measured with {dtype} K and V and float scores, not "
            f"with the simulated int{bits.kv}"
        ),
        "rows": [_row(result, made) for result in (made.ours, *made.others)],
        "ratios": made.ratios[full],
        "mmu_share": made.mmu_share(),
    }


def _row(result: DesignResult, made: Simulation) -> dict[str, Any]:
    """Say what one design costs: the whole run, and its decode steps alone."""
    scopes = [s for s in ("end_to_end", "decode") if s == "end_to_end" or s in made.ours.phases]
    return {
        "name": result.name,
        "title": result.title,
        **{
            scope: {
                "delay_s": result.scope(scope).delay_s(),
                "energy_j": result.scope(scope).energy_j(),
                "dram_bytes": sum(result.scope(scope).dram_bytes.values()),
                "kv_bytes_read": _read(result.scope(scope).dram_bytes),
            }
            for scope in scopes
        },
    }


def _read(dram_bytes: dict[str, float]) -> float:
    """Add up the bytes of K and V that are read."""
    return dram_bytes["kv_read"] + dram_bytes["kv_read_chunk"]
