"""Requests to a whole DRAM system: split over its channels, each simulated by itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvmmu.accel.dram.controller import ChannelResult, run_channel
from kvmmu.accel.dram.energy import command_energy
from kvmmu.accel.dram.mapping import Location
from kvmmu.accel.dram.spec import Corner, DramSpec
from kvmmu.units import ns_of_cycles

__all__ = ["RequestResult", "flat_banks", "run_one_channel", "simulate_requests"]


@dataclass(frozen=True)
class RequestResult:
    """What requests took: `cycles` until the last channel is done; counts of all channels.

    Energy is dynamic, in picojoules; refresh is counted apart, background is not in it.
    """

    cycles: int
    time_ns: float
    num_requests: int
    activates: int
    reads: int
    writes: int
    precharges: int
    refreshes: int
    row_hits: int
    activate_pj: float
    column_pj: float
    io_pj: float
    refresh_pj: float
    channel_cycles: tuple[int, ...]

    @property
    def dynamic_pj(self) -> float:
        """Energy of the traffic: activation, column and I/O."""
        return self.activate_pj + self.column_pj + self.io_pj


def flat_banks(spec: DramSpec, place: Location) -> NDArray[np.int64]:
    """Return the bank of each burst within its channel, all ranks and groups counted through."""
    org = spec.organization
    group = place.rank * org.bank_groups + place.bankgroup
    return group * org.banks_per_group + place.bank


def run_one_channel(
    spec: DramSpec, addresses: NDArray[np.int64], is_write: NDArray[np.bool_]
) -> ChannelResult:
    """Simulate requests that all lie in one channel."""
    place = spec.mapping.decode(addresses)
    return run_channel(
        flat_banks(spec, place),
        place.row,
        is_write,
        gaps=spec.gaps,
        organization=spec.banks,
        policy=spec.policy,
    )


def simulate_requests(
    spec: DramSpec,
    addresses: NDArray[np.int64],
    is_write: NDArray[np.bool_],
    *,
    corner: Corner = "nominal",
) -> RequestResult:
    """Serve one burst at each byte address [N] in order, as fast as the channels take them.

    Raises ValueError if an address is outside the memory or the arrays differ in length.
    """
    if addresses.shape != is_write.shape or addresses.ndim != 1:
        raise ValueError(
            f"addresses and is_write must be [N] alike, got {addresses.shape} and {is_write.shape}"
        )
    if len(addresses) and not 0 <= addresses.min() <= addresses.max() < spec.capacity_bytes:
        raise ValueError(
            f"addresses must lie in [0, {spec.capacity_bytes}), got "
            f"[{addresses.min()}, {addresses.max()}]"
        )
    channel = spec.mapping.channels_of(addresses)
    shares = [channel == used for used in np.unique(channel)]
    runs = [run_one_channel(spec, addresses[mine], is_write[mine]) for mine in shares]
    energy = command_energy(spec, corner)
    activates, reads, writes, refreshes = (
        sum(getattr(run, name) for run in runs)
        for name in ("activates", "reads", "writes", "refreshes")
    )
    cycles = max((run.cycles for run in runs), default=0)
    return RequestResult(
        cycles=cycles,
        time_ns=ns_of_cycles(cycles, clock_mhz=spec.clock_mhz),
        num_requests=len(addresses),
        activates=activates,
        reads=reads,
        writes=writes,
        precharges=sum(run.precharges for run in runs),
        refreshes=refreshes,
        row_hits=sum(run.row_hits for run in runs),
        activate_pj=activates * energy.activate_pj,
        column_pj=reads * energy.read_pj + writes * energy.write_pj,
        io_pj=reads * energy.io_read_pj + writes * energy.io_write_pj,
        refresh_pj=refreshes * energy.refresh_pj,
        channel_cycles=tuple(run.cycles for run in runs),
    )
