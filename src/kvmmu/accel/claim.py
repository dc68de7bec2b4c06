"""Search which assumptions give what the paper's abstract claims: 1.52x energy, 3.62x delay.

The abstract fixes 65 nm, batch 16 and "up to 8x"; model, lengths, widths, DRAM, array and what the
two ratios are ratios of are not known. So all of RANGES is priced with the same model, and every
point is kept: the answer is a map, not a point. Nothing is fitted.

Readings, of what the two figures are ratios of (the hardware is the same in all):
    R1  end to end, both pipelines overlapped
    R2  end to end, the baseline fetches and computes in turn (the paper's "optimised pipeline")
    R3  energy end to end, delay of generation alone, both overlapped
    R4  generation alone, both overlapped
    R5  generation alone, the baseline in turn
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kvmmu.accel.designs import baselines
from kvmmu.accel.dram.spec import load_dram
from kvmmu.accel.request import Request, our_design, settle
from kvmmu.accel.results import DesignResult
from kvmmu.accel.runner import Runner
from kvmmu.accel.simulate import simulate
from kvmmu.accel.spec.load import load_accelerator, load_model
from kvmmu.errors import KVMMUError
from kvmmu.units import BITS_PER_BYTE

__all__ = [
    "CLAIM",
    "GRID",
    "MAC_FACTORS",
    "RANGES",
    "READINGS",
    "Point",
    "points",
    "price",
    "price_decode",
    "ratios_of",
]

CLAIM = {"energy": 1.52, "delay": 3.62}
"""Moradifirouzabadi and Kang, IEEE JETCAS 15(2), 2025, abstract: batch 16, 65 nm."""

RANGES: dict[str, tuple[Any, ...]] = {
    "model": ("opt_125m", "opt_1.3b", "opt_6.7b", "llama_7b", "llama_3_8b"),
    "lengths": ((128, 1920), (1024, 1024), (1792, 256), (2048, 2048), (3584, 512)),
    "bits": ((8, 8), (4, 8), (8, 16)),
    "dram": ("lpddr4_3200_x64", "ddr4_2400_x64", "hbm2_256"),
    "pes": (256, 1024, 4096),
    "compression": (4.0, 8.0),
}
"""Every combination is priced. bits: weights, KV. pes: 16 x 16, 32 x 32, 64 x 64."""

MAC_FACTORS = {"low": 0.46, "nominal": 1.0, "high": 3.1, "Eyeriss-like": 6.3}
"""Factors on the array's nominal energy (1.89 pJ a MAC, SRAM apart): the chip's low and high
corners, and the 12 pJ a MAC of Eyeriss, which is all on-chip energy, as if it were the array's:
with SRAM and leakage beside it some energy is counted twice: an upper end, no assumption."""

READINGS: dict[str, tuple[str, str, str]] = {
    "R1": ("end_to_end", "end_to_end", "overlapped"),
    "R2": ("end_to_end", "end_to_end", "serial"),
    "R3": ("end_to_end", "decode", "overlapped"),
    "R4": ("decode", "decode", "overlapped"),
    "R5": ("decode", "decode", "serial"),
}
"""Reading -> (scope of energy, scope of delay, how the baseline's units work)."""

CLOCK_MHZ = 500.0  # jetcas65's
_SIDES = {256: 16, 1024: 32, 4096: 64}


def _overrides(pes: int, dram_gbps: float, clock_mhz: float) -> dict[str, Any]:
    """Return an array with buffers and ports of its size and of the DRAM's speed.

    A port takes what the DRAM brings in a cycle, and a weight for each column of a quarter of the
    array's PEs, or it would bind in the place of array and DRAM. Buffers grow with their ports.
    """
    side = _SIDES[pes]
    port = 64
    while port < max(dram_gbps * 1e3 / clock_mhz, pes / 16):
        port *= 2
    ways = max(16, side)
    return {
        "array.rows": side,
        "array.cols": side,
        "buffers.weight_kib": 2 * port,
        "buffers.weight_port_bytes": port,
        "buffers.kv_kib": 2 * port,
        "buffers.kv_port_bytes": port,
        "buffers.activation_kib": 4 * port,
        "buffers.activation_port_bytes": port,
        "softmax.ways": ways,
        "buffers.logits_kib": 4 * ways,
        "buffers.logits_port_bytes": 2 * ways,
        "mmu.ways": ways,
        "vector.ways": ways,
    }


@dataclass(frozen=True)
class Point:
    """One combination of RANGES, at batch 16 on the 65 nm chip."""

    model: str
    lengths: tuple[int, int]
    bits: tuple[int, int]
    dram: str
    pes: int
    compression: float

    @property
    def key(self) -> str:
        """Name the point, as a line of results does."""
        p, g = self.lengths
        w, kv = self.bits
        return f"{self.model} {p}+{g} W{w}KV{kv} {self.dram} {self.pes} {self.compression:g}x"

    def request(self) -> Request:
        """Return the simulation of the point."""
        return Request(
            model=self.model,
            batch=16,
            prompt=self.lengths[0],
            generate=self.lengths[1],
            compression=self.compression,
            kv_bits=self.bits[1],
            dram=self.dram,
            overrides=_overrides(self.pes, load_dram(self.dram).peak_gbps, CLOCK_MHZ)
            | {"bits.weights": self.bits[0]},
        )


def points() -> Iterator[Point]:
    """Yield every combination of RANGES."""
    for values in itertools.product(*RANGES.values()):
        yield Point(*values)


def price(point: Point) -> dict[str, Any]:
    """Return a line of results: energies by part and delays of both designs, or why not."""
    about = {"key": point.key, "point": vars(point)}
    try:
        made = simulate(point.request(), names=(f"full_{point.bits[1]}bit",))
    except (KVMMUError, ValueError) as error:
        return about | {"refused": str(error)}
    return about | {
        "ours": _parts(made.ours),
        "full": _parts(made.others[0]),
        "full_fits": made.others[0].fits,
        "mmu_share": made.mmu_share(),
        "bound": {scope: made.ours.scope(scope).bound for scope in ("decode", "end_to_end")},
    }


def _parts(result: DesignResult) -> dict[str, Any]:
    """Return joules of the array and of all else, and seconds, by scope and mode."""
    rows: dict[str, Any] = {}
    for scope in ("decode", "end_to_end"):
        part = result.scope(scope)
        for mode in ("overlapped", "serial"):
            energy = part.energy_by_unit_j(mode)
            array = energy["array"]
            rows[f"{scope}/{mode}"] = {
                "array_j": array,
                "other_j": sum(energy.values()) - array,
                "delay_s": part.delay_s(mode),
            }
    return rows


def ratios_of(line: dict[str, Any], reading: str, mac_factor: float) -> tuple[float, float]:
    """Return (energy, delay) of the full cache over ours, under a reading."""
    energy_scope, delay_scope, mode = READINGS[reading]
    ours, full = line["ours"], line["full"]

    def joules(rows: dict[str, Any], how: str) -> float:
        row = rows[f"{energy_scope}/{how}"]
        return float(row["array_j"] * mac_factor + row["other_j"])

    energy = joules(full, mode) / joules(ours, "overlapped")
    slow, fast = full[f"{delay_scope}/{mode}"], ours[f"{delay_scope}/overlapped"]
    return energy, float(slow["delay_s"] / fast["delay_s"])


GRID: dict[str, tuple[Any, ...]] = {
    "model": ("llama_7b", "llama_3_8b"),
    "batch": (1, 4, 16, 64),
    "context": (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536),
}
"""Where the gain is: MHA beside GQA with four query heads a KV head, 8x, int8, generation alone."""


def price_decode(
    model: str, batch: int, context: int, *, compression: float = 8.0
) -> dict[str, Any]:
    """Return full over RCE of one decode step at a context, and whether each fits the DRAM.

    RCE has the layout that is faster at this size: rows of whole slots, or a region for each head
    where the logits of all heads are too many to wait at once.
    """
    made = [_price_layout(model, batch, context, compression, lay) for lay in ("slot", "head")]
    return min(made, key=lambda pair: pair[0])[1]


def _price_layout(
    model: str, batch: int, context: int, compression: float, layout: str
) -> tuple[float, dict[str, Any]]:
    """Return RCE's delay with a layout, and the row."""
    request = Request(
        model=model,
        batch=batch,
        prompt=context - 1,
        generate=1,
        compression=compression,
        layout=layout,
    )
    spec = load_accelerator(request.accelerator)
    dram, shape = load_dram(spec.dram), load_model(model)
    workload, request = settle(request, shape, spec)
    runner = Runner(request, spec, dram, shape)
    ours = our_design(request, spec, workload)
    full = baselines(ours, num_tokens=context)[0]
    parts = {d.name: runner.decode_step(d, workload, context, batch) for d in (ours, full)}
    mine, theirs = parts[ours.name], parts[full.name]
    weights = shape.num_parameters * spec.bits.weights // BITS_PER_BYTE
    row = mine.machine.row_bytes * shape.num_layers * batch
    return mine.delay_s(), {
        "model": model,
        "batch": batch,
        "context": context,
        "layout": layout,
        "energy": theirs.energy_j() / mine.energy_j(),
        "delay": theirs.delay_s() / mine.delay_s(),
        "delay_serial": theirs.delay_s("serial") / mine.delay_s(),
        "bound": mine.bound,
        "full_bound": theirs.bound,
        "kv_over_weights": context * row / weights,
        "full_fits": weights + context * row <= dram.capacity_bytes,
        "ours_fits": weights + ours.num_slots * row <= dram.capacity_bytes,
    }
