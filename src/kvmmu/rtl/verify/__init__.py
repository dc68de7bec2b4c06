"""What shows that the block answers as `model.py` does.

stimuli.py     settings, commands and masses drawn at random from a seed, hard cases made likely
traces.py      a recorded trace as commands and masses; whether it is a hard enough test
scoreboard.py  the block in Amaranth's simulator against the model, stream by stream
shadow.py      what a table must do, written a second time for the bounded model checker
formal.py      the properties that the bounded model checker proves, and the call of it
bench/         the emitted Verilog under cocotb and Icarus Verilog

Nothing here is part of the hardware.
"""

from __future__ import annotations
