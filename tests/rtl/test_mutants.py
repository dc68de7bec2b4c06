"""Each way in which the block could be wrong is caught by the random cosimulation.

A mutant is the core's source with one text replaced. The core is copied to a package of another
name, so that the true one stays as it is.
"""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("amaranth", reason="the RTL needs amaranth")

from rtl_cases import Case
from rtl_mutants import MUTANTS, NAMED, load

SEEDS = (2, 6, 13, 5, 8, 17)


@pytest.fixture
def block_of(tmp_path, monkeypatch):
    """Load mutants under names of their own and forget them afterwards."""
    made = []

    def make(mutant):
        name = f"mutant_core_{len(made)}_{tmp_path.name}"
        made.append(name)
        return load(mutant, tmp_path, monkeypatch, name)

    yield make
    for module in [key for key in sys.modules if key.partition(".")[0] in made]:
        del sys.modules[module]


def is_caught(block, store="sram", seeds=SEEDS) -> bool:
    """Run the quick cosimulation until it differs; the SRAM's own assertion counts too."""
    for seed in seeds:
        try:
            if not Case(seed, 120, store=store).run(block).is_equal:
                return True
        except AssertionError:
            return True
    return False


def test_block_without_a_mutation_passes(block_of):
    assert not is_caught(block_of(None), seeds=SEEDS[:2])


@pytest.mark.slow
def test_block_without_a_mutation_passes_every_case(block_of):
    assert not is_caught(block_of(None))


@pytest.mark.slow
def test_block_that_swaps_without_a_mutation_passes(block_of):
    assert not is_caught(block_of(None), "dram")


@pytest.mark.parametrize("mutant", NAMED, ids=lambda mutant: mutant.name)
def test_mutant_is_caught(block_of, mutant):
    assert is_caught(block_of(mutant), mutant.store)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS[len(NAMED) :], ids=lambda mutant: mutant.name)
def test_further_mutant_is_caught(block_of, mutant):
    assert is_caught(block_of(mutant), mutant.store)
