"""Importing the accelerator is cheap, and never brings torch."""

from __future__ import annotations

import json
import subprocess
import sys


def run(code):
    made = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(made.stdout)


def test_import_loads_nothing_heavy_and_is_quick():
    found = run(
        "import json, sys, time; begin = time.process_time(); import kvmmu.accel;"
        "took = time.process_time() - begin;"
        "heavy = [m for m in ('torch', 'numba', 'pydantic', 'yaml', 'matplotlib') "
        "if m in sys.modules]; print(json.dumps([took, heavy]))"
    )
    assert found[1] == []
    assert found[0] < 0.5


def test_a_simulation_never_loads_torch():
    found = run(
        "import json, sys; from kvmmu.accel.simulate import Request, simulate;"
        "simulate(Request(model='gpt2', prompt=32, generate=8, batch=1, num_slots=16), names=());"
        "print(json.dumps([m for m in ('torch', 'transformers') if m in sys.modules]))"
    )
    assert found == []
