"""The DRAM patterns that ship are those that a first run asks for, and what the model gives."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from kvmmu.accel.dram.cache import SHIPPED
from kvmmu.accel.dram.patterns import pattern_cost

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "ship_dram_patterns.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("ship_dram_patterns", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_shipped_patterns_are_those_of_this_code(recipe):
    """A change to the DRAM model or a preset makes them useless: run the recipe again."""
    stored = json.loads(SHIPPED.read_text(encoding="utf-8"))
    assert stored.keys() == recipe.wanted().keys()


def check(recipe, tmp_path, step):
    stored = json.loads(SHIPPED.read_text(encoding="utf-8"))
    for key, (spec, pattern) in list(recipe.wanted().items())[::step]:
        pattern_cost(spec, pattern, cache_dir=tmp_path)  # a folder by name: nothing shipped is read
        made = json.loads((tmp_path / "dram" / f"{key}.json").read_text(encoding="utf-8"))
        assert made == stored[key], pattern


def test_a_shipped_pattern_is_what_the_model_gives(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("kvmmu.accel.dram.patterns._memo", {})
    check(recipe, tmp_path, step=40)


@pytest.mark.slow
def test_every_shipped_pattern_is_what_the_model_gives(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("kvmmu.accel.dram.patterns._memo", {})
    check(recipe, tmp_path, step=1)


def test_a_first_run_simulates_no_pattern(tmp_path, monkeypatch):
    from kvmmu.accel.request import Request
    from kvmmu.accel.simulate import simulate

    def refuse(*arguments):
        raise AssertionError(f"simulated {arguments[1]}")

    monkeypatch.setenv("KVMMU_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("kvmmu.accel.dram.patterns._memo", {})
    monkeypatch.setattr("kvmmu.accel.dram.patterns._simulate", refuse)
    simulate(Request(num_slots=512))
    simulate(
        Request(
            model="kvmmu-ref-1m",
            batch=1,
            prompt=448,
            generate=64,
            num_slots=64,
            granularity="head",
        ),
        names=("full_8bit",),
    )
