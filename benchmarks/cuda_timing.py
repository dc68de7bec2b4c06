"""How bench_cuda times: by events, replayed CUDA graphs, and a copy measured in the same run."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["captured", "copy_bytes_per_s", "fits", "median_ms"]


def captured(run: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    """Capture a function that has no inputs, after two runs on a side stream."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def median_ms(run: Callable[[], Any], *, rounds: int = 11, budget_ms: float = 60.0) -> float:
    """Time a function by events: the median over rounds of about `budget_ms` in all."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")
    for _ in range(2):
        run()
    times: list[float] = []
    repeats = 1
    for i in range(rounds + 1):
        begin.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        took = begin.elapsed_time(end) / repeats
        if i == 0:  # the first only says how often
            repeats = max(1, min(200, int(budget_ms / rounds / max(took, 1e-3))))
        else:
            times.append(took)
    return statistics.median(times)


def copy_bytes_per_s() -> float:
    """Measure a copy of a gigabyte on the device: bytes read and written a second."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / (median_ms(lambda: target.copy_(source), budget_ms=200) * 1e-3)


def fits(num_bytes: int) -> bool:
    """Say whether so many bytes are free, with two gigabytes to spare."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    return num_bytes + 2e9 < free
