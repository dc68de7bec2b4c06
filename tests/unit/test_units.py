"""Units: one place, exact where it must be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmmu import units


@given(count=st.integers(0, 10**9), width=st.integers(1, 64))
def test_bytes_hold_all_bits_and_no_byte_more(count, width):
    made = units.bytes_of_bits(count, width)
    assert 8 * made >= count * width
    assert 8 * (made - 1) < count * width or made == 0


@given(cycles=st.floats(0, 1e15), clock=st.floats(1, 5000))
def test_cycles_and_nanoseconds_are_each_other_s_inverse(cycles, clock):
    there = units.ns_of_cycles(cycles, clock_mhz=clock)
    assert units.cycles_of_ns(there, clock_mhz=clock) == pytest.approx(cycles)
    assert units.seconds_of_cycles(cycles, clock_mhz=clock) == pytest.approx(there / 1e9)


def test_a_gigabyte_is_decimal_and_a_gibibyte_binary():
    assert (units.GB, units.GIB) == (1_000_000_000, 1_073_741_824)
    assert (units.KIB, units.MIB) == (1024, 1024**2)
    assert units.joules_of_pj(1e12) == 1.0
    assert units.ns_of_cycles(500, clock_mhz=500) == 1000.0
