"""One step of a batch on the machine: plans of every operation, their tasks, their time.

    shapes -> gemm, attention     plans: bytes, MACs, table visits and cycles, counted once
    plans  -> program             tasks of one layer, tile by tile, each on one unit
    tasks  -> maxplus             start = max(unit free, inputs ready, buffer free)
    steps  -> timing              layers and equal steps, with exact shortcuts

Units work in order, each on one task at a time: DRAM, array, softmax, vector, KV-MMU. The DRAM
fetches in program order, so it runs ahead of the array as far as the double buffers allow: KV of
the next lane under this lane's attention, the next weights under the last lane. Steps do not
overlap: a step's first fetch waits for the sampled token.
"""

from __future__ import annotations
