"""The emitted Verilog under cocotb and Icarus Verilog: a second simulator, with true unknowns.

run.py        writes vectors and expected answers, builds the Verilog, runs the bench on it
bench_kvmmu.py  the bench itself, loaded by the simulator; it knows the ports and the vectors alone
"""

from __future__ import annotations
