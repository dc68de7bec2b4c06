"""Request: what to simulate, and how its blanks are filled: from the accelerator, or by a rule.

A run is regular (a shape for every lane) or recorded (a trace, whose geometry must be the model's).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from math import ceil, inf
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
    regular_header,
    regular_workload,
)
from kvmmu.errors import SpecError
from kvmmu.geometry import CacheGeometry
from kvmmu.trace.reader import read
from kvmmu.trace.schema import TraceHeader

__all__ = ["HARDWARE_POLICIES", "Request", "our_design", "settle"]

HARDWARE_POLICIES = {
    "rce": True,
    "h2o": True,
    "tova": True,
    "streaming_llm": False,
    "random": False,
}
"""Policies that the KV-MMU of the chip can run -> whether they need its scores (attention mass)."""

KV_BITS = (2, 4, 8, 16)
MAX_TOKENS = 1 << 20
"""Most tokens of a lane: each chunk of a growing cache is a step that must be timed."""
_LEAST = {
    "batch": 1,
    "prompt": 1,
    "generate": 1,
    "num_slots": 1,
    "chunk": 1,
    "num_sinks": 0,
    "window": 1,
    "kv_bits": 2,
}


@dataclass(frozen=True)
class Request:
    """What to simulate. None means: the accelerator's, or the rule beside it.

    num_slots: ceil((prompt + generate) / compression); chunk: min(256, num_slots), as the library.
    layout: "slot", "split", "head", or "best", the fastest pair of layout and address mapping.
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
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.kv_bits is not None and self.kv_bits not in KV_BITS:
            raise ValueError(
                f"kv_bits must be one of {', '.join(map(str, KV_BITS))}, got {self.kv_bits}"
            )
        if not 1 <= self.compression < inf:  # NaN too
            raise ValueError(f"compression must be at least 1, got {self.compression}")
        if self.prompt + self.generate > MAX_TOKENS:
            raise ValueError(
                f"prompt + generate must be at most {MAX_TOKENS:,} tokens a lane, "
                f"got {self.prompt + self.generate:,}"
            )
        if self.is_staggered and self.chunk == 1:
            raise ValueError("chunk must be at least 2 where lanes are staggered, got 1")
        if self.trace is not None and not Path(self.trace).is_file():
            raise ValueError(f"trace must be a file that exists, got {str(self.trace)!r}")


def settle(request: Request, model: ModelSpec, spec: AcceleratorSpec) -> tuple[Workload, Request]:
    """Return the workload and the request with every None settled.

    Raises SpecError for an accelerator that cannot be simulated.
    """
    _refuse_unpriced(spec)
    if request.trace is not None:
        return _recorded(request, model)
    total = request.prompt + request.generate
    slots = ceil(total / request.compression) if request.num_slots is None else request.num_slots
    slots = min(slots, max(total, request.num_sinks + 2))  # more could never be filled
    window = request.window if request.window is not None else max(1, slots // 8)
    if slots <= request.num_sinks + window:
        raise ValueError(
            f"num_slots must exceed num_sinks + window = {request.num_sinks + window}, "
            f"got {slots}; raise num_slots or lower window"
        )
    chunk = min(256, slots) if request.chunk is None else request.chunk
    bits = spec.bits.kv if request.kv_bits is None else request.kv_bits
    granularity = request.granularity or spec.required_mmu().granularity
    geometry = CacheGeometry(
        num_layers=model.num_layers,
        batch=request.batch,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        slots=(slots,) * model.num_layers,
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
    return regular_workload(header, run), settled


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
    _refuse_other_settings(request, header)
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
        prompt=max(workload.lane_tokens("prefill"), 1),
        generate=max(workload.lane_tokens("decode"), 1),
    )
    return workload, settled


def _refuse_unpriced(spec: AcceleratorSpec) -> None:
    """Refuse an accelerator whose energy is one figure or whose dataflow is another's."""
    if spec.all_in is not None:
        raise SpecError(
            f"{spec.name}: energy must be given by parts (overheads) to be simulated, got all_in"
        )
    if spec.dataflow != "kvmmu":
        raise SpecError(
            f"{spec.name}: dataflow must be 'kvmmu' to be simulated, got {spec.dataflow!r}"
        )


def _refuse_other_settings(request: Request, header: TraceHeader) -> None:
    """Refuse what a trace has settled already, unless it is the same or was left alone."""
    default = {f.name: f.default for f in fields(Request)}
    recorded = {
        "batch": header.geometry.batch,
        "chunk": header.chunk_size,
        "window": header.window,
        "num_sinks": header.num_sinks,
        "granularity": header.granularity,
    }
    given = request.overrides.get("mmu.granularity", header.granularity)
    if given != header.granularity:
        raise SpecError(
            f"mmu.granularity must be left to the trace ({header.granularity!r}), got {given!r}; "
            "leave it out"
        )
    for name in (*recorded, "prompt", "generate", "compression", "is_staggered"):
        value = getattr(request, name)
        if value not in (default[name], recorded.get(name, default[name])):
            held = f" ({recorded[name]!r})" if name in recorded else ""
            raise SpecError(f"{name} must be left to the trace{held}, got {value!r}; leave it out")


def our_design(request: Request, spec: AcceleratorSpec, workload: Workload) -> Design:
    """Return the design under study, with what the request overrides."""
    made = rce(
        num_slots=max(workload.header.geometry.slots),
        kv_bits=spec.bits.kv if request.kv_bits is None else request.kv_bits,
        form=_one_of("softmax_form", request.softmax_form or spec.softmax.form, FORMS),
        granularity=_one_of("granularity", workload.header.granularity, ("layer", "head")),
        layout=_one_of("layout", request.layout or spec.layout, ("slot", "split", "head")),
    )
    policy = workload.header.policy
    title = made.title.replace("RCE", {"rce": "RCE"}.get(policy, policy))
    return replace(made, title=title, has_scores=HARDWARE_POLICIES[policy])


FORMS = ("online", "two_pass", "three_pass")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> Any:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return value
