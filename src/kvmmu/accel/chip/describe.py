"""Say what a chip is: the resolved configuration and prices, each with its source."""

from __future__ import annotations

from pydantic import BaseModel

from kvmmu.accel.chip.chip import Chip
from kvmmu.accel.spec.accelerator import AcceleratorSpec, balance
from kvmmu.accel.spec.scaling import area_factor, geometric_area_factor
from kvmmu.accel.spec.sourced import Band
from kvmmu.accel.spec.tables import load_arithmetic, load_sram

__all__ = ["describe"]

_TEXT = ("name", "title", "dataflow", "dram", "layout")


def describe(
    spec: AcceleratorSpec, chip: Chip, *, bandwidth_gbps: float | None = None, batch: int = 16
) -> list[tuple[str, str]]:
    """Return (key, value with its source) pairs: specification, bank, prices, area, leakage.

    With `bandwidth_gbps` the machine balance at `batch` is one of them.
    """
    lines = [(key, str(getattr(spec, key))) for key in _TEXT]
    lines.append(("corner", chip.corner))
    for key, section in spec:
        if isinstance(section, BaseModel):
            lines += _section(key, section)
    if bandwidth_gbps is not None:
        ratio = balance(spec, bandwidth_gbps, batch)
        text = f"{ratio:.2f} at batch {batch} and {bandwidth_gbps:g} GB/s"
        lines.append(("PEs / (BW x B / f)", text))
    if spec.all_in is None:
        lines += _bank(spec, chip)
    lines += _prices(chip)
    lines += _sums(chip)
    return lines


def _section(key: str, section: BaseModel) -> list[tuple[str, str]]:
    return [(f"{key}.{name}", _text(value)) for name, value in section if value is not None]


def _text(value: object) -> str:
    if isinstance(value, Band):
        return f"{value.low:g} / {value.nominal:g} / {value.high:g}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _bank(spec: AcceleratorSpec, chip: Chip) -> list[tuple[str, str]]:
    table, bank = (
        load_sram(spec.process.node_nm),
        spec.bank(spec.buffers.bank_kib, corner=chip.corner),
    )
    native = table.flavours[spec.process.sram_flavour].native_vdd_v
    nodes = {"to_node": spec.process.node_nm}
    return [
        (
            "SRAM bank",
            f"{bank.kib:g} KiB, {bank.port_bits:g} bit {spec.process.sram_flavour}: read "
            f"{bank.read_pj:.1f} pJ, write {bank.write_pj:.1f} pJ, {bank.leakage_mw:.3g} mW, "
            f"{bank.access_ns:.2f} ns, {bank.area_mm2:.3f} mm2 at {spec.process.vdd_v:g} V "
            f"(table at {native:g} V)",
        ),
        ("SRAM bank.source", table.source),
        ("SRAM corners.source", table.corners.source),
        (
            f"area 45 -> {spec.process.node_nm} nm",
            f"x{area_factor(45, **nodes):.2f} by the fit, "
            f"x{geometric_area_factor(45, **nodes):.2f} geometric",
        ),
    ]


def _prices(chip: Chip) -> list[tuple[str, str]]:
    mmu, softmax = chip.mmu, chip.softmax
    array_pj = chip.mac_pj + chip.pe_register_pj_per_mac + chip.clock_noc_pj_per_mac
    lines = [
        ("MAC, weights", f"{chip.mac_pj:.3f} pJ"),
        ("MAC, KV", f"{chip.attention_mac_pj:.3f} pJ"),
        ("PE registers", f"{chip.pe_register_pj_per_mac:.3f} pJ/MAC"),
        ("clock and network", f"{chip.clock_noc_pj_per_mac:.3f} pJ/MAC"),
        ("array, all parts", f"{array_pj:.3f} pJ/MAC without SRAM and leakage"),
        *((f"softmax {name}", f"{pj:.3f} pJ") for name, pj in vars(softmax).items()),
        ("vector operation", f"{chip.vector_op_pj:.3f} pJ"),
        *((f"KV-MMU {name}", f"{pj:.3f} pJ") for name, pj in vars(mmu).items()),
    ]
    if chip.spec.all_in is not None:
        return lines
    table = load_arithmetic()
    lines.append(
        (
            "operations.source",
            "; ".join(
                f"{name}: {getattr(band, chip.corner).source}"
                for name, band in table.operations.items()
            ),
        )
    )
    return lines


def _sums(chip: Chip) -> list[tuple[str, str]]:
    memories = [
        (
            f"{name} memory",
            f"{memory.capacity_bytes:,} bytes, {memory.port_bytes_per_cycle} bytes a cycle, "
            f"read {memory.read_pj_per_byte:.2f}, write {memory.write_pj_per_byte:.2f} pJ/byte",
        )
        for name, memory in chip.memories.items()
    ]
    units = [
        (f"{unit} area, leakage", f"{area:.4f} mm2, {chip.leakage_w[unit] * 1e3:.4f} mW")
        for unit, area in chip.area_mm2.items()
    ]
    total = f"{chip.total_area_mm2:.3f} mm2, {chip.total_leakage_w * 1e3:.3f} mW"
    return [*memories, *units, ("total area, leakage", total)]
