"""Arithmetic of one lane's attention in one layer: products, logits, softmax passes, cycles."""

from __future__ import annotations

from math import ceil

from kvmmu.accel.pipeline.machine import Machine

__all__ = ["AttentionWork", "kv_tile_bytes", "logits_room"]

PASSES = {"online": 1, "two_pass": 2, "three_pass": 3}


def kv_tile_bytes(machine: Machine) -> int:
    """Bytes of a tile of whole rows."""
    return machine.kv_tile_bytes // machine.row_bytes * machine.row_bytes


def logits_room(machine: Machine) -> int:
    """Bytes of logits that can wait: all of the buffer.

    The softmax unit works in order, so that it has looked at a group's logits a second time before
    it takes the next group's first tile, and that one waits in the PEs.
    """
    return machine.chip.memories["logits"].capacity_bytes


class AttentionWork:
    """Arithmetic of a lane's attention, scores left out."""

    def __init__(self, machine: Machine, q: int, live: int, *, form: str, heads: int) -> None:
        model, array = machine.model, machine.chip.spec.array
        self.machine, self.q, self.live, self.form = machine, q, live, form
        self.pairs = q * live + q * (q + 1) // 2  # causal: a new token sees itself and those before
        self.logits = model.num_heads * self.pairs
        self.macs = 2 * model.num_heads * model.head_dim * self.pairs
        rows = machine.group * q
        groups = -(-rows // array.rows)
        split = max(1, min(array.rows // rows, model.head_dim))
        keys = self.pairs / q  # keys a query sees, on average
        half = model.num_kv_heads * model.head_dim * keys
        wide = -(-model.head_dim // array.cols) * array.cols / model.head_dim  # PV: D on columns
        self.kv_use = 2 * half * machine.kv_value_bytes * groups
        port = machine.port_cycles("kv", self.kv_use / 2)
        self.outputs = model.num_heads * model.head_dim * q
        # A query's sums are rescaled once a tile, in the PEs that hold them.
        tiles = ceil(live * machine.row_bytes * heads / model.num_kv_heads / kv_tile_bytes(machine))
        self.rescales = self.outputs * max(1, tiles) if form == "online" else 0
        rescale = ceil(self.rescales / (array.rows * array.cols))
        qk = ceil(half * groups / (array.cols * split))
        pv = ceil(half * groups * wide / (array.cols * split)) + rescale
        self.qk_cycles, self.pv_cycles = max(qk, port), max(pv, port)
        self.port_cycles = (port if port > qk else 0) + (port if port > pv else 0)
        ways = machine.chip.spec.softmax.ways
        self.softmax_cycles = ceil(self.logits / ways)
        self.late_cycles = (PASSES[form] - 1) * self.softmax_cycles

    def counts(self) -> dict[str, float]:
        """Return operations and on-chip bytes."""
        n, ab = self.logits, self.machine.activation_bytes
        held = n * self.machine.logit_bytes
        outputs = self.outputs
        made: dict[str, float] = {
            "attention_macs": self.macs,
            "kv_use_bytes": self.kv_use,
            "activation_read_bytes": outputs * ab,
            "activation_write_bytes": outputs * ab,
            "softmax_compare": n,
            "softmax_add": n,
            "softmax_exp": n,
            "port_cycles": self.port_cycles,
        }
        if self.form == "online":  # outputs are rescaled tile by tile, divided once
            made |= {"softmax_mul": self.rescales, "softmax_div": outputs}
        elif self.form == "two_pass":  # the second pass makes each exponential again
            made |= {"softmax_exp": 2 * n, "softmax_mul": n, "softmax_div": self.q}
            made |= {"logits_write_bytes": held, "logits_read_bytes": held}
        else:
            made |= {"softmax_mul": n, "softmax_div": self.q}
            made |= {
                "logits_write_bytes": 2 * held,
                "logits_read_bytes": 2 * held,
            }
        return made
