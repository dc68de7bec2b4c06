"""kvmmu bench: our decoding against what a user would pick instead, in one run, in turns.

shapes.py      a random Llama of a given shape as a Hugging Face folder
convert.py     the same weights for each peer: OpenVINO IR, GGUF; kept in a folder
peers/         what runs in a child process: child.py (the loop) and one file a peer
candidates.py  who takes part, at which precision, in which Python
process.py     a child: asked in JSON lines, stopped between its turns
rounds.py      alternated rounds; which of them count
point.py       one point: batch, context, C; every candidate's figures
capped.py      throughput under a fixed memory of K and V
run.py         the whole grid, resumable
"""

from __future__ import annotations
