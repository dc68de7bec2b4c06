"""Plan a deployment: the four costs of long context on one machine, full cache beside RCE.

    users      how many contexts fit the DRAM beside the weights
    prefill    seconds until the first token of one user's prompt
    decode     seconds a token, at one user and at as many as fit
    switch     seconds to move one user's K and V out and in over a link

The four are those of Fu, "Challenges in Deploying Long-Context Transformers" (arXiv:2405.08944,
section 2): concurrency, prefilling, decoding, context switching.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from kvmmu.accel.designs import Design, baselines
from kvmmu.accel.dram.spec import load_dram
from kvmmu.accel.pipeline.timing import Cost, StepTimer, derive_step
from kvmmu.accel.pricing import make_prices
from kvmmu.accel.results import PhaseResult
from kvmmu.accel.simulate import Request, Runner, our_design, settle
from kvmmu.accel.spec.load import load_accelerator, load_model
from kvmmu.accel.workload import Step
from kvmmu.errors import CapacityError
from kvmmu.units import GB

__all__ = ["DEFAULT_CONTEXTS", "LINK_GBPS", "PlanRow", "plan"]

DEFAULT_CONTEXTS = (4096, 16384, 32768, 131072)
LINK_GBPS = 20.0
"""Assumed: what a PCIe 4.0 x16 link of 31.5 GB/s sustains; Fu (section 2) takes 20 GB/s as well."""

MAX_TIMED_BATCH = 256
"""Most lanes that one step is timed with; more users are still counted."""


@dataclass(frozen=True)
class PlanRow:
    """What one design offers at one context; users beyond max_timed share several steps."""

    design: str
    context: int
    num_slots: int | None
    kv_bytes_per_user: int
    users: int
    users_timed: int
    prefill_s: float
    decode_s_alone: float
    decode_s_full: float
    tokens_per_s_full: float
    energy_j_per_token_full: float
    switch_s: float
    bound: str

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def plan(
    request: Request,
    *,
    contexts: tuple[int, ...] = DEFAULT_CONTEXTS,
    link_gbps: float = LINK_GBPS,
    max_users: int | None = None,
) -> list[PlanRow]:
    """Return a row for each context and design. request.num_slots or compression says C.

    Positions beyond those a model was trained with are allowed: costs do not depend on them.
    Raises ValueError for a context or a link that cannot be, CapacityError if not even the weights
    fit the DRAM.
    """
    if link_gbps <= 0:
        raise ValueError(f"link_gbps must be above 0, got {link_gbps}")
    if not contexts or min(contexts) < 2:
        raise ValueError(f"contexts must be at least 2 tokens each, got {contexts}")
    rows: list[PlanRow] = []
    for context in sorted(set(contexts)):
        job = _Job(replace(request, batch=1, prompt=context - 1, generate=1), context)
        for design in job.designs:
            rows.append(job.row(design, link_gbps, max_users))
    return rows


class _Job:
    """One context on one machine."""

    def __init__(self, request: Request, context: int) -> None:
        self.spec = load_accelerator(request.accelerator).with_overrides(dict(request.overrides))
        self.model = load_model(request.model)
        self.dram = load_dram(request.dram or self.spec.dram)
        self.workload, self.request = settle(request, self.model, self.spec)
        self.context = context
        self.runner = Runner(self.request, self.spec, self.dram, self.model)
        ours = our_design(self.request, self.spec, self.workload)
        full = baselines(ours, num_tokens=context)[0]
        self.designs: tuple[Design, ...] = (full, ours)
        if self._weight_bytes() > self.dram.capacity_bytes:
            raise CapacityError(
                f"the weights of {self.model.name} must fit the "
                f"{self.dram.capacity_bytes / GB:.1f} GB of {self.dram.name}, got "
                f"{self._weight_bytes() / GB:.1f} GB; take fewer bits or a larger DRAM"
            )

    def _weight_bytes(self) -> int:
        return self.model.num_parameters * self.spec.bits.weights // 8

    def row(self, design: Design, link_gbps: float, max_users: int | None) -> PlanRow:
        """Price one design."""
        machine = self.runner.machine(design, self.workload)
        slots = self.workload.header.geometry.slots
        lane = sum(design.stored(self.context, C) * machine.row_bytes for C in slots)
        users = max(0, int((self.dram.capacity_bytes - self._weight_bytes()) // lane))
        users = min(users, max_users) if max_users else users
        timed = max(1, min(users, MAX_TIMED_BATCH))
        prefill = self.runner.design(design, self.workload).phases
        alone, full = self._decode(design, 1), self._decode(design, timed)
        return PlanRow(
            design=design.name,
            context=self.context,
            num_slots=design.num_slots if design.keeps == "slots" else None,
            kv_bytes_per_user=lane,
            users=users,
            users_timed=timed if users else 0,
            prefill_s=sum(part.delay_s() for name, part in prefill.items() if name == "prefill"),
            decode_s_alone=alone.delay_s(),
            decode_s_full=full.delay_s() if users else float("nan"),
            tokens_per_s_full=timed / full.delay_s() if users else 0.0,
            energy_j_per_token_full=full.energy_j() / timed if users else float("nan"),
            switch_s=2 * lane / (link_gbps * GB),
            bound=full.bound,
        )

    def _decode(self, design: Design, batch: int) -> PhaseResult:
        """Price one decode step of `batch` users at the context."""
        machine = self.runner.machine(design, self.workload)
        slots = self.workload.header.geometry.slots
        shape = Step((1,) * batch, (1,) * batch, ())
        step = derive_step(
            shape, (self.context - 1,) * batch, design, slots, num_tables=machine.num_tables
        )
        cost: Cost = StepTimer(machine).step(step)
        return PhaseResult(machine, make_prices(machine), cost, 1, batch)
