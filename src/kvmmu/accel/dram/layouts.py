"""Which slot layout on which address mapping: every pair, measured, best first.

Layouts of a (lane, layer) region of C slots, slowest index first:
    slot    [slot, {K, V}, Hkv, D]    one slot is one contiguous row
    split   [{K, V}, slot, Hkv, D]    keys apart from values
    head    [head, slot, {K, V}, D]   every head a region of its own
A decode step reads the region and writes one slot. Read in address order, all layouts stream alike
and the mapping decides; read head by head, the layout does, unless it is `head`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kvmmu.accel.dram.patterns import Pattern, PatternCost, pattern_cost
from kvmmu.accel.dram.spec import Corner, DramSpec

__all__ = ["LAYOUTS", "LayoutChoice", "compare_layouts", "mappings_of"]

LAYOUTS = ("slot", "split", "head")
INTERLEAVE_BYTES = 64


@dataclass(frozen=True)
class LayoutChoice:
    """One pair of layout and mapping; `slowdown` is its step time over the best pair's."""

    layout: str
    mapping: str
    fields_lsb_to_msb: tuple[str, ...]
    stream_gbps: float
    write_ns: float
    write_pj: float
    step_ns: float
    step_pj: float
    slowdown: float = 1.0


def mappings_of(spec: DramSpec) -> dict[str, tuple[str, ...]]:
    """Return field orders to compare, least significant first; channels change every 64 bytes.

    preset: the specification's own. row_contiguous: a row is filled before the next bank group.
    group_interleaved: bank groups below the column. bank_interleaved: banks too. channel_by_row: a
    whole row of one channel, then the next channel.
    """
    below = INTERLEAVE_BYTES // spec.burst_bytes
    column = (f"column:{below.bit_length() - 1}",) if below > 1 else ()
    groups = spec.organization.bank_groups > 1
    group = (f"bankgroup:{below.bit_length() - 1}",) if below > 1 and groups else column
    top = ("rank", "row")
    return {
        "preset": spec.address.fields_lsb_to_msb,
        "row_contiguous": (*column, "channel", "column", "bankgroup", "bank", *top),
        "group_interleaved": (*group, "channel", "bankgroup", "column", "bank", *top),
        "bank_interleaved": (*group, "channel", "bankgroup", "bank", "column", *top),
        "channel_by_row": ("column", "channel", "bankgroup", "bank", *top),
    }


def compare_layouts(
    spec: DramSpec,
    *,
    row_bytes: int,
    num_kv_heads: int,
    num_slots: int,
    corner: Corner = "nominal",
    reads: Literal["region", "per_head", "gathered"] = "region",
    cache_dir: Path | None = None,
) -> list[LayoutChoice]:
    """Return every layout on every mapping, fastest decode step of one (lane, layer) first.

    `row_bytes` is K and V of one slot, all heads. `reads` says how attention takes the region: in
    address order; head by head (keys of a head, then its values); or gathered, as many bytes of
    random slots, a head at a time, as a baseline does that prunes irregularly. The last is worst.
    """
    if reads not in ("region", "per_head", "gathered"):
        raise ValueError(f"reads must be 'region', 'per_head' or 'gathered', got {reads!r}")
    if row_bytes % (2 * num_kv_heads):
        raise ValueError(
            f"row_bytes must be a multiple of 2 x num_kv_heads = {2 * num_kv_heads}, "
            f"got {row_bytes}"
        )
    choices = []
    for name, fields in mappings_of(spec).items():
        mapped = spec.with_address(fields, spec.address.xor if name == "preset" else ())
        for layout in LAYOUTS:
            read, write, pieces = _patterns(layout, reads, row_bytes, num_kv_heads, num_slots)
            read_cost = pattern_cost(mapped, read, corner=corner, cache_dir=cache_dir)
            write_cost = pattern_cost(mapped, write, corner=corner, cache_dir=cache_dir)
            written = pieces * write.piece_bytes
            region = row_bytes * num_slots
            write_ns, write_pj = written / write_cost.gbps, written * _pj_per_byte(write_cost)
            choices.append(
                LayoutChoice(
                    layout=layout,
                    mapping=name,
                    fields_lsb_to_msb=fields,
                    stream_gbps=read_cost.gbps,
                    write_ns=write_ns,
                    write_pj=write_pj,
                    step_ns=region / read_cost.gbps + write_ns,
                    step_pj=region * _pj_per_byte(read_cost) + write_pj,
                )
            )
    best = min(choice.step_ns for choice in choices)
    ordered = sorted(choices, key=lambda choice: (choice.step_ns, choice.step_pj))
    return [replace(choice, slowdown=choice.step_ns / best) for choice in ordered]


def _pj_per_byte(cost: PatternCost) -> float:
    return cost.activate_pj_per_byte + cost.column_pj_per_byte + cost.io_pj_per_byte


def _patterns(
    layout: str, reads: str, row_bytes: int, num_kv_heads: int, num_slots: int
) -> tuple[Pattern, Pattern, int]:
    """Return how a layout reads its region, how it writes one slot, and in how many pieces."""
    region, head_bytes = row_bytes * num_slots, row_bytes // (2 * num_kv_heads)
    stream = Pattern("sequential", row_bytes, region)
    pieces = {"slot": 1, "split": 2, "head": num_kv_heads}[layout]
    part = row_bytes // pieces
    write = Pattern("random", part, part * num_slots, True)
    if reads == "gathered":
        piece = part if layout == "head" else head_bytes
        return Pattern("random", piece, part * num_slots), write, pieces
    if reads == "region" or layout == "head":
        return stream, write, pieces
    return Pattern("strided", head_bytes, part * num_slots, stride_bytes=part), write, pieces
