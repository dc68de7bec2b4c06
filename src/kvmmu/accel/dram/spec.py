"""DramSpec: a DRAM system as data, from configs/dram/*.yaml; every group of numbers has a source.

Sizes are bytes, times cycles of `timings.clock_mhz`; energies are in energy.py.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from kvmmu.accel.dram.controller import Organization, Policy
from kvmmu.accel.dram.gaps import Gaps, Timings
from kvmmu.accel.dram.mapping import FIELDS, AddressMapping
from kvmmu.accel.dram.validation import check_keys, validated
from kvmmu.accel.spec.sourced import Band, Corner
from kvmmu.errors import SpecError

__all__ = ["Band", "Corner", "DramSpec", "IddCore", "PerCommandCore", "list_drams", "load_dram"]

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "dram"

Count = Annotated[int, Field(ge=1)]
Cycles = Annotated[int, Field(ge=1)]
Amount = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Source = Annotated[str, Field(min_length=1)]


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class OrganizationGroup(_Group):
    """Channels, ranks, banks and rows; `row_bytes` is a row of all devices of a rank together."""

    source: Source
    channels: Count
    ranks: Count
    bank_groups: Count
    banks_per_group: Count
    rows: Count
    row_bytes: Count
    channel_bits: Count
    devices_per_rank: Count


class TimingsGroup(_Group):
    """Timings in cycles; see gaps.Timings for what they mean."""

    source: Source
    clock_mhz: Positive
    transfers_per_cycle: Count
    burst_cycles: Cycles
    t_cl_cycles: Cycles
    t_cwl_cycles: Cycles
    t_rcd_rd_cycles: Cycles
    t_rcd_wr_cycles: Cycles
    t_rp_cycles: Cycles
    t_ras_cycles: Cycles
    t_rc_cycles: Cycles
    t_wr_cycles: Cycles
    t_rtp_cycles: Cycles
    t_ccd_s_cycles: Cycles
    t_ccd_l_cycles: Cycles
    t_wtr_s_cycles: Cycles
    t_wtr_l_cycles: Cycles
    t_rrd_s_cycles: Cycles
    t_rrd_l_cycles: Cycles
    t_faw_cycles: Cycles
    t_rfc_cycles: Cycles
    t_refi_cycles: Cycles
    rank_switch_cycles: Annotated[int, Field(ge=0)]
    turnaround_cycles: Annotated[int, Field(ge=0)]
    act_bus_cycles: Cycles = 1
    t_ppd_cycles: Cycles = 1


class MappingGroup(_Group):
    """Field order of addresses; see mapping.AddressMapping."""

    source: Source
    fields_lsb_to_msb: tuple[str, ...]
    xor: tuple[str, ...] = ()


class ControllerGroup(_Group):
    """Queues and scheduler; see controller.Policy."""

    source: Source
    read_entries: Count
    write_entries: Count
    write_high_entries: Positive
    write_low_entries: Positive
    protect_row_hits: bool
    dual_command: bool


class Rail(_Group):
    """Supply voltage and currents of one device on one rail, named as data sheets name them."""

    name: str
    vdd_v: Positive
    idd0_ma: Amount
    idd2n_ma: Amount
    idd3n_ma: Amount
    idd4r_ma: Amount
    idd4w_ma: Amount
    idd5_ma: Amount


class IddCore(_Group):
    """Core energy from currents; `scale` is the band around them."""

    kind: Literal["idd"]
    source: Source
    rails: Annotated[tuple[Rail, ...], Field(min_length=1)]
    scale: Band


class PerCommandCore(_Group):
    """Core energy stated by command: pJ of one ACT with its PRE, pJ per bit read or written."""

    kind: Literal["per_command"]
    source: Source
    activate_pj: Band
    read_pj_per_bit: Band
    write_pj_per_bit: Band
    refresh_pj: Band
    background_w_per_channel: Band


class IoGroup(_Group):
    """Pins, termination and both PHYs, pJ per bit moved."""

    source: Source
    read_pj_per_bit: Band
    write_pj_per_bit: Band


class AllIn(_Group):
    """A published figure that holds everything: compared with, never added."""

    source: Source
    value: Positive


class EnergyGroup(_Group):
    """Energy as a split by command."""

    core: IddCore | PerCommandCore = Field(discriminator="kind")
    io: IoGroup
    cross_check_all_in_pj_per_bit: AllIn | None = None


class DramSpec(_Group):
    """A DRAM system. Build it with load_dram; derived figures are properties."""

    model_config = ConfigDict(extra="forbid", frozen=True, ignored_types=(cached_property,))

    name: Annotated[str, Field(min_length=1)]
    title: Annotated[str, Field(min_length=1)]
    cross_checked: Annotated[str, Field(min_length=1)]
    organization: OrganizationGroup
    timings: TimingsGroup
    address: MappingGroup
    controller: ControllerGroup
    energy: EnergyGroup

    @property
    def channels(self) -> int:
        """Independent channels (pseudo channels in HBM)."""
        return self.organization.channels

    @property
    def clock_mhz(self) -> float:
        """Command clock."""
        return self.timings.clock_mhz

    @property
    def burst_bytes(self) -> int:
        """Bytes of one column command."""
        transfers = self.timings.transfers_per_cycle * self.timings.burst_cycles
        return self.organization.channel_bits * transfers // 8

    @property
    def peak_gbps(self) -> float:
        """Bytes a nanosecond of all data buses together, GB/s."""
        bytes_per_cycle = self.burst_bytes / self.timings.burst_cycles
        return self.channels * bytes_per_cycle * self.clock_mhz / 1e3

    @property
    def capacity_bytes(self) -> int:
        """Bytes of the whole system."""
        return self.mapping.capacity_bytes

    @property
    def scheduler_window(self) -> int:
        """Read requests that the scheduler of one channel looks at."""
        return self.controller.read_entries

    @cached_property
    def mapping(self) -> AddressMapping:
        """Where addresses lie."""
        org = self.organization
        counts = (
            org.channels,
            org.ranks,
            org.bank_groups,
            org.banks_per_group,
            org.rows,
            org.row_bytes // self.burst_bytes,
        )
        return AddressMapping(
            self.address.fields_lsb_to_msb,
            sizes=dict(zip(FIELDS, counts)),
            burst_bytes=self.burst_bytes,
            xor=self.address.xor,
        )

    @cached_property
    def gaps(self) -> Gaps:
        """Distances between commands."""
        timings = self.timings.model_dump(exclude={"source", "clock_mhz", "transfers_per_cycle"})
        return Gaps.from_timings(Timings(**timings))

    @property
    def banks(self) -> Organization:
        """Banks of one channel."""
        org = self.organization
        return Organization(org.ranks, org.bank_groups, org.banks_per_group)

    @property
    def policy(self) -> Policy:
        """Controller of one channel."""
        group = self.controller
        return Policy(
            read_entries=group.read_entries,
            write_entries=group.write_entries,
            write_high=group.write_high_entries,
            write_low=group.write_low_entries,
            protect_row_hits=group.protect_row_hits,
            dual_command=group.dual_command,
        )

    def sources(self) -> dict[str, str]:
        """Return the source of every group of numbers."""
        found = {
            key: getattr(self, key).source
            for key in ("organization", "timings", "address", "controller")
        }
        found |= {"energy.core": self.energy.core.source, "energy.io": self.energy.io.source}
        if self.energy.cross_check_all_in_pj_per_bit is not None:
            found["energy.cross_check"] = self.energy.cross_check_all_in_pj_per_bit.source
        return found

    def with_address(self, fields: tuple[str, ...], xor: tuple[str, ...] = ()) -> DramSpec:
        """Return the same system under another address mapping."""
        address = MappingGroup(source="derived", fields_lsb_to_msb=fields, xor=xor)
        return validated(DramSpec, self.model_dump() | {"address": address.model_dump()}, self.name)

    @model_validator(mode="after")
    def _possible(self) -> DramSpec:
        org, timings = self.organization, self.timings
        if org.row_bytes % self.burst_bytes:
            raise ValueError(
                f"organization.row_bytes must be a multiple of the burst = {self.burst_bytes}, "
                f"got {org.row_bytes}"
            )
        if timings.t_rc_cycles < timings.t_ras_cycles + timings.t_rp_cycles:
            raise ValueError(
                "timings.t_rc_cycles must be at least t_ras + t_rp = "
                f"{timings.t_ras_cycles + timings.t_rp_cycles}, got {timings.t_rc_cycles}"
            )
        if timings.t_refi_cycles <= timings.t_rfc_cycles:
            raise ValueError(
                f"timings.t_refi_cycles must exceed t_rfc = {timings.t_rfc_cycles}, "
                f"got {timings.t_refi_cycles}"
            )
        queue = self.controller
        if not queue.write_low_entries < queue.write_high_entries < queue.write_entries:
            raise ValueError(
                "controller must satisfy write_low < write_high < write_entries, got "
                f"{queue.write_low_entries}, {queue.write_high_entries}, {queue.write_entries}"
            )
        _ = self.mapping, self.gaps
        return self


def list_drams() -> list[str]:
    """Return the names of the DRAM presets."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def load_dram(name_or_path: str | Path) -> DramSpec:
    """Read a preset by name or a file by path. Raises SpecError, naming what is wrong."""
    text = str(name_or_path)
    is_path = isinstance(name_or_path, Path) or text.endswith((".yaml", ".yml"))
    path = Path(text) if is_path else CONFIGS / f"{text}.yaml"
    if not is_path:
        check_keys([text], list_drams(), what="DRAM")
    if not path.is_file():
        raise SpecError(f"DRAM specification must be a file, got {text!r}")
    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{path.name} must be YAML, got {error}") from None
    return validated(DramSpec, data, path.name)
