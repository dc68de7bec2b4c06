"""Gates: what a synthesised netlist costs, from a liberty file and simulated toggles.

boolean.py         `function` and `when` strings to truth tables
liberty_syntax.py  Liberty text to groups and attributes
tables.py          look-up tables
liberty.py         cells, pins, arcs: the typed form of a library
liberty_read.py    groups to that form; every number in ns, pF, V, pJ, nW, um2
netlist.py         yosys JSON to flat arrays in topological order
events.py          which power arc a change of a cell's inputs counts for
kernel.py          the numba loops
simulate.py        zero-delay simulation of one clock domain, ready/valid streams
macros.py          a memory bank as columns and rows of SRAM macros
timing.py          static timing without wires
energy.py          energy from counted toggles
toy.lib            a toy library for tests: invented round numbers, no process
toy_sram.lib       a toy SRAM macro likewise
"""

from __future__ import annotations
