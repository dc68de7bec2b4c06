"""Gates: what a synthesised netlist costs, from a liberty file and simulated toggles.

boolean.py         `function` and `when` strings to truth tables
liberty_syntax.py  Liberty text to groups and attributes
tables.py          look-up tables
liberty.py         cells, pins, arcs: the typed form of a library
liberty_read.py    groups to that form; every number in ns, pF, V, pJ, nW, um2
liberty_kinds.py   which cells can be simulated, and why the others not
liberty_units.py   units and thresholds
netlist.py         a netlist as flat arrays in topological order
netlist_read.py    yosys JSON to it
events.py          which power arc a change of a cell's inputs counts for
compiled.py        netlist and events as the kernel's arrays
kernel.py          numba: one settle a cycle; net_kernel.py, memory_kernel.py its parts
simulate.py        zero-delay simulation of one clock domain, counting
streams.py         the same through ready/valid streams; stream_kernel.py its loop
macros.py          a memory bank as columns and rows of SRAM macros
loads.py           what loads each net
timing.py          static timing without wires; timing_pass.py the pass
energy.py          energy of what was counted
toy.lib            a toy library for tests: invented round numbers, no process
toy_sram.lib       toy SRAM macros likewise
"""

from __future__ import annotations
