"""The block's memories in Amaranth's simulator: found by name, filled with old data, read back."""

from __future__ import annotations

import numpy as np
from amaranth.hdl import Fragment, MemoryData
from amaranth.lib.memory import MemoryInstance
from amaranth.sim import SimulatorContext
from numpy.typing import NDArray

from kvmmu.errors import IntegrityError
from kvmmu.fixed_point import MANTISSA_MAX
from kvmmu.rtl.config import SCORE_BITS, BlockConfig
from kvmmu.rtl.ports import header_layout
from kvmmu.rtl.verify.packing import unpack
from kvmmu.rtl.verify.scoreboard import SeenTable

__all__ = ["Contents", "find_memories"]


def find_memories(fragment: Fragment) -> dict[str, MemoryData]:
    """Name every memory of an elaborated design by its path of submodules."""
    found: dict[str, MemoryData] = {}
    for child, name, _ in fragment.subfragments:
        if isinstance(child, MemoryInstance):
            found[str(name)] = child._data
        else:
            found |= {f"{name}.{path}": data for path, data in find_memories(child).items()}
    return found


class Contents:
    """Read and fill the memories of a block that is being simulated.

    Tables are read where all of them are on chip. Raises IntegrityError if a memory is missing.
    """

    def __init__(self, config: BlockConfig, fragment: Fragment) -> None:
        self.config = config
        self._all = find_memories(fragment)
        if config.store == "sram":
            self._words = [self._named(f"words.{bank}") for bank in ("even", "odd")]
            self._positions = [self._named(f"positions.{bank}") for bank in ("even", "odd")]
            self._headers = self._named("headers")

    def scramble(self, ctx: SimulatorContext, rng: np.random.Generator) -> None:
        """Fill all memories as an earlier request might have left them, or at random.

        A table must not lean on what was there: small positions look like old tokens' own.
        """
        config = self.config
        for path, memory in self._all.items():
            width, has_positions = int(memory.shape), "positions" in path
            for row in range(memory.depth):
                bits = int.from_bytes(rng.bytes(-(-width // 8))) % (1 << width)
                if has_positions and rng.random() < 0.8:
                    old = rng.integers(0, 2 * config.slots, config.ways).tolist()
                    bits = sum(p << (n * config.position_bits) for n, p in enumerate(old))
                ctx.set(memory[row], bits)

    def table(self, ctx: SimulatorContext, number: int) -> SeenTable:
        """Read one table; slots not held hold anything."""
        config = self.config
        words = self._slots(ctx, self._words, number, bits=config.word_bits)
        carries = words >> SCORE_BITS > 0
        header = unpack(header_layout(config), ctx.get(self._headers[number]))
        return SeenTable(
            positions=self._slots(ctx, self._positions, number, bits=config.position_bits),
            mantissas=np.where(carries, MANTISSA_MAX, words & MANTISSA_MAX),
            exponent=header["exponent"],
            num_seen=header["position"],
            victim=header["victim"],
        )

    def _slots(
        self, ctx: SimulatorContext, banks: list[MemoryData], number: int, *, bits: int
    ) -> NDArray[np.int64]:
        """Gather a table's rows from the two banks and cut them into slots [slots]."""
        config = self.config
        cut: list[int] = []
        for row in range(number * config.rows, (number + 1) * config.rows):
            whole = ctx.get(banks[row % 2][row // 2])
            cut += [(whole >> (bits * way)) & ((1 << bits) - 1) for way in range(config.ways)]
        return np.array(cut, dtype=np.int64)

    def _named(self, part: str) -> MemoryData:
        found = [data for path, data in self._all.items() if f".{part}." in f".{path}."]
        if len(found) != 1:
            raise IntegrityError(
                f"the design must have one memory {part!r}, got {sorted(self._all)}"
            )
        return found[0]
