"""Request: what to simulate, and how its blanks are filled: from the accelerator, or by a rule.

A run is regular (a shape for every lane) or recorded (a trace, whose geometry must be the model's).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kvmmu.accel.designs import Design, rce
from kvmmu.accel.dram.spec import Corner
from kvmmu.accel.spec.accelerator import AcceleratorSpec
from kvmmu.accel.spec.model import ModelSpec
from kvmmu.accel.workload import (
    RegularRun,
    Workload,
    read_workload,
    regular_events,
    regular_header,
)
from kvmmu.errors import SpecError
from kvmmu.geometry import CacheGeometry
from kvmmu.trace.reader import read

__all__ = ["HARDWARE_POLICIES", "Request", "our_design", "settle"]

HARDWARE_POLICIES = {
    "rce": True,
    "h2o": True,
    "tova": True,
    "streaming_llm": False,
    "random": False,
}
"""Policies that the KV-MMU of the chip can run -> whether they need its scores (attention mass)."""


@dataclass(frozen=True)
class Request:
    """What to simulate. None means: the accelerator's, or the rule beside it.

    num_slots: ceil((prompt + generate) / compression); chunk: min(256, num_slots), as the library.
    """

    accelerator: str | Path = "jetcas65"
    model: str | Path = "llama_7b"
    batch: int = 16
    prompt: int = 2048
    generate: int = 2048
    num_slots: int | None = None
    compression: float = 8.0
    chunk: int | None = None
    num_sinks: int = 4
    window: int | None = None
    kv_bits: int | None = None
    granularity: str | None = None
    layout: str | None = None
    softmax_form: str | None = None
    dram: str | Path | None = None
    corner: Corner = "nominal"
    is_staggered: bool = False
    trace: Path | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("batch", "prompt", "generate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.compression < 1:
            raise ValueError(f"compression must be at least 1, got {self.compression}")


def settle(request: Request, model: ModelSpec, spec: AcceleratorSpec) -> tuple[Workload, Request]:
    """Return the workload and the request with every None settled."""
    if request.trace is not None:
        return _recorded(request, model)
    total = request.prompt + request.generate
    slots = request.num_slots or int(-(-total // request.compression))
    window = request.window if request.window is not None else max(1, slots // 8)
    if slots <= request.num_sinks + window:
        raise ValueError(
            f"num_slots must exceed num_sinks + window = {request.num_sinks + window}, "
            f"got {slots}; raise num_slots or lower window"
        )
    chunk = request.chunk or min(256, slots)
    bits = request.kv_bits or spec.bits.kv
    granularity = request.granularity or spec.required_mmu().granularity
    geometry = CacheGeometry(
        num_layers=model.num_layers,
        batch=request.batch,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        slots=(min(slots, total),) * model.num_layers,
        dtype=f"int{bits}",
        itemsize=max(1, bits // 8),
    )
    header = regular_header(
        geometry,
        granularity=granularity,
        chunk=chunk,
        num_sinks=request.num_sinks,
        window=window,
        model=model.name,
    )
    run = RegularRun(request.prompt, request.generate, chunk, request.is_staggered)
    settled = replace(
        request, num_slots=slots, window=window, chunk=chunk, kv_bits=bits, granularity=granularity
    )
    return read_workload(header, regular_events(header, run)), settled


def _recorded(request: Request, model: ModelSpec) -> tuple[Workload, Request]:
    """Read a trace. Raises SpecError where its geometry is not the simulated one."""
    assert request.trace is not None
    trace = read(request.trace)
    header, g = trace.header, trace.header.geometry
    wanted = {
        "num_layers": (model.num_layers, g.num_layers),
        "num_kv_heads": (model.num_kv_heads, g.num_kv_heads),
        "head_dim": (model.head_dim, g.head_dim),
    }
    if request.num_slots is not None:
        wanted["num_slots"] = (request.num_slots, max(g.slots))
    for name, (simulated, recorded) in wanted.items():
        if simulated != recorded:
            raise SpecError(
                f"{name} of the trace must be the simulated one, {simulated} for {model.name}, "
                f"got {recorded} in {request.trace}"
            )
    if header.policy not in HARDWARE_POLICIES:
        raise SpecError(
            f"the trace's policy must be one that the KV-MMU can run "
            f"({', '.join(HARDWARE_POLICIES)}), got {header.policy!r}"
        )
    workload = read_workload(header, trace.events())
    if not workload.segments:
        raise SpecError(f"the trace must hold at least one step, got none in {request.trace}")
    settled = replace(
        request,
        batch=g.batch,
        num_slots=max(g.slots),
        window=header.window,
        num_sinks=header.num_sinks,
        chunk=header.chunk_size,
        granularity=header.granularity,
        prompt=workload.num_tokens_in("prefill") or 1,
        generate=workload.num_tokens_in("decode") or 1,
    )
    return workload, settled


def our_design(request: Request, spec: AcceleratorSpec, workload: Workload) -> Design:
    """Return the design under study, with what the request overrides."""
    made = rce(
        num_slots=max(workload.header.geometry.slots),
        kv_bits=request.kv_bits or spec.bits.kv,
        form=_one_of("softmax_form", request.softmax_form or spec.softmax.form, FORMS),
        granularity=_one_of("granularity", workload.header.granularity, ("layer", "head")),
        layout=_one_of("layout", request.layout or spec.layout, ("slot", "split", "head")),
    )
    return replace(made, has_scores=HARDWARE_POLICIES[workload.header.policy])


FORMS = ("online", "two_pass", "three_pass")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> Any:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return value
