"""What a beat, a row, a step, a cycle and a swap cost, fitted to replays: for an accelerator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvmmu.rtl.gates.energy import Energy
from kvmmu.rtl.replay import Replay

__all__ = ["Costs", "fit_costs"]


@dataclass(frozen=True)
class Costs:
    """Give the logic's energy by what it does, in pJ; SRAM and leakage stand apart.

    A cycle costs cycle_pj whether or not anything moves (the flip-flops' clock pins); a beat, a row
    and a step cost theirs on top, and so does a beat of a table's image that goes to DRAM or comes
    back: 0 where all tables are on chip. largest_residual: of the runs' energies, relative, that
    these do not explain.
    """

    beat_pj: float
    row_pj: float
    step_pj: float
    cycle_pj: float
    image_beat_pj: float
    largest_residual: float


def fit_costs(runs: Sequence[tuple[Replay, Energy]]) -> Costs:
    """Fit the costs, none below 0, by least squares of relative error.

    Raises ValueError for fewer runs than costs, or runs that do not tell these apart.
    """
    counts = np.array(
        [
            [done.beats, done.rows, done.steps, energy.cycles, done.image_beats]
            for done, energy in runs
        ],
        float,
    ).reshape(-1, 5)
    swaps = bool(counts[:, 4].any())
    used = counts if swaps else counts[:, :4]
    least = used.shape[1]
    if len(runs) < least:
        raise ValueError(f"runs must be at least {least}, got {len(runs)}")
    wanted = np.array([_logic_pj(energy) for _, energy in runs])
    scaled = used / wanted[:, None]
    rank = np.linalg.matrix_rank(scaled)
    if rank < least:
        what = "beats, rows, steps, cycles" + " and beats of images" * swaps
        raise ValueError(f"runs must differ in {what}, got rank {rank}")
    solution = _not_negative(scaled)
    worst = float(np.abs(scaled @ solution - 1).max())
    beat, row, step, cycle = map(float, solution[:4])
    return Costs(beat, row, step, cycle, float(solution[4]) if swaps else 0.0, worst)


def _not_negative(scaled: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve scaled @ x = 1 by least squares with x >= 0: nothing gives energy back.

    Tries every set of columns that may be above 0; of five there are 31.
    """
    rows, columns = scaled.shape
    best, least = np.zeros(columns), np.inf
    for chosen in range(1, 1 << columns):
        places = [place for place in range(columns) if chosen >> place & 1]
        part, *_ = np.linalg.lstsq(scaled[:, places], np.ones(rows), rcond=None)
        error = float(np.square(scaled[:, places] @ part - 1).sum())
        if (part >= 0).all() and error < least:
            best, least = np.zeros(columns), error
            best[places] = part
    return best


def _logic_pj(energy: Energy) -> float:
    parts = energy.parts
    return parts.internal_pj + parts.switching_pj + parts.clock_pj
