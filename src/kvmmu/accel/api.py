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
    batch: int = 16,
    prompt: int = 2048,
    generate: int = 2048,
    num_slots: int | None = None,
    compression: float = 8.0,
    chunk: int | None = None,
    num_sinks: int = 4,
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

    Without num_slots C = ceil((prompt + generate) / compression). With a trace its own batch,
    lengths, slots and chunks hold; its geometry must be the model's. Every figure of the result
    is simulated. Raises SpecError, CapacityError, TraceError or ValueError in one line each.
    """
    return _simulate(
        Request(
            accelerator=accelerator,
            model=model,
            batch=batch,
            prompt=prompt,
            generate=generate,
            num_slots=num_slots,
            compression=compression,
            chunk=chunk,
            num_sinks=num_sinks,
            window=window,
            kv_bits=kv_bits,
            granularity=granularity,
            layout=layout,
            softmax_form=softmax,
            dram=dram,
            corner=corner,
            is_staggered=is_staggered,
            trace=None if trace is None else Path(trace),
            overrides=overrides or {},
        )
    )
