"""CapturedStep: a lane class's whole decode step as one CUDA graph.

Slots of constant size make every decode step the same launches on the same addresses, so one
capture serves all steps of a lane class until it is closed: nothing is recompiled, bucketed or
captured again as texts grow. A replay costs one launch where the step has hundreds.

What is captured reads three static tensors and writes one. Warm-up and capture run with every
row's lane -1, and a row without a lane writes nothing, so no lane's slots change. Whatever a step
allocates for good (scratch of kernels) it must allocate in the warm-up; what it allocates in
passing lives in the graph's own memory. A replay runs on the current stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Capture", "CapturedStep", "Graph", "capture_graph"]

_WARMUPS = 3
"""Runs before the capture: the first compiles kernels, the second plans libraries' workspaces."""


class Graph(Protocol):
    """What a capture returns: torch.cuda.CUDAGraph, or a test's."""

    def replay(self) -> None:
        """Do again what was captured, on the same tensors."""
        ...


Capture = Callable[[Callable[[], Tensor], torch.device], tuple[Graph, Tensor]]
"""Warm a function up, capture one run of it, return the graph and the tensor it writes."""


class CapturedStep:
    """Replay one decode step for up to `num_rows` rows.

    `step` takes tokens int64, positions int32 and lanes int32, all [num_rows], lane -1 = no token
    in this row, and returns one tensor whose first dimension is num_rows. It must not touch the
    host (no .item(), no shape that depends on data), and the tensors it closes over must stay.
    Raises ValueError if the device is none of CUDA's: there the engine runs the step as it is.
    """

    def __init__(
        self,
        step: Callable[[Tensor, Tensor, Tensor], Tensor],
        *,
        num_rows: int,
        device: torch.device | str,
        capture: Capture | None = None,
    ) -> None:
        if num_rows < 1:
            raise ValueError(f"num_rows must be at least 1, got {num_rows!r}")
        device = torch.device(device)
        capture = capture_graph if capture is None else capture
        self.num_rows = num_rows
        self._tokens = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._positions = torch.zeros(num_rows, dtype=torch.int32, device=device)
        self._lanes = torch.full((num_rows,), -1, dtype=torch.int32, device=device)
        self._graph, self._out = capture(
            lambda: step(self._tokens, self._positions, self._lanes), device
        )
        if self._out.shape[0] != num_rows:
            raise ValueError(
                f"a captured step must return one row per row, {num_rows}, "
                f"got a shape of {tuple(self._out.shape)}"
            )

    def __call__(self, tokens: Tensor, positions: Tensor, lanes: Tensor) -> Tensor:
        """Run one step. All [N], N <= num_rows -> the first N rows of what the step returns.

        The result is a view of the graph's own output: the next call overwrites it. Inputs may
        be on the host (pinned ones are copied without waiting) or on the device. Raises
        ValueError for more rows than were captured or inputs of unequal length.
        """
        N = tokens.shape[0]
        if self.num_rows < N:
            raise ValueError(f"rows of a step must be at most {self.num_rows}, got {N}")
        for name, x in (("tokens", tokens), ("positions", positions), ("lanes", lanes)):
            if x.shape != (N,):  # copy_ would broadcast it
                raise ValueError(f"{name} must have shape ({N},), got {tuple(x.shape)}")
        self._tokens[:N].copy_(tokens, non_blocking=True)
        self._positions[:N].copy_(positions, non_blocking=True)
        self._lanes[:N].copy_(lanes, non_blocking=True)
        self._lanes[N:].fill_(-1)  # rows of an earlier, longer step
        self._graph.replay()
        return self._out[:N]


def capture_graph(run: Callable[[], Tensor], device: torch.device) -> tuple[Graph, Tensor]:
    """Warm `run` up on a side stream and capture it as a CUDA graph.

    Raises ValueError if the device is none of CUDA's.
    """
    if device.type != "cuda":
        raise ValueError(
            f"device of a captured step must be cuda, got {device.type!r}; "
            "run the step as it is there"
        )
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARMUPS):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run()
    return graph, out
