"""Static timing of a mapped netlist without wires: an estimate, not a sign-off.

Delays and slews come from the liberty's tables at the load of the readers' pins alone: no wires,
no clock tree (an ideal clock with a given slew), no on-chip variation. Slews merge to the largest,
arrivals too, per edge. Inputs arrive at 0 with the given slew; outputs are due at the next edge.
What a memory of several rows of macros needs to select and merge them is not in the path.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvmmu.rtl.gates.liberty import Library
from kvmmu.rtl.gates.loads import compose_memories, net_loads
from kvmmu.rtl.gates.macros import Macro, MacroComposition
from kvmmu.rtl.gates.netlist import Netlist
from kvmmu.rtl.gates.timing_pass import Endpoint, PathPoint, TimingPass

__all__ = ["Endpoint", "PathPoint", "Timing", "analyse_timing"]

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Timing:
    """Hold arrivals and slews per edge and net [2, nets] in ns, loads [nets] in pF.

    Arrivals are -inf where a net never changes. endpoints stand in order of their period, the
    longest first; path is that of the first.
    """

    arrival_ns: _Floats
    slew_ns: _Floats
    load_pf: _Floats
    clock_load_pf: float
    clock_slew_ns: float
    compositions: tuple[MacroComposition, ...]
    endpoints: tuple[Endpoint, ...]
    path: tuple[PathPoint, ...]
    left_out: str = "wires, clock tree and skew, variation, row decode and merge of SRAM macros"

    @property
    def minimum_period_ns(self) -> float:
        """The least period that all paths allow, 0 where there is no path."""
        return max((end.period_ns for end in self.endpoints), default=0.0)

    def slack_ns(self, period_ns: float) -> float:
        """Return the worst slack at a period."""
        return period_ns - self.minimum_period_ns


def analyse_timing(
    netlist: Netlist,
    library: Library,
    macros: tuple[Macro, ...] = (),
    *,
    input_slew_ns: float,
    clock_slew_ns: float,
    output_load_pf: float = 0.0,
) -> Timing:
    """Propagate arrivals and slews. Raises SpecError if a cell lacks an arc."""
    compositions = compose_memories(netlist, macros)
    loads, clock_load = net_loads(netlist, compositions, output_load_pf=output_load_pf)
    pass_ = TimingPass(netlist, library, loads, compositions, input_slew_ns, clock_slew_ns)
    pass_.launch()
    pass_.propagate()
    endpoints = tuple(sorted(pass_.endpoints(), key=lambda end: -end.period_ns))
    return Timing(
        arrival_ns=pass_.arrival,
        slew_ns=pass_.slew,
        load_pf=loads,
        clock_load_pf=clock_load,
        clock_slew_ns=clock_slew_ns,
        compositions=compositions,
        endpoints=endpoints,
        path=tuple(pass_.trace(endpoints[0])) if endpoints else (),
    )
