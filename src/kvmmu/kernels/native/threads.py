"""How many threads a native call runs on."""

from __future__ import annotations

from typing import Any

import numba
import torch

__all__ = ["num_threads", "set_threads"]

_config: Any = numba.config  # its names are made at run time

_chosen: list[int] = []
"""The number that set_threads fixed, if any."""

_launched: list[bool] = []
"""Holds something once numba has its pool of threads."""


def num_threads() -> int:
    """Return the threads that native kernels use: as set, else as many as PyTorch."""
    if not _launched:
        _launch()
    if _chosen:
        return _chosen[0]
    return min(torch.get_num_threads(), int(_config.NUMBA_NUM_THREADS))


def set_threads(num: int | None) -> None:
    """Fix the threads of native kernels in this process; None: as many as PyTorch uses.

    Raises ValueError outside 1..NUMBA_NUM_THREADS (numba's own limit, by default all CPUs).
    """
    limit = int(_config.NUMBA_NUM_THREADS)
    if num is not None and not 1 <= num <= limit:
        raise ValueError(f"number of threads must be in 1..{limit}, got {num!r}")
    _chosen[:] = [] if num is None else [num]


def _launch() -> None:
    """Have numba make its pool. It sets OpenMP's number of threads, which is PyTorch's too."""
    before = torch.get_num_threads()
    numba.get_num_threads()
    torch.set_num_threads(before)
    _launched.append(True)
