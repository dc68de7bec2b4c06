"""The KV-MMU: slot table, storage and the two paths that fill them.

    table.py    which token each slot holds, its score, and the policy's state
    ranking.py  who is protected, who leaves first, where survivors of a chunk go
    mmu.py      one layer's KV-MMU: its parts, and which path a call takes
    decode.py   a new token replaces a victim
    chunk.py    the best C of C + T stay
    places.py   positions="in_cache": keys numbered by their rank among the held
    spec.py     what a layer is told, and who may watch it
    settings.py what a cache is asked for, and what that means for each layer
    pool.py     lanes of constant size, one a request, for a batch that comes and goes
    recorder.py what the KV-MMU did, collected in a ring and flushed outside the step

Data walks so: q, k, v of new tokens enter `KVMMU.forward`; the policy ranks, `ranking` adds the
rules that hold under every policy, the store is overwritten in place, the kernel attends over
the slots, the policy's new scores go to the table, and the attention output leaves.
"""

from __future__ import annotations
