"""What shows that the block answers as `model.py` does.

stimuli.py     settings, commands and masses drawn at random from a seed, hard cases made likely
traces.py      a recorded trace as commands and masses; whether it is a hard enough test
scoreboard.py  every answer beside the model's, whatever simulator it came from
driver.py      the block in Amaranth's simulator; streams.py, packing.py: its streams' ends and bits
contents.py    its memories, filled with old data and read back; images.py: the DRAM behind it
shadow.py      what a table must do, written a second time for the bounded model checker
harness.py     what the bounded model checker assumes and proves; formal.py: the call of it
bench/         the emitted Verilog under cocotb and Icarus Verilog

Nothing here is part of the hardware.
"""

from __future__ import annotations
