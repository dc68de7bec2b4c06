"""The one place where units are converted. Sizes are bytes unless their name says bits.

1 GB = 1e9 bytes, 1 GiB = 2**30 bytes; GB/s (`_gbps`) is 1e9 bytes a second.
"""

from __future__ import annotations

__all__ = [
    "BITS_PER_BYTE",
    "GB",
    "GIB",
    "KIB",
    "MIB",
    "PJ_PER_J",
    "bytes_of_bits",
    "cycles_of_ns",
    "joules_of_pj",
    "ns_of_cycles",
    "seconds_of_cycles",
]

BITS_PER_BYTE = 8
KIB, MIB, GIB = 2**10, 2**20, 2**30
GB = 10**9
PJ_PER_J = 1e12


def bytes_of_bits(count: int, width_bits: int) -> int:
    """Return the whole bytes that hold `count` values of `width_bits` bits each."""
    return -(-count * width_bits // BITS_PER_BYTE)


def ns_of_cycles(cycles: float, *, clock_mhz: float) -> float:
    """Return how many nanoseconds `cycles` take."""
    return cycles * 1e3 / clock_mhz


def cycles_of_ns(time_ns: float, *, clock_mhz: float) -> float:
    """Return how many cycles, not rounded, `time_ns` is."""
    return time_ns * clock_mhz / 1e3


def seconds_of_cycles(cycles: float, *, clock_mhz: float) -> float:
    """Return how many seconds `cycles` take."""
    return cycles / (clock_mhz * 1e6)


def joules_of_pj(energy_pj: float) -> float:
    """Return picojoules as joules."""
    return energy_pj / PJ_PER_J
