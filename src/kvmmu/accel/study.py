"""A study: one simulation and all that must stand beside it before its ratios mean anything.

other DRAMs       the same ratios on at least one more DRAM
sensitivity       each group of energy constants at its low and its high figure, alone
context           one decode step against the context: flat for RCE, linear for the full cache
iso-capacity      every design at its own largest batch that fits the DRAM
stalls            what the KV-MMU holds a decode step up, by cause and by its ways
bounds            the least traffic that attention needs, beside what each design moves
layouts           slot layout and address mapping, the chosen pair and the others
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kvmmu.accel.company import (
    attention_bounds,
    context_curve,
    iso_capacity,
    layouts,
    mmu_variants,
    on_dram,
    sensitivity,
)
from kvmmu.accel.request import Request
from kvmmu.accel.simulate import Simulation, simulate
from kvmmu.accel.stalls import stalls_of
from kvmmu.accel.summary import simulation_json

__all__ = ["PAPER", "Study", "other_dram", "study"]

PAPER = {"energy": 1.52, "delay": 3.62, "mmu_share": 0.0111, "batch": 16, "node_nm": 65}
"""What the abstract of Moradifirouzabadi and Kang, IEEE JETCAS 15(2), 2025 claims."""


@dataclass(frozen=True, eq=False)
class Study:
    """A simulation with its company; every field of `extra` is plain JSON."""

    main: Simulation
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {"simulation": simulation_json(self.main), "paper": PAPER, **self.extra}


def study(
    request: Request,
    *,
    drams: tuple[str, ...] = (),
    accuracy: dict[str, Any] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Study:
    """Simulate a request and everything beside it; `drams` are further DRAMs to compare on.

    accuracy: what was measured with the same policy, size and numbers, or None for "not measured".
    """
    say("designs")
    main = simulate(request)
    extra: dict[str, Any] = {"accuracy": accuracy, "labels": _labels(request)}
    others = drams or (other_dram(main.dram.name),)
    extra["other_drams"] = {}
    for name in others:
        say(f"on {name}")
        extra["other_drams"][name] = on_dram(request, name)
    say("sensitivity")
    extra["sensitivity"] = sensitivity(main)
    say("cost against context")
    extra["context"] = context_curve(main)
    say("iso-capacity")
    extra["iso_capacity"] = iso_capacity(main)
    if request.trace is None:
        say("KV-MMU")
        extra["mmu_variants"] = mmu_variants(main)
    say("stalls")
    found = stalls_of(main)
    extra["stalls"] = None if found is None else found.to_json()
    say("layouts")
    extra["layouts"] = layouts(main)
    extra["bounds"] = attention_bounds(main)
    return Study(main, extra)


def other_dram(name: str) -> str:
    """Return the DRAM to compare with: DDR4 beside LPDDR4, else LPDDR4."""
    return "ddr4_3200_x64" if name.startswith("lpddr4") else "lpddr4_3200_x64"


def _labels(request: Request) -> dict[str, str]:
    source = f"trace {request.trace.name}" if request.trace else "regular shape"
    return {"kind": "simulated", "workload": source}
