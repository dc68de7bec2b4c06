"""What a step does, counted once: time and energy are both taken from these counts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CHUNK_COMMANDS",
    "COUNT_NAMES",
    "CYCLES",
    "DRAM_KINDS",
    "INDEX",
    "OPERATIONS",
    "SRAM_KINDS",
    "WAITS",
    "Counts",
    "counts",
    "zero_counts",
]

Counts = NDArray[np.float64]
"""One float64 for each of COUNT_NAMES; whole numbers below 2**53, so sums are exact."""

DRAM_KINDS = (
    "weight",  # weights, once a step or once a pass over resident vectors
    "kv_read",  # slots of a region in decode
    "kv_read_chunk",  # the same by groups of heads: for a chunk, or where logits are many
    "kv_write",  # new rows into their slots
    "kv_stage",  # a chunk's own rows, kept aside until its losers are known
    "activation",  # activations that do not stay on chip
    "score",  # score tables backed in DRAM
    "embedding",  # input rows
    "page_table",  # block numbers of a paged cache
    "copy",  # lanes copied by a reorder, slots merged
)
SRAM_KINDS = (
    "weight_fill",
    "weight_use",
    "kv_fill",
    "kv_use",
    "activation_read",
    "activation_write",
    "logits_read",
    "logits_write",
    "score_read",
    "score_write",
)
OPERATIONS = (
    "gemm_macs",
    "attention_macs",
    "collect_macs",
    "softmax_compare",
    "softmax_exp",
    "softmax_mul",
    "softmax_add",
    "softmax_div",
    "collect_exp",
    "collect_mul",
    "vector_ops",
    "mmu_beats",  # probabilities taken, a way each
    "mmu_rows",  # slots visited: decay, add, clamp, compare; a way each
    "mmu_steps",  # tokens admitted: victim, position, address, header; a table each
    "mmu_images",  # slots of images moved out and in, a header's beat counted as a row's
)
CHUNK_COMMANDS = ("kv_chunk_activates", "kv_chunk_bursts")
"""DRAM commands of reads by groups of heads: their pattern is the plan's, so is their count."""
WAITS = ("port_cycles",)
"""Cycles in which the array works no faster than a buffer's port."""
CYCLES = ("dram_cycles", "array_cycles", "softmax_cycles", "vector_cycles", "mmu_cycles")
COUNT_NAMES = (
    *(f"{kind}_dram_bytes" for kind in DRAM_KINDS),
    *(f"{kind}_bytes" for kind in SRAM_KINDS),
    *OPERATIONS,
    *CHUNK_COMMANDS,
    *CYCLES,
    *WAITS,
)
INDEX = {name: i for i, name in enumerate(COUNT_NAMES)}


def zero_counts() -> Counts:
    """Return counts of nothing."""
    return np.zeros(len(COUNT_NAMES))


def counts(given: Mapping[str, float]) -> Counts:
    """Return counts from names; raises KeyError for a name that is not counted."""
    made = zero_counts()
    for name, value in given.items():
        made[INDEX[name]] = value
    return made
