"""Energy of commands: DRAMsim3's five terms from currents, or figures stated by command.

For one rank of `devices` and each rail (volt x milliampere x nanosecond = picojoule):
    ACT (with its PRE)  V (IDD0 tRC - IDD3N tRAS - IDD2N (tRC - tRAS))
    RD                  V (IDD4R - IDD3N) burst           WR: IDD4W
    REF                 V (IDD5 - IDD3N) tRFC
    background          V IDD3N with a row open, V IDD2N with none
I/O and PHY are a term of their own, per bit moved. Background and refresh are powers: they run with
time, not with traffic.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmmu.accel.dram.spec import Corner, DramSpec, IddCore, PerCommandCore
from kvmmu.units import BITS_PER_BYTE, PJ_PER_J, ns_of_cycles

__all__ = ["CommandEnergy", "command_energy", "static_power_w"]


@dataclass(frozen=True)
class CommandEnergy:
    """Picojoules of one command to one rank of one channel; background in watts per rank."""

    activate_pj: float
    read_pj: float
    write_pj: float
    io_read_pj: float
    io_write_pj: float
    refresh_pj: float
    background_active_w: float
    background_idle_w: float


def command_energy(spec: DramSpec, corner: Corner = "nominal") -> CommandEnergy:
    """Return what commands cost at a corner; a read or write is one burst of `spec.burst_bytes`."""
    core, io = spec.energy.core, spec.energy.io
    bits = spec.burst_bytes * BITS_PER_BYTE
    io_read, io_write = bits * io.read_pj_per_bit.at(corner), bits * io.write_pj_per_bit.at(corner)
    if isinstance(core, PerCommandCore):
        background_w = core.background_w_per_channel.at(corner) / spec.organization.ranks
        return CommandEnergy(
            activate_pj=core.activate_pj.at(corner),
            read_pj=bits * core.read_pj_per_bit.at(corner),
            write_pj=bits * core.write_pj_per_bit.at(corner),
            io_read_pj=io_read,
            io_write_pj=io_write,
            refresh_pj=core.refresh_pj.at(corner),
            background_active_w=background_w,
            background_idle_w=background_w,
        )
    return _from_currents(spec, core, core.scale.at(corner), io_read, io_write)


def _from_currents(
    spec: DramSpec, core: IddCore, scale: float, io_read_pj: float, io_write_pj: float
) -> CommandEnergy:
    """Sum the five terms over rails and devices."""
    timings, devices = spec.timings, spec.organization.devices_per_rank
    t_rc, t_ras, burst, t_rfc = (
        ns_of_cycles(cycles, clock_mhz=spec.clock_mhz)
        for cycles in (
            timings.t_rc_cycles,
            timings.t_ras_cycles,
            timings.burst_cycles,
            timings.t_rfc_cycles,
        )
    )
    factor = scale * devices
    rails = core.rails
    open_charge = [r.idd3n_ma * t_ras + r.idd2n_ma * (t_rc - t_ras) for r in rails]
    activate = sum(r.vdd_v * (r.idd0_ma * t_rc - q) for r, q in zip(rails, open_charge))
    return CommandEnergy(
        activate_pj=factor * activate,
        read_pj=factor * burst * sum(r.vdd_v * (r.idd4r_ma - r.idd3n_ma) for r in rails),
        write_pj=factor * burst * sum(r.vdd_v * (r.idd4w_ma - r.idd3n_ma) for r in rails),
        io_read_pj=io_read_pj,
        io_write_pj=io_write_pj,
        refresh_pj=factor * t_rfc * sum(r.vdd_v * (r.idd5_ma - r.idd3n_ma) for r in rails),
        background_active_w=factor * sum(r.vdd_v * r.idd3n_ma for r in rails) / 1e3,
        background_idle_w=factor * sum(r.vdd_v * r.idd2n_ma for r in rails) / 1e3,
    )


def static_power_w(
    spec: DramSpec, *, corner: Corner = "nominal", active_fraction: float = 1.0
) -> tuple[float, float]:
    """Return (background, refresh) watts of the whole system.

    `active_fraction` is the share of time in which a rank has a row open; no power-down is assumed.
    """
    if not 0.0 <= active_fraction <= 1.0:
        raise ValueError(f"active_fraction must lie in [0, 1], got {active_fraction!r}")
    energy = command_energy(spec, corner)
    ranks = spec.channels * spec.organization.ranks
    per_rank = active_fraction * energy.background_active_w
    per_rank += (1.0 - active_fraction) * energy.background_idle_w
    period_ns = ns_of_cycles(spec.timings.t_refi_cycles, clock_mhz=spec.clock_mhz)
    refresh_w = energy.refresh_pj / PJ_PER_J / (period_ns * 1e-9)
    return ranks * per_rank, ranks * refresh_w
