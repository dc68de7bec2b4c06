"""How fast this machine reads memory: a buffer far larger than its caches, times a vector.

Takes its turns like a candidate (peers/child.py has the contract); a step reads the buffer once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

_BYTES, _COLUMNS = 1 << 28, 4096


class Peer:
    """A matrix of 256 MiB, multiplied by a vector."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Fill the buffer."""
        torch.set_num_threads(settings["threads"])
        memory = np.ones((_BYTES // 4 // _COLUMNS, _COLUMNS), dtype=np.float32)
        self._buffer = torch.from_numpy(memory)  # numpy asks for huge pages, torch does not
        self._vector = torch.ones(_COLUMNS)
        self.facts = {"version": torch.__version__, "weight_bytes": _BYTES, "fans_out": True}

    def prefill(self, prompts: list[list[int]]) -> list[int]:
        """Read nothing."""
        return [0] * len(prompts)

    def spread(self, count: int) -> None:
        """Do nothing."""

    def decode(self, count: int) -> list[list[int]]:
        """Read the buffer `count` times."""
        for _ in range(count):
            self._buffer.mv(self._vector)
        return [[]]

    def clear(self) -> None:
        """Do nothing."""

    def kv_bytes(self) -> int | None:
        """Return None: there is no cache."""
        return None
