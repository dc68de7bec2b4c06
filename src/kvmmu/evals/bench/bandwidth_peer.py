"""How fast this machine reads memory: a buffer far larger than its caches, summed.

Takes its turns like a candidate (peers/child.py has the contract); a step reads the buffer once.
"""

from __future__ import annotations

from typing import Any

import torch

_BYTES = 1 << 28


class Peer:
    """A buffer and its sum."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Fill the buffer."""
        torch.set_num_threads(settings["threads"])
        self._buffer = torch.ones(_BYTES // 4)
        self.facts = {"version": torch.__version__, "weight_bytes": _BYTES, "fans_out": True}

    def prefill(self, prompts: list[list[int]]) -> list[int]:
        """Read nothing."""
        return [0] * len(prompts)

    def spread(self, count: int) -> None:
        """Do nothing."""

    def decode(self, count: int) -> list[list[int]]:
        """Read the buffer `count` times."""
        for _ in range(count):
            self._buffer.sum()
        return [[]]

    def clear(self) -> None:
        """Do nothing."""

    def kv_bytes(self) -> int | None:
        """Return None: there is no cache."""
        return None
