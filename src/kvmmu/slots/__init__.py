"""The KV-MMU: slot table, storage and the two paths that fill them.

    table.py    which token each slot holds, its score, and the policy's state
    ranking.py  who is protected, who leaves first, where survivors of a chunk go
    mmu.py      one layer's KV-MMU: a new token replaces a victim, a chunk keeps the best C
    recorder.py what the KV-MMU did, collected without leaving the step

Data walks so: q, k, v of new tokens enter `KVMMU.forward`; the policy ranks, `ranking` adds the
rules that hold under every policy, the store is overwritten in place, the kernel attends over
the slots, the policy's new scores go to the table, and the attention output leaves.
"""

from __future__ import annotations
