"""Patterns: the few regular shapes of traffic, each reduced to bytes a nanosecond and pJ a byte.

A region is one table, e.g. all slots of a (lane, layer); regions follow each other without a gap. A
pattern is simulated once, for 8,000 to 24,000 bursts of its busiest channel, and its steady state
(whole refresh periods between 10 % and 90 % of the time) is kept: in the process, and on disk.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kvmmu.accel.dram.cache import load_cached, pattern_key, store_cached
from kvmmu.accel.dram.energy import command_energy
from kvmmu.accel.dram.requests import run_one_channel
from kvmmu.accel.dram.spec import Corner, DramSpec
from kvmmu.units import KIB, ns_of_cycles

__all__ = ["Pattern", "PatternCost", "bursts_of", "pattern_cost", "requests_per_channel"]

MIN_REQUESTS, MAX_REQUESTS, MAX_BURSTS = 8_000, 24_000, 1_000_000  # one channel; all channels
GATHERED_PIECES = 64  # pieces of a region that a gather reads, as in the golden stream S6
SEED = 0


@dataclass(frozen=True)
class Pattern:
    """A shape of traffic.

    `sequential` streams regions one after another in address order; `random` takes
    `pieces_per_region` different pieces at random places of each region in turn (None: one of a
    written region, 64 of a read one, or all it has); `strided` reads all of a region too, but a
    piece of every `stride_bytes` first, then the next piece of each. Bytes are charged in whole
    bursts.
    """

    kind: Literal["sequential", "random", "strided"]
    piece_bytes: int
    region_bytes: int
    is_write: bool = False
    pieces_per_region: int | None = None
    stride_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("sequential", "random", "strided"):
            raise ValueError(f"kind must be 'sequential', 'random' or 'strided', got {self.kind!r}")
        if not 1 <= self.piece_bytes <= self.region_bytes:
            raise ValueError(
                f"piece_bytes must lie in [1, region_bytes = {self.region_bytes}], "
                f"got {self.piece_bytes!r}"
            )
        places = self.region_bytes // self.piece_bytes
        if self.pieces_per_region is not None and not 1 <= self.pieces_per_region <= places:
            raise ValueError(
                f"pieces_per_region must lie in [1, {places}], got {self.pieces_per_region!r}"
            )
        stride = self.stride_bytes
        if (stride is not None) != (self.kind == "strided"):
            raise ValueError(f"stride_bytes must be given for 'strided' alone, got {stride!r}")
        if stride is not None and (stride % self.piece_bytes or self.region_bytes % stride):
            raise ValueError(
                f"stride_bytes must be a multiple of piece_bytes = {self.piece_bytes} that divides "
                f"region_bytes = {self.region_bytes}, got {stride!r}"
            )


@dataclass(frozen=True)
class PatternCost:
    """Cost of a pattern, per byte asked for (not per byte moved): bursts are rounded up."""

    gbps: float
    activate_pj_per_byte: float
    column_pj_per_byte: float
    io_pj_per_byte: float
    activates_per_kib: float
    fraction_of_peak: float
    num_requests: int


@dataclass(frozen=True)
class _Counts:
    """What the simulation of a pattern found; energy is put to it afterwards."""

    gbps: float
    bytes_asked: int
    activates: float
    bursts: int
    simulated: int


_memo: dict[str, _Counts] = {}


def pattern_cost(
    spec: DramSpec,
    pattern: Pattern,
    *,
    corner: Corner = "nominal",
    cache_dir: Path | None = None,
) -> PatternCost:
    """Return the sustained rate over all channels, refresh included, and energy by kind."""
    key = pattern_key(spec, pattern)
    counts = _memo.get(key)
    if counts is None:
        stored = load_cached(cache_dir, key, tuple(field.name for field in fields(_Counts)))
        counts = _simulate(spec, pattern) if stored is None else _Counts(**stored)
        if stored is None:
            store_cached(cache_dir, key, asdict(counts))
        _memo[key] = counts
    energy = command_energy(spec, corner)
    column = energy.write_pj if pattern.is_write else energy.read_pj
    io = energy.io_write_pj if pattern.is_write else energy.io_read_pj
    per_byte = 1.0 / counts.bytes_asked
    return PatternCost(
        gbps=counts.gbps,
        activate_pj_per_byte=counts.activates * energy.activate_pj * per_byte,
        column_pj_per_byte=counts.bursts * column * per_byte,
        io_pj_per_byte=counts.bursts * io * per_byte,
        activates_per_kib=counts.activates * KIB * per_byte,
        fraction_of_peak=counts.gbps / spec.peak_gbps,
        num_requests=int(counts.simulated),
    )


def _simulate(spec: DramSpec, pattern: Pattern) -> _Counts:
    """Run the busiest channel; the others are done no later."""
    addresses, bytes_asked = bursts_of(spec, pattern)
    channel = spec.mapping.channels_of(addresses)
    share = np.bincount(channel, minlength=spec.channels)
    busiest = int(share.argmax())
    mine = addresses[channel == busiest]
    run = run_one_channel(spec, mine, np.full(len(mine), pattern.is_write))
    requests, cycles = run.steady_cycles(spec.gaps.refi)
    bytes_of_a_request = bytes_asked / int(share[busiest])  # of all channels, in the same time
    time_ns = ns_of_cycles(cycles, clock_mhz=spec.clock_mhz)
    return _Counts(
        gbps=requests * bytes_of_a_request / time_ns,
        bytes_asked=bytes_asked,
        activates=run.activates * len(addresses) / int(share[busiest]),
        bursts=len(addresses),
        simulated=int(share[busiest]),
    )


def bursts_of(spec: DramSpec, pattern: Pattern) -> tuple[NDArray[np.int64], int]:
    """Return the address of every burst in order, int64 [N], and the bytes that were asked for.

    Raises ValueError if a region does not fit the memory.
    """
    burst, region = spec.burst_bytes, pattern.region_bytes
    num_fitting = spec.capacity_bytes // region
    if num_fitting < 1:
        raise ValueError(
            f"region_bytes must fit the memory of {spec.capacity_bytes} bytes, got {region}"
        )
    wanted = requests_per_channel(spec) * spec.channels
    if pattern.kind == "sequential":
        # Pieces of a region are contiguous and share bursts; two regions need not.
        length = min(region, wanted * burst)
        starts = np.arange(-(-wanted * burst // length), dtype=np.int64) % num_fitting * region
    elif pattern.stride_bytes is not None:
        length = pattern.piece_bytes
        num_runs = -(-wanted // -(-length // burst))
        starts = _strided(np.arange(num_runs, dtype=np.int64), pattern) % (num_fitting * region)
    else:
        length = min(pattern.piece_bytes, wanted * burst)
        bursts_per_piece = -(-length // burst)
        places = region // pattern.piece_bytes
        count = pattern.pieces_per_region or (1 if pattern.is_write else GATHERED_PIECES)
        count = min(count, places, max(1, wanted // bursts_per_piece))
        num_regions = -(-wanted // (count * bursts_per_piece))
        inside = _distinct_places(num_regions, places, count) * pattern.piece_bytes
        bases = np.arange(num_regions, dtype=np.int64) % num_fitting * region
        starts = (bases[:, None] + inside).ravel()
    return _whole_bursts(starts, length, burst), length * len(starts)


def requests_per_channel(spec: DramSpec) -> int:
    """Return how many bursts of one channel are simulated: fewer where there are many channels."""
    return max(MIN_REQUESTS, min(MAX_REQUESTS, MAX_BURSTS // spec.channels))


def _strided(index: NDArray[np.int64], pattern: Pattern) -> NDArray[np.int64]:
    """Return where the pieces number `index` [N] of a strided pattern start."""
    stride, piece = pattern.stride_bytes or pattern.piece_bytes, pattern.piece_bytes
    per_region, per_pass = pattern.region_bytes // piece, pattern.region_bytes // stride
    region, inside = np.divmod(index, per_region)
    offset, step = np.divmod(inside, per_pass)
    starts: NDArray[np.int64] = region * pattern.region_bytes + step * stride + offset * piece
    return starts


def _distinct_places(num_regions: int, places: int, count: int) -> NDArray[np.int64]:
    """Draw `count` different places of each region, int64 [num_regions, count]."""
    generator = np.random.default_rng(SEED)
    if count == 1:
        return generator.integers(0, places, (num_regions, 1))
    draws = [generator.choice(places, count, replace=False) for _ in range(num_regions)]
    return np.stack(draws).astype(np.int64)


def _whole_bursts(starts: NDArray[np.int64], length: int, burst: int) -> NDArray[np.int64]:
    """Return the addresses of all bursts that [start, start + length) touches, in order."""
    first, last = starts // burst, (starts + length - 1) // burst
    counts = last - first + 1
    offsets = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    addresses: NDArray[np.int64] = (np.repeat(first, counts) + offsets) * burst
    return addresses
