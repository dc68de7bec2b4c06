"""The emitted Verilog answers as the model does under cocotb and Icarus Verilog."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("amaranth", reason="the RTL needs amaranth")
pytest.importorskip("cocotb", reason="the bench needs cocotb")
if shutil.which("iverilog") is None:
    pytest.skip("the bench needs Icarus Verilog (iverilog)", allow_module_level=True)

from rtl_cases import Case

from kvmmu.rtl.emit import emit
from kvmmu.rtl.verify import traces
from kvmmu.rtl.verify.bench.run import run_bench
from kvmmu.rtl.verify.stimuli import draw_items, draw_settings

DATA = Path(__file__).parent / "data"


def bench(case, folder, **more):
    rng = np.random.default_rng(case.seed)
    settings = draw_settings(rng, case.config)
    items = draw_items(rng, case.config, settings=settings, num_steps=case.num_steps)
    return run_bench(case.config, folder, settings=settings, items=items, seed=case.seed, **more)


def test_emitted_verilog_answers_as_the_model(tmp_path):
    result = bench(Case(6, 120), tmp_path)
    assert result.failure == ""
    assert result.steps == 120


def test_broken_verilog_fails_the_bench(tmp_path):
    block, sram = emit(Case(6, 1).config, tmp_path).sources
    text = block.read_text()
    old = "takes_left"
    lines = [line for line in text.splitlines() if " <= " in line and old in line]
    assert lines
    broken = text.replace(lines[0], lines[0].replace(" <= ", " > "))
    block.write_text(broken)
    result = bench(Case(6, 120), tmp_path, sources=(block, sram))
    assert "wanted" in result.failure


@pytest.mark.slow
@pytest.mark.parametrize("seed", [301, 302, 303, 304])
def test_many_random_steps_answer_as_the_model(tmp_path, seed):
    result = bench(Case(seed, 1500), tmp_path, gap=0.2)
    assert result.failure == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["layer", "head"])
def test_whole_trace_answers_as_the_model(tmp_path, name):
    trace = traces.read_decodes(DATA / f"{name}.trace")
    traces.qualify(trace)
    config, settings = traces.block_of(trace, ways=16, beats=2)
    items = list(traces.trace_items(trace, ways=16, beats=2))
    result = run_bench(config, tmp_path, settings=settings, items=items)
    assert result.failure == ""
    assert result.steps == sum(item.recorded_slot is not None for item in items)
