"""What a beat, a row, a step, a cycle and a swap cost, fitted to replays."""

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
    """Give energies by what is done, in pJ: the logic's, and the SRAM's accesses; leakage apart.

    A cycle costs cycle_pj whether or not anything moves (the flip-flops' clock pins); a beat, a row
    and a step cost theirs on top, and so does a beat of a table's image that goes to DRAM or comes
    back: 0 where all tables are on chip. largest_residual, sram_largest_residual: of the runs'
    energies, relative, that these do not explain.
    """

    beat_pj: float
    row_pj: float
    step_pj: float
    cycle_pj: float
    image_beat_pj: float
    largest_residual: float
    sram_row_pj: float
    sram_step_pj: float
    sram_image_beat_pj: float
    sram_largest_residual: float


def fit_costs(runs: Sequence[tuple[Replay, Energy]]) -> Costs:
    """Fit the costs, none below 0, by least squares of relative error.

    Raises ValueError for fewer runs than the logic has costs, or runs that do not tell them apart.
    """
    counts = np.array(
        [
            [done.beats, energy.cycles, done.rows, done.steps, done.image_beats]
            for done, energy in runs
        ],
        float,
    ).reshape(-1, 5)
    if not counts[:, 4].any():  # all tables are on chip
        counts = counts[:, :4]
    least = counts.shape[1]
    if len(runs) < least:
        raise ValueError(f"runs must be at least {least}, got {len(runs)}")
    (beat, cycle, row, step, *image), worst = _fit(counts, [_logic_pj(e) for _, e in runs])
    (sram_row, sram_step, *sram_image), sram_worst = _fit(
        counts[:, 2:], [_sram_pj(e) for _, e in runs]
    )
    return Costs(
        beat_pj=beat,
        row_pj=row,
        step_pj=step,
        cycle_pj=cycle,
        image_beat_pj=sum(image),
        largest_residual=worst,
        sram_row_pj=sram_row,
        sram_step_pj=sram_step,
        sram_image_beat_pj=sum(sram_image),
        sram_largest_residual=sram_worst,
    )


def _fit(counts: NDArray[np.float64], wanted_pj: Sequence[float]) -> tuple[list[float], float]:
    """Return what each count costs, and the largest relative error; 0 where nothing was spent."""
    wanted = np.array(wanted_pj)
    if not wanted.any():
        return [0.0] * counts.shape[1], 0.0
    scaled = counts / wanted[:, None]
    rank = np.linalg.matrix_rank(scaled)
    if rank < counts.shape[1]:
        raise ValueError(
            f"runs must differ in beats, rows, steps, cycles and beats of images, got rank {rank}"
        )
    solution = _not_negative(scaled)
    return solution.tolist(), float(np.abs(scaled @ solution - 1).max())


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


def _sram_pj(energy: Energy) -> float:
    parts = energy.parts
    return parts.sram_read_pj + parts.sram_write_pj + parts.sram_idle_pj + parts.sram_pins_pj
