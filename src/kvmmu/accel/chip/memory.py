"""Memories of the chip: like SRAM banks beside each other, priced by the byte.

A memory of whole banks costs its banks; one smaller than a bank is a bank of its own size. The
wires between banks belong to the clock and network share of the array, not to a memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmmu.accel.spec.accelerator import AcceleratorSpec
from kvmmu.accel.spec.sourced import Corner
from kvmmu.accel.spec.tables import load_sram
from kvmmu.units import BITS_PER_BYTE, KIB

__all__ = ["Memory", "build_memory", "no_memory"]


@dataclass(frozen=True)
class Memory:
    """One buffer: a read or write moves up to `port_bytes_per_cycle` in each cycle."""

    name: str
    capacity_bytes: int
    port_bytes_per_cycle: int
    read_pj_per_byte: float
    write_pj_per_byte: float
    leakage_w: float
    area_mm2: float
    latency_cycles: int


def no_memory(name: str) -> Memory:
    """Return the memory of a chip that has none of this kind."""
    return Memory(name, 0, 0, 0.0, 0.0, 0.0, 0.0, 0)


def build_memory(
    spec: AcceleratorSpec, name: str, capacity_bytes: int, port_bytes: int, *, corner: Corner
) -> Memory:
    """Return a memory of at least `capacity_bytes` and `port_bytes` a cycle. Raises SpecError.

    Where energy is given all-in, the figure holds the SRAM: prices, leakage and area are zero.
    """
    if spec.all_in is not None:
        cycles = spec.process.sram_read_cycles
        return Memory(name, capacity_bytes, port_bytes, 0.0, 0.0, 0.0, 0.0, cycles)
    bank_bytes = spec.buffers.bank_kib * KIB
    bytes_per_port = spec.buffers.port_bits / BITS_PER_BYTE
    num_ports = -(-port_bytes // int(bytes_per_port))
    if capacity_bytes > bank_bytes * num_ports:
        kib, num_banks = float(spec.buffers.bank_kib), -(-capacity_bytes // bank_bytes)
    else:  # smaller banks, one a port; the table's smallest if less is asked for
        smallest, _ = load_sram(spec.process.node_nm).size_range_kib()
        kib, num_banks = max(smallest, capacity_bytes / num_ports / KIB), num_ports
    bank = spec.bank(kib, corner=corner)
    return Memory(
        name=name,
        capacity_bytes=capacity_bytes,
        port_bytes_per_cycle=port_bytes,
        read_pj_per_byte=bank.read_pj / bytes_per_port,
        write_pj_per_byte=bank.write_pj / bytes_per_port,
        leakage_w=num_banks * bank.leakage_mw / 1e3,
        area_mm2=num_banks * bank.area_mm2,
        latency_cycles=spec.process.sram_read_cycles,
    )
