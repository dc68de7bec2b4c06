"""Cycles of the KV-MMU in decode, as its RTL takes them (`kvmmu.rtl`; a test compares the two).

A table is a stream of rows of `ways` slots, `beats` beats a row (one a query head), a beat a cycle.
The search runs along: the victim is known LATENCY_CYCLES after the last beat, and the next table's
beats follow without a gap, but for two cases: the SRAM's two banks take turns row by row, so that
an odd count of short rows costs a cycle, and a short table waits for the context of the one before
the last. Tables backed in DRAM change places in two buffers while another table's rows pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = [
    "AS_BUILT",
    "LATENCY_CYCLES",
    "WAYS",
    "MmuTiming",
    "num_rows",
    "rescale_cycles",
    "stream_cycles",
    "swap_cycles",
]

LATENCY_CYCLES = 6
"""From a table's last beat until its victim stands in its header."""
WAYS = (2, 4, 8, 16, 32, 64)
"""Ways that the RTL is built with."""
_CONTEXT_CYCLES = 8  # from a table's last beat until its context can take another table
_SWAP_CYCLES = 6  # header out, the last row taken, request, header in, the turn to the next
_RESCALE_CYCLES = 10  # at most, besides its rows: until the pipeline is empty, before and after


@dataclass(frozen=True)
class MmuTiming:
    """Say which of the KV-MMU's times a pipeline has: all but rescales, or some, to tell causes.

    takes_input: beats; searches: the latency behind them; swaps: tables change places on chip;
    moves_tables: their bytes cross the DRAM's pins; rescales: every table, at every step.
    """

    takes_input: bool = True
    searches: bool = True
    swaps: bool = True
    moves_tables: bool = True
    rescales: bool = False

    def without(self, *names: str) -> MmuTiming:
        """Return the timing without some of its parts."""
        return replace(self, **dict.fromkeys(names, False))


AS_BUILT = MmuTiming()


def num_rows(slots: int, ways: int) -> int:
    """Return the rows of a table's held slots."""
    return -(-slots // ways)


def _pair_cycles(rows: int, beats: int) -> int:
    """Cycles of two tables in a row, from first beat to first beat, at most, tables on chip."""
    stream = rows * beats
    return max(2 * (stream + _turn_cycles(rows, beats)), stream + _CONTEXT_CYCLES)


def _turn_cycles(rows: int, beats: int) -> int:
    """Cycles that a table's last row costs the next one's first: both want the same bank."""
    return rows % 2 if beats < 4 else 0


def swap_cycles(rows: int, latency_cycles: int) -> int:
    """Cycles to send one table's image out, two a row, and take another's in, one a row.

    latency_cycles: from the request to the image's first beat.
    """
    return 3 * rows + _SWAP_CYCLES + latency_cycles


def stream_cycles(rows: int, beats: int, tables: int, *, latency_cycles: int | None = None) -> int:
    """Cycles in which `tables` tables in a row take their beats, at most.

    With latency_cycles each but the first is swapped in under the one before it.
    """
    stream, pair = rows * beats, _pair_cycles(rows, beats)
    if latency_cycles is not None:
        swap = swap_cycles(rows, latency_cycles)
        # A buffer is free when its table's victim is known: one table passes, one is swapped.
        pair = max(pair, 2 * swap, stream + swap + LATENCY_CYCLES)
    return stream + _turn_cycles(rows, beats) + -(-(tables - 1) * pair // 2)


def rescale_cycles(rows: int) -> int:
    """Cycles that one rescale holds the stream up, at most."""
    return rows + _RESCALE_CYCLES
