"""Plan one matrix product of M vectors with a weight matrix [K, N]: loops, bytes, cycles.

The array is output-stationary: M vectors lie on its rows, N outputs on its columns, K passes in
time. Fewer vectors than rows: the rows split K among them and add up. A vector set that does not
stay on chip is either held part by part while all weights pass again (inputs resident), or the
sums are held and both operands stream (outputs resident); the plan with fewer DRAM bytes is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmmu.accel.pipeline.counts import Counts, counts
from kvmmu.accel.pipeline.machine import Machine
from kvmmu.units import bytes_of_bits

__all__ = ["GemmPlan", "plan_gemm"]

ACCUMULATOR_BYTES = 4  # int32: sums of 11,008 products of 8 x 8 bit need 30 bits


@dataclass(frozen=True, eq=False)
class GemmPlan:
    """What a product costs; weight_passes says how often all weights are fetched."""

    loop: str
    weight_passes: int
    input_passes: int
    counts: Counts
    fetch_cycles: int
    array_cycles: int
    num_tiles: int


def plan_gemm(machine: Machine, num_vectors: int, K: int, N: int) -> GemmPlan:
    """Plan [M, K] x [K, N]. M = num_vectors, all lanes together."""
    M, chip = num_vectors, machine.chip
    wb, ab = machine.weight_bytes, machine.activation_bytes
    loop, block, input_passes = _choose(machine, M, K, N)
    blocks = [block] * (M // block) + ([M % block] if M % block else [])
    passes = len(blocks)
    weight = passes * bytes_of_bits(K * N, machine.weight_bits)
    spilled_in = 0 if machine.stays(M * K * ab) else input_passes * M * K * ab
    spilled_out = 0 if machine.stays(M * N * ab) else M * N * ab
    rows, cols = chip.spec.array.rows, chip.spec.array.cols
    weight_use = K * N * wb * sum(-(-m // rows) for m in blocks)
    sums = 0
    if loop == "outputs":  # sums leave the PEs after each slice of K that fits
        slices = max(1, -(-K * block * ab // (machine.activation_capacity // 4)))
        sums = 2 * ACCUMULATOR_BYTES * M * N * (slices - 1)
    act_read = M * K * ab * -(-N // cols) + sums / 2
    act_write = M * N * ab + spilled_in + sums / 2
    multiply_cycles = sum(-(-K * N * -(-m // rows) // (cols * _split(rows, m, K))) for m in blocks)
    port_cycles = max(
        machine.port_cycles("weight", weight_use),
        machine.port_cycles("activation", act_read + act_write),
    )
    array_cycles = max(multiply_cycles, port_cycles)
    weight_cycles = machine.dram_cycles("weight", weight)
    other_cycles = machine.dram_cycles("activation", spilled_in + spilled_out)
    fetch_cycles = weight_cycles + other_cycles
    made = {
        "weight_dram_bytes": weight,
        "activation_dram_bytes": spilled_in + spilled_out,
        "weight_fill_bytes": weight,
        "weight_use_bytes": weight_use,
        "activation_read_bytes": act_read + spilled_out,
        "activation_write_bytes": act_write,
        "gemm_macs": M * K * N,
        "dram_cycles": fetch_cycles,
        "array_cycles": array_cycles,
        "port_cycles": array_cycles if port_cycles > multiply_cycles else 0,
    }
    num_tiles = max(1, -(-weight // machine.weight_tile_bytes))
    return GemmPlan(loop, passes, input_passes, counts(made), fetch_cycles, array_cycles, num_tiles)


def _split(rows: int, vectors: int, K: int) -> int:
    """Return how many parts of K the rows take when vectors are fewer than rows."""
    return max(1, min(rows // max(vectors, 1), K))


def _choose(machine: Machine, M: int, K: int, N: int) -> tuple[str, int, int]:
    """Return (loop, vectors a block, passes over the inputs) with the fewest DRAM bytes."""
    ab, half = machine.activation_bytes, machine.activation_capacity // 2
    if machine.stays(M * K * ab):
        return "inputs", max(M, 1), 1
    weight = bytes_of_bits(K * N, machine.weight_bits)
    options: list[tuple[float, str, int, int]] = []
    held = half // (K * ab)
    if held >= 1:
        options.append((weight * -(-M // held) + M * K * ab, "inputs", held, 1))
    rows = machine.chip.spec.array.rows
    block = rows
    while True:
        columns = half // (ACCUMULATOR_BYTES * block)
        if columns < 1:
            break
        again = -(-N // columns)
        options.append((weight * -(-M // block) + again * M * K * ab, "outputs", block, again))
        if block >= M:
            break
        block = min(2 * block, M)
    if not options:
        machine.refuse_buffer("activation", K * ab)
    _, loop, best, again = min(options)
    return loop, best, again
