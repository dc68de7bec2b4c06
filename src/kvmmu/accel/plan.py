"""Plan a deployment: the four costs of long context on one machine, full cache beside RCE.

    users      how many contexts fit the DRAM beside the weights
    prefill    seconds until one user's prompt has been read
    decode     seconds a token, alone and with as many users as fit
    switch     seconds to move one user's K, V and score tables out and another's in over a link

The four are those of the abstract of Fu, "Challenges in Deploying Long-Context Transformers: A
Theoretical Peak Performance Analysis" (arXiv:2405.08944): prefilling, concurrent users, decoding,
context switching. Published machines (profiles) are planned by profile_plan.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Any

from kvmmu.accel.designs import Design, baselines
from kvmmu.accel.dram.spec import load_dram
from kvmmu.accel.pipeline.timing import StepTimer, derive_step
from kvmmu.accel.pricing import make_prices
from kvmmu.accel.request import Request, our_design, settle
from kvmmu.accel.results import PhaseResult
from kvmmu.accel.runner import Runner
from kvmmu.accel.spec.load import load_accelerator, load_model
from kvmmu.accel.spec.model import ModelSpec
from kvmmu.accel.workload import Step, Workload
from kvmmu.errors import CapacityError
from kvmmu.units import BITS_PER_BYTE, GB

__all__ = [
    "DEFAULT_CONTEXTS",
    "LINK_GBPS",
    "MAX_TIMED_USERS",
    "Plan",
    "PlanRow",
    "check_weights",
    "checked_contexts",
    "plan",
    "position_notes",
]

DEFAULT_CONTEXTS = (4096, 16384, 32768, 131072)
LINK_GBPS = 20.0
"""Assumed: about two thirds of the 31.5 GB/s of a PCIe 4.0 link of 16 lanes."""

MAX_TIMED_USERS = 256
"""Most users that one step is timed with; more are still counted."""


@dataclass(frozen=True)
class PlanRow:
    """What one cache offers at one context. None: cannot be said, and `reason` says why.

    users: how many fit; users_timed: with how many decode_s_all and tokens_per_s are timed.
    """

    cache: str
    context: int
    num_slots: int | None
    kv_bits: int
    chunk: int
    kv_bytes_per_user: int
    table_bytes_per_user: int
    users: int | None
    users_timed: int
    prefill_s: float | None
    decode_s_alone: float | None
    decode_s_all: float | None
    tokens_per_s: float | None
    energy_j_per_token: float | None
    switch_s: float
    bound: str | None
    reason: str = ""

    @property
    def bytes_per_user(self) -> int:
        """K, V and score tables that lie in the DRAM."""
        return self.kv_bytes_per_user + self.table_bytes_per_user


@dataclass(frozen=True)
class Plan:
    """Rows by context, full cache first, and what they were made with."""

    kind: str
    machine: str
    title: str
    memory: str
    memory_bytes: int | None
    model: str
    weight_bytes: int
    link_gbps: float
    rows: tuple[PlanRow, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self) | {"label": "simulated", "accuracy": None}


def plan(
    request: Request,
    *,
    contexts: tuple[int, ...] = DEFAULT_CONTEXTS,
    link_gbps: float = LINK_GBPS,
    users: int | None = None,
) -> Plan:
    """Return two rows a context. request.num_slots or compression says C; `users` are timed.

    Batch, prompt and generate of the request are not read. Positions beyond those that a model was
    trained with are allowed: costs do not depend on them. Raises ValueError for what cannot be
    asked, CapacityError if not even the weights fit the DRAM.
    """
    made = [
        _Job(replace(request, batch=1, prompt=n - 1, generate=1, trace=None), n)
        for n in checked_contexts(contexts, link_gbps, users)
    ]
    first = made[0]
    return Plan(
        kind="accelerator",
        machine=first.spec.name,
        title=first.spec.title,
        memory=first.dram.name,
        memory_bytes=first.dram.capacity_bytes,
        model=first.model.name,
        weight_bytes=first.weight_bytes,
        link_gbps=link_gbps,
        rows=tuple(job.row(d, link_gbps, users) for job in made for d in job.designs),
        notes=(*first.table_notes(users), *position_notes(first.model, max(contexts))),
    )


def checked_contexts(
    contexts: tuple[int, ...], link_gbps: float, users: int | None
) -> tuple[int, ...]:
    """Return the contexts in order, each once. Raises ValueError for what cannot be asked."""
    if not 0 < link_gbps < inf:  # NaN too
        raise ValueError(f"link_gbps must be above 0 and finite, got {link_gbps}")
    if not contexts or min(contexts) < 2:
        raise ValueError(f"contexts must be at least 2 tokens each, got {contexts}")
    if users is not None and not 1 <= users <= MAX_TIMED_USERS:
        raise ValueError(f"users must lie in [1, {MAX_TIMED_USERS}], got {users}")
    return tuple(sorted(set(contexts)))


def check_weights(model: ModelSpec, weight_bytes: int, memory: str, memory_bytes: int) -> None:
    """Raise CapacityError, by name, where the weights alone do not fit."""
    if weight_bytes > memory_bytes:
        raise CapacityError(
            f"the weights of {model.name} must fit the {memory_bytes / GB:.1f} GB of {memory}, got "
            f"{weight_bytes / GB:.1f} GB; take fewer bits, a smaller model or a larger memory"
        )


def position_notes(model: ModelSpec, longest: int) -> list[str]:
    """Say where a context is longer than what the model was trained with."""
    if longest <= model.max_positions:
        return []
    return [
        f"{longest:,} tokens exceed the {model.max_positions:,} positions that {model.name} was "
        "trained with: the costs hold, its text would not"
    ]


class _Job:
    """One context on one machine."""

    def __init__(self, request: Request, context: int) -> None:
        self.spec = load_accelerator(request.accelerator).with_overrides(dict(request.overrides))
        self.model = load_model(request.model)
        self.dram = load_dram(request.dram or self.spec.dram)
        self.weight_bytes = self.model.num_parameters * self.spec.bits.weights // BITS_PER_BYTE
        check_weights(self.model, self.weight_bytes, self.dram.name, self.dram.capacity_bytes)
        self.workload, request = settle(request, self.model, self.spec)
        self.context = context
        self.runner = Runner(request, self.spec, self.dram, self.model)
        ours = our_design(request, self.spec, self.workload)
        self.designs: tuple[Design, ...] = (baselines(ours, num_tokens=context)[0], ours)

    def row(self, design: Design, link_gbps: float, asked: int | None) -> PlanRow:
        """Price one design."""
        kv_bytes, table_bytes = self._bytes_per_user(design)
        free = self.dram.capacity_bytes - self.weight_bytes
        users = free // (kv_bytes + table_bytes)
        timed = min(users, asked or MAX_TIMED_USERS)
        run = self.runner.design if design.is_ours else self.runner.baseline
        prompt = run(design, self.workload) if users else None
        alone = self._decode(design, 1) if users else None
        full = self._decode(design, timed) if users else None
        return PlanRow(
            cache="rce" if design.is_ours else "full",
            context=self.context,
            num_slots=min(design.num_slots, self.context) if design.is_ours else None,
            kv_bits=design.kv_bits,
            chunk=prompt.chunk if prompt else self.workload.header.chunk_size,
            kv_bytes_per_user=kv_bytes,
            table_bytes_per_user=table_bytes,
            users=users,
            users_timed=timed,
            prefill_s=prompt.total.delay_s() if prompt else None,
            decode_s_alone=alone.delay_s() if alone else None,
            decode_s_all=full.delay_s() if full else None,
            tokens_per_s=timed / full.delay_s() if full else None,
            energy_j_per_token=full.energy_j() / timed if full else None,
            switch_s=2 * (kv_bytes + table_bytes) / (link_gbps * GB),
            bound=full.bound if full else None,
            reason="" if users else f"one user needs {kv_bytes / GB:.1f} GB, {free / GB:.1f} free",
        )

    def _bytes_per_user(self, design: Design) -> tuple[int, int]:
        """Return bytes of K and V, and of score tables backed in DRAM, at the full context."""
        machine = self.runner.machine(design, self.workload)
        slots = self.workload.header.geometry.slots
        held = sum(design.stored(self.context, C) for C in slots)
        if not design.has_scores or machine.mmu.store != "dram":
            return held * machine.row_bytes, 0
        headers = len(slots) * machine.table_bytes(0)
        return held * machine.row_bytes, int(held * machine.entry_bytes + headers)

    def table_notes(self, asked: int | None) -> list[str]:
        """Say where the score tables of RCE lie."""
        kv_bytes, table_bytes = self._bytes_per_user(self.designs[1])
        if table_bytes:
            share = table_bytes / kv_bytes
            return [
                f"a user's score tables lie in the DRAM beside K and V, {share:.1g} of their size"
            ]
        users = (self.dram.capacity_bytes - self.weight_bytes) // kv_bytes
        timed = max(1, min(users, asked or MAX_TIMED_USERS))
        chip = self.runner.machine(self.designs[1], _of_batch(self.workload, timed)).chip
        return [
            f"the score tables of all {timed} users are on chip at {self.context:,} tokens, "
            f"{chip.area_mm2['mmu_score']:.1f} of {chip.total_area_mm2:.1f} mm2"
        ]

    def _decode(self, design: Design, batch: int) -> PhaseResult:
        """Price one decode step of `batch` users at the context; tables are those of all users."""
        machine = self.runner.machine(design, _of_batch(self.workload, batch))
        step = derive_step(
            Step((1,) * batch, (1,) * batch, ()),
            (self.context - 1,) * batch,
            design,
            self.workload.header.geometry.slots,
            num_tables=machine.num_tables,
        )
        return PhaseResult(machine, make_prices(machine), StepTimer(machine).step(step), 1, batch)


def _of_batch(workload: Workload, batch: int) -> Workload:
    """Return the workload with another batch in its header, for the tables of its machine."""
    header = workload.header
    geometry = replace(header.geometry, batch=batch)
    return replace(workload, header=replace(header, geometry=geometry))
