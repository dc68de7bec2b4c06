"""Budgets: what every registered one promises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmmu.budgets.base import BUDGETS


@pytest.mark.parametrize("name", BUDGETS.names())
@given(num_layers=st.integers(1, 100), num_slots=st.integers(1, 5000))
def test_budget_gives_every_layer_slots_and_no_more_than_asked(name, num_layers, num_slots):
    budget = BUDGETS.make(name)
    slots = budget.allocate(num_layers=num_layers, num_slots=num_slots)
    assert len(slots) == num_layers
    assert min(slots) >= 1
    assert sum(slots) == num_layers * num_slots  # num_slots is the mean
    assert slots == budget.allocate(num_layers=num_layers, num_slots=num_slots)
    assert all(type(count) is int for count in slots)


def test_uniform_gives_every_layer_the_same():
    assert BUDGETS.make("uniform").allocate(num_layers=3, num_slots=7) == (7, 7, 7)
