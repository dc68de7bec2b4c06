"""One small study, simulated once a process, as the JSON that `kvmmu simulate` writes."""

from __future__ import annotations

import copy
import json
from functools import cache

from kvmmu.accel.request import Request
from kvmmu.accel.study import study

__all__ = ["small_study", "unfitting"]


@cache
def _made():
    request = Request(model="opt_125m", batch=4, prompt=192, generate=64, num_slots=32)
    return json.loads(json.dumps(study(request).to_json()))


def small_study():
    """Return a copy of the study, free to be changed."""
    return copy.deepcopy(_made())


def unfitting():
    """Return the study as it would be if the full cache in our own bits did not fit the DRAM."""
    made = small_study()
    full = made["simulation"]["baselines"][0]
    assert full["name"] == "full_8bit"
    full |= {"fits": False, "capacity_bytes": 23_900_000_000}
    return made
