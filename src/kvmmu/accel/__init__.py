"""The accelerator: what a KV-MMU is worth in energy, delay and DRAM traffic. No torch.

The way of the data, each arrow one room:

    configs/*.yaml -> spec      what a machine, a DRAM and a model are; every number has its source
    spec -> dram                command-level model: bytes a second and picojoules of a pattern
    spec -> chip                buffers, array, softmax, vector, KV-MMU: pJ, cycles, mm2, leakage
    trace or regular run -> workload    the same events either way, reduced to shapes of steps
    workload, dram, chip -> pipeline    tasks of one step, tile by tile; max-plus time, counted work
    pipeline -> simulate        totals, energy by unit, ratios to every baseline -> report

Work is counted once (bytes by kind, MACs, logits, table accesses) and priced once: time from the
counts through the pipeline, energy from the same counts through chip and dram. Nothing is priced
twice: a figure that holds everything ("all-in" pJ a MAC or a bit) is a cross-check, never a part.
Importing this package loads neither torch nor numba nor pydantic.
"""

from __future__ import annotations
