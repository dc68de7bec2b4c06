"""The demonstration's trace on an accelerator: a table and what it says, everything simulated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvmmu.report.accelerator.cells import Cell, make_grid, number
from kvmmu.report.accelerator.names import bytes_text, energy_text, share_text, time_text, times
from kvmmu.report.evaluation.tables import Grid

__all__ = ["replay_grid", "replay_words"]

Block = Mapping[str, Any]
_MEASURES = {
    "energy_j": ("energy", energy_text),
    "delay_s": ("delay", time_text),
    "dram_bytes": ("DRAM", bytes_text),
    "kv_bytes_read": ("K, V read", bytes_text),
}


def replay_grid(block: Block) -> Grid:
    """Lay out energy, delay and DRAM bytes of the traced cache and of the full one."""
    rows: list[list[Cell]] = []
    for row in block.get("rows", []):
        cells = [number(row["end_to_end"][key], write) for key, (_, write) in _MEASURES.items()]
        rows.append([(row["title"], None), *cells])
    if rows:
        ours, full = (row["end_to_end"] for row in block["rows"][:2])
        ratios = [number(full[key] / max(ours[key], 1e-30), times) for key in _MEASURES]
        name = str(block["rows"][0]["title"]).partition(",")[0].strip()
        rows.append([(f"full / {name}", None), *ratios])
    head = ["cache", *(title for title, _ in _MEASURES.values())]
    title = f"{block['label']} replayed on {block['accelerator']} (simulated)"
    return make_grid(title, head, rows)


def replay_words(block: Block) -> list[str]:
    """Say what was replayed, what it shows and which accuracy does not belong to it."""
    if "refused" in block:
        return [f"Not simulated on {block['accelerator']}: {block['refused']}."]
    energy, delay = (block["ratios"]["end_to_end"]["overlapped"][k] for k in ("energy", "delay"))
    tokens = f"{block['num_tokens']:,} tokens in {block['num_slots']:,} slots"
    bits = block["bits"]
    widths = f"int{bits['weights']} weights, int{bits['kv']} K and V"
    return [
        f"Simulated: the same trace ({block['batch']} row, {tokens}) with the shapes of "
        f"{block['model']} on {block['accelerator']} with {block['dram']}, {widths}: the full "
        f"cache costs {times(energy)} the energy and {times(delay)} the time; the KV-MMU takes "
        f"{share_text(block['mmu_share']['with_collection'])} of all energy.",
        f"No accuracy belongs to these simulated figures: {block['accuracy']}.",
    ]
