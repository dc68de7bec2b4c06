"""Small machines and runs for the accelerator's tests."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from kvmmu.accel.chip.chip import MmuTables, build_chip
from kvmmu.accel.designs import rce
from kvmmu.accel.dram.spec import load_dram
from kvmmu.accel.pipeline.machine import Machine
from kvmmu.accel.spec.load import load_accelerator, load_model

__all__ = ["IdealMachine", "make_machine"]


class IdealMachine(Machine):
    """A machine whose DRAM always runs at `ideal_gbps` and whose ports hold nothing up."""

    ideal_gbps = 25.6

    def dram_cycles(self, kind, num_bytes, *, heads=None):
        if kind in ("kv_write", "embedding", "activation"):
            return 0
        return ceil(num_bytes * self.chip.spec.clock.clock_mhz / (1e3 * self.ideal_gbps))

    def port_cycles(self, memory, num_bytes):
        return 0


def make_machine(
    accelerator="jetcas65",
    model="llama_7b",
    *,
    batch=16,
    num_slots=512,
    kv_bits=8,
    form="two_pass",
    granularity="layer",
    layout="slot",
    dram=None,
    overrides=None,
    cls=Machine,
    **changes,
):
    """Build the machine of our design; `changes` replace fields of the design."""
    spec = load_accelerator(accelerator).with_overrides(overrides or {})
    model = load_model(model)
    design = rce(
        num_slots=num_slots, kv_bits=kv_bits, form=form, granularity=granularity, layout=layout
    )
    design = replace(design, **changes)
    tables = None
    if design.has_scores:
        tables = MmuTables.of(
            spec,
            batch=batch,
            num_layers=model.num_layers,
            num_kv_heads=model.num_kv_heads,
            slots=num_slots,
            granularity=granularity,
        )
    chip = build_chip(spec, mmu_tables=tables)
    return cls(chip, load_dram(dram or spec.dram), model, design, batch)
