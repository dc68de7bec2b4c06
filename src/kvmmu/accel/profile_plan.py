"""Plan users, prefill, decode and switching for a published machine, as far as its profile says.

decode     Profile.decode_step: the profile's own dataflow
prefill    chunk by chunk, the longer of bytes / bandwidth and MACs / (PEs x clock): a bound
users      only where the profile names its memory's size
energy     never: a profile has none, nor does it know what scores cost
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmmu.accel.plan import (
    DEFAULT_CONTEXTS,
    LINK_GBPS,
    MAX_TIMED_USERS,
    Plan,
    PlanRow,
    check_weights,
    checked_contexts,
    position_notes,
)
from kvmmu.accel.profiles import DecodeWorkload, Profile, StepEstimate, load_profile
from kvmmu.accel.request import Request
from kvmmu.accel.spec.load import load_model
from kvmmu.accel.spec.model import ModelSpec
from kvmmu.units import BITS_PER_BYTE, GB

__all__ = ["plan_profile"]


def plan_profile(
    request: Request,
    *,
    contexts: tuple[int, ...] = DEFAULT_CONTEXTS,
    link_gbps: float = LINK_GBPS,
    users: int | None = None,
) -> Plan:
    """Return the plan of a profile, named by request.accelerator; weights in its precision.

    Raises ValueError for what a profile cannot be asked, CapacityError if the weights do not fit.
    """
    profile, model = load_profile(str(request.accelerator)), load_model(request.model)
    if request.dram is not None or request.overrides:
        raise ValueError(
            f"a DRAM must go with an accelerator, got {request.dram or request.overrides!r}; "
            f"{profile.name} is a profile and has its own memory"
        )
    lengths = checked_contexts(contexts, link_gbps, users)
    bits = profile.machine.precision_bits
    made = _Planned(profile, model, bits, request.kv_bits or bits, link_gbps, users)
    memory_bytes = profile.machine.memory_bytes
    if memory_bytes is not None:
        check_weights(model, made.weight_bytes, profile.name, memory_bytes)
    return Plan(
        kind="profile",
        machine=profile.name,
        title=profile.title,
        memory=profile.name,
        memory_bytes=memory_bytes,
        model=model.name,
        weight_bytes=made.weight_bytes,
        link_gbps=link_gbps,
        rows=tuple(made.row(n, slots) for n in lengths for slots in (None, _slots(request, n))),
        notes=tuple(_notes(profile, model, max(lengths))),
    )


def _slots(request: Request, context: int) -> int:
    """Return C at a context. Raises ValueError where the protected slots leave none to replace."""
    slots = request.num_slots or int(-(-context // request.compression))
    window = request.window if request.window is not None else max(1, slots // 8)
    if slots <= request.num_sinks + window:
        raise ValueError(
            f"num_slots must exceed num_sinks + window = {request.num_sinks + window}, got {slots}"
        )
    return min(slots, context)


def _notes(profile: Profile, model: ModelSpec, longest: int) -> list[str]:
    shown = profile.shown_as
    made = [
        f"decode is by the {shown} model of {profile.name}, prefill by its roofline: a lower bound",
        "what scores and victims would cost on this machine is not modelled, nor is any energy",
    ]
    if profile.machine.memory_bytes is None:
        made.append(
            "users: unknown, as the profile names no memory size; give --users to time some"
        )
    return made + position_notes(model, longest)


@dataclass(frozen=True)
class _Planned:
    """One model on one profile."""

    profile: Profile
    model: ModelSpec
    bits: int
    kv_bits: int
    link_gbps: float
    asked: int | None

    @property
    def weight_bytes(self) -> int:
        return self.model.num_parameters * self.bits // BITS_PER_BYTE

    @property
    def kv_bytes_per_token(self) -> int:
        return self.model.num_kv_per_token * self.kv_bits // BITS_PER_BYTE

    def row(self, context: int, num_slots: int | None) -> PlanRow:
        """Plan the full cache (no slots) or RCE at one context."""
        held = context if num_slots is None else num_slots
        lane = held * self.kv_bytes_per_token
        memory_bytes = self.profile.machine.memory_bytes
        users = None if memory_bytes is None else (memory_bytes - self.weight_bytes) // lane
        timed = self._timed(users)
        alone = None if users == 0 else self._decode(held, 1)
        full = self._decode(held, timed) if timed else None
        return PlanRow(
            cache="full" if num_slots is None else "rce",
            context=context,
            num_slots=num_slots,
            kv_bits=self.kv_bits,
            chunk=_chunk(context, num_slots),
            kv_bytes_per_user=lane,
            table_bytes_per_user=0,
            users=users,
            users_timed=timed,
            prefill_s=None if users == 0 else self._prefill_s(context - 1, num_slots),
            decode_s_alone=alone.time_s if alone else None,
            decode_s_all=full.time_s if full else None,
            tokens_per_s=timed / full.time_s if full else None,
            energy_j_per_token=None,
            switch_s=2 * lane / (self.link_gbps * GB),
            bound=full.bound if full else alone.bound if alone else None,
            reason=self._reason(users, lane),
        )

    def _timed(self, users: int | None) -> int:
        """Return how many users the step of all is timed with; 0 where nobody knows how many."""
        if users is None:
            return self.asked or 0
        return min(users, self.asked or MAX_TIMED_USERS)

    def _reason(self, users: int | None, lane: int) -> str:
        if users is None:
            return "the profile names no memory size and no energy"
        free = (self.profile.machine.memory_bytes or 0) - self.weight_bytes
        if users == 0:
            return f"one user needs {lane / GB:.1f} GB, {free / GB:.1f} free"
        return "a profile has no energy"

    def _decode(self, held: int, batch: int) -> StepEstimate:
        """Estimate a step in which every user reads `held` tokens, the new one among them."""
        return self.profile.decode_step(
            DecodeWorkload(
                weight_bytes=self.model.num_weights_per_step * self.bits / BITS_PER_BYTE,
                kv_bytes_per_lane=float(held * self.kv_bytes_per_token),
                macs_per_lane=float(self.model.num_weights_per_step),
                attention_macs_per_lane=float(self._attention_macs(held)),
                batch=batch,
                context=held,
            )
        )

    def _attention_macs(self, pairs: int) -> int:
        """MACs of `pairs` of a query and a key, and of their values, in all layers and heads."""
        return 2 * self.model.num_layers * self.model.q_size * pairs

    def _prefill_s(self, prompt: int, num_slots: int | None) -> float:
        """Bound the prompt's time: each chunk by the longer of its bytes and its MACs."""
        machine, model = self.profile.machine, self.model
        layers = model.num_layers * model.num_layer_weights
        step = _chunk(prompt + 1, num_slots)
        total_s = 0.0
        for start in range(0, prompt, step):
            q = min(step, prompt - start)
            live = start if num_slots is None else min(start, num_slots)
            head = model.num_lm_head_weights * (start + q == prompt)  # one token is sampled
            moved = (layers + head) * self.bits / BITS_PER_BYTE
            moved += (live + q) * self.kv_bytes_per_token
            macs = q * layers + head + self._attention_macs(q * live + q * (q + 1) // 2)
            memory_s = moved / (machine.bandwidth_gbps * GB)
            total_s += max(memory_s, macs / (machine.num_pes * machine.clock_mhz * 1e6))
        return total_s


def _chunk(context: int, num_slots: int | None) -> int:
    """Return T: the library's for RCE, the whole prompt for a full cache (its least bytes)."""
    return max(1, context - 1) if num_slots is None else min(256, num_slots)
