"""The single-port SRAM of a bank as behavioural Verilog; synthesis sees the ports alone."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kvmmu.errors import SpecError

__all__ = ["SRAM_NAME", "SramShape", "sram_verilog"]

SRAM_NAME = re.compile(r"kvmmu_sram_(?P<depth>\d+)x(?P<width>\d+)m(?P<granule>\d+)")
"""Name of a bank's module: words, bits of a word, bits that one bit of wmask writes."""

_MODULE = """\
// {depth} words of {width} bits, one port, {groups} write group(s) of {granule} bits.
// rdata is the word read in the cycle before; in every other cycle it is unknown.
module {name} (
    input  wire clk,
    input  wire en,
    input  wire we,
    input  wire [{addr_top}:0] addr,
    input  wire [{width_top}:0] wdata,
    input  wire [{mask_top}:0] wmask,
    output reg  [{width_top}:0] rdata
);
    reg [{width_top}:0] words [0:{depth_top}];

    always @(posedge clk) begin
        if (en && !we) rdata <= words[addr];
        else rdata <= {{{width}{{1'bx}}}};
    end

    genvar group;
    generate
        for (group = 0; group < {groups}; group = group + 1) begin : write
            always @(posedge clk)
                if (en && we && wmask[group])
                    words[addr][group*{granule} +: {granule}]
                        <= wdata[group*{granule} +: {granule}];
        end
    endgenerate
endmodule
"""


@dataclass(frozen=True, order=True)
class SramShape:
    """One kind of SRAM bank: depth words of width bits, written in groups of granule bits."""

    depth: int
    width: int
    granule: int

    @classmethod
    def of(cls, name: str) -> SramShape:
        """Read a module's name. Raises SpecError if it is not an SRAM's."""
        found = SRAM_NAME.fullmatch(name)
        if found is None:
            raise SpecError(
                f"an SRAM's module must be named kvmmu_sram_DEPTHxWIDTHmGRANULE, got {name!r}"
            )
        made = cls(*(int(found[key]) for key in ("depth", "width", "granule")))
        if made.depth < 2 or not made.granule or made.width % made.granule:
            raise SpecError(f"an SRAM must have >= 2 words of whole granules, got {name!r}")
        return made

    @property
    def name(self) -> str:
        """Name of the module."""
        return f"kvmmu_sram_{self.depth}x{self.width}m{self.granule}"

    @property
    def bits(self) -> int:
        """Bits that one bank holds."""
        return self.depth * self.width


def sram_verilog(shape: SramShape) -> str:
    """Write the behavioural module of a bank."""
    groups = shape.width // shape.granule
    return _MODULE.format(
        name=shape.name,
        depth=shape.depth,
        width=shape.width,
        granule=shape.granule,
        groups=groups,
        addr_top=(shape.depth - 1).bit_length() - 1,
        width_top=shape.width - 1,
        mask_top=groups - 1,
        depth_top=shape.depth - 1,
    )
