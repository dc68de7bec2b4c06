"""Pure functions over slots: attend, write_slots, select_victims.

One signature, several files: `reference` is plain and obviously right, `cpu` is fast PyTorch
that runs on any device, and `dispatch.resolve` chooses once, when a cache is bound.
"""

from __future__ import annotations
