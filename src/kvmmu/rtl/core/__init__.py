"""The block in Amaranth, from the SRAM bank up to the top.

sram.py      one single-port SRAM; a table row's two banks by parity
sums.py      the beats of a row added up, saturating
lane_table.py  which lanes are taken, how many of their tables were touched
store.py     all tables on chip; swap.py: two on chip, the others in DRAM
pipeline.py  score row -> decay, add, clamp -> SRAM and argmin
admission.py command -> victim, position, address -> write
kv_mmu.py    the top

A register whose value means nothing until a valid bit says so is not reset (reset_less).
"""

from __future__ import annotations
