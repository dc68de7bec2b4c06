"""Single-port SRAM, and the two banks that make a row memory of it.

Contract of a bank: in a cycle with en, one word is read (we = 0) or written (we = 1, the groups of
`granule` bits that wmask marks). rdata is the word in the next cycle, and is not to be used in any
other. Contents are unknown at power-up.

A row memory reads one row and writes another in the same cycle: even rows lie in one bank, odd
rows in the other, and the user reads and writes rows of different parity. The pipeline writes a row
three cycles after it read it, so rows that ascend without a gap never meet; where a gap would make
them meet, the pipeline waits a cycle.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Assert, ClockSignal, Instance, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

__all__ = ["RowMemory", "SinglePortSRAM"]


class SinglePortSRAM(wiring.Component):
    """One SRAM of depth words of width bits.

    macros=True leaves a black box named kvmmu_sram_{depth}x{width}m{granule}.
    Raises ValueError unless granule divides width.
    """

    def __init__(self, depth: int, width: int, *, granule: int | None = None, macros: bool) -> None:
        self.depth = max(2, depth)
        self.width = width
        self.granule = width if granule is None else granule
        self.macros = macros
        if width % self.granule:
            raise ValueError(f"granule must divide width = {width}, got {granule}")
        super().__init__(
            {
                "en": In(1),
                "we": In(1),
                "addr": In((self.depth - 1).bit_length()),
                "wdata": In(width),
                "wmask": In(width // self.granule),
                "rdata": Out(width),
            }
        )

    @property
    def macro_name(self) -> str:
        """Name of the black box's module."""
        return f"kvmmu_sram_{self.depth}x{self.width}m{self.granule}"

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        if self.macros:
            m.submodules.macro = Instance(
                self.macro_name,
                i_clk=ClockSignal(),
                i_en=self.en,
                i_we=self.we,
                i_addr=self.addr,
                i_wdata=self.wdata,
                i_wmask=self.wmask,
                o_rdata=self.rdata,
            )
            return m
        m.submodules.memory = memory = Memory(shape=self.width, depth=self.depth, init=[])
        read = memory.read_port()
        write = memory.write_port(granularity=self.granule)
        m.d.comb += [
            read.en.eq(self.en & ~self.we),
            read.addr.eq(self.addr),
            self.rdata.eq(read.data),
            write.en.eq(Mux(self.en & self.we, self.wmask, 0)),
            write.addr.eq(self.addr),
            write.data.eq(self.wdata),
        ]
        return m


class RowMemory(wiring.Component):
    """Rows in two banks by parity: one read and one write a cycle, of rows of different parity.

    read_data is valid in the cycle after read_en. Raises ValueError unless depth is even.
    """

    def __init__(self, depth: int, width: int, *, granule: int | None = None, macros: bool) -> None:
        if depth % 2:
            raise ValueError(f"depth must be even, got {depth}")
        self._banks = [
            SinglePortSRAM(depth // 2, width, granule=granule, macros=macros) for _ in range(2)
        ]
        row_bits = (depth - 1).bit_length()
        super().__init__(
            {
                "read_en": In(1),
                "read_row": In(row_bits),
                "read_data": Out(width),
                "write_en": In(1),
                "write_row": In(row_bits),
                "write_data": In(width),
                "write_mask": In(width // self._banks[0].granule),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        was_odd = Signal()
        m.d.sync += was_odd.eq(self.read_row[0])
        for parity, bank in enumerate(self._banks):
            m.submodules[("even", "odd")[parity]] = bank
            reads = self.read_en & (self.read_row[0] == parity)
            writes = self.write_en & (self.write_row[0] == parity)
            m.d.comb += [
                bank.en.eq(reads | writes),
                bank.we.eq(writes),
                bank.addr.eq(Mux(writes, self.write_row[1:], self.read_row[1:])),
                bank.wdata.eq(self.write_data),
                bank.wmask.eq(self.write_mask),
            ]
            m.d.sync += Assert(~(reads & writes))
        even, odd = self._banks
        m.d.comb += self.read_data.eq(Mux(was_odd, odd.rdata, even.rdata))
        return m
