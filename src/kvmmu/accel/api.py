"""The public door of the accelerator model: kvmmu.simulate and kvmmu.list_accelerators."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from kvmmu.accel.request import Request
from kvmmu.accel.simulate import Simulation
from kvmmu.accel.simulate import simulate as _simulate
from kvmmu.accel.spec.load import list_accelerators

__all__ = ["list_accelerators", "simulate"]


def simulate(
    accelerator: str | Path = "jetcas65",
    model: str | Path = "llama_7b",
    *,
    batch: int | None = None,
    prompt: int | None = None,
    generate: int | None = None,
    num_slots: int | None = None,
    compression: float | None = None,
    chunk: int | None = None,
    num_sinks: int | None = None,
    window: int | None = None,
    kv_bits: int | None = None,
    granularity: str | None = None,
    layout: str | None = None,
    softmax: str | None = None,
    dram: str | Path | None = None,
    corner: Literal["low", "nominal", "high"] = "nominal",
    is_staggered: bool = False,
    trace: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Simulation:
    """Simulate a model's run with RCE and with every baseline on one accelerator.

    Without a trace: batch 16, prompt and generate 2,048 tokens, 4 sinks; without num_slots C =
    ceil((prompt + generate) / compression), and compression 8. With a trace its own batch, lengths,
    slots and chunks hold; its geometry must be the model's. Every figure of the result is
    simulated. Raises SpecError, CapacityError, TraceError or ValueError in one line each.
    """
    given = {
        "batch": batch,
        "prompt": prompt,
        "generate": generate,
        "compression": compression,
        "chunk": chunk,
        "num_sinks": num_sinks,
        "window": window,
        "granularity": granularity,
    }
    settled: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if trace is not None and (settled or is_staggered):
        first = next(iter(settled), "is_staggered")
        raise ValueError(f"{first} must be left to the trace, got {settled.get(first, True)!r}")
    if num_slots is not None and compression is not None:
        raise ValueError("at most one of num_slots and compression must be given, got both")
    return _simulate(
        Request(
            accelerator=accelerator,
            model=model,
            num_slots=num_slots,
            kv_bits=kv_bits,
            layout=layout,
            softmax_form=softmax,
            dram=dram,
            corner=corner,
            is_staggered=is_staggered,
            trace=None if trace is None else Path(trace),
            overrides=overrides or {},
            **settled,
        )
    )
