"""Which length to train at: longer as soon as retrieval works at the present one."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Curriculum:
    """Advance when exact match over a window passes the bar, or after a stall."""

    max_length: int = 4096
    length: int = 128
    stage_steps: int = 0
    bar: float = 0.9
    stall_steps: int = 300
    long_share: float = 0.7
    recent: list[list[int]] = field(default_factory=list)

    def draw_length(self, seed: int, step: int, *, long_share: float | None = None) -> int:
        """Draw the length of one step: mostly the present one, else a shorter power of two."""
        share = self.long_share if long_share is None else long_share
        rng = np.random.default_rng((seed, step, 1_000_003))
        chance = rng.random()
        if self.length == 128 or chance < share / 2:
            return self.length
        if chance < share:  # at last, half of the long ones are shorter
            return self.length // 2 if self.length == self.max_length else self.length
        shorter = [64 << i for i in range(12) if 64 << i < self.length]
        weights = np.sqrt(np.asarray(shorter, dtype=np.float64))
        return int(rng.choice(shorter, p=weights / weights.sum()))

    def observe(self, length: int, counts: list[tuple[str, int, int]]) -> None:
        """Count the exact answers of a step; perhaps advance."""
        self.stage_steps += 1
        if length == self.length:
            rows = [(right, total) for kind, right, total in counts if kind == "late"]
            if rows:
                self.recent.append([sum(r for r, _ in rows), sum(t for _, t in rows)])
        total = sum(t for _, t in self.recent)
        while self.recent and total - self.recent[0][1] >= 300:
            total -= self.recent.pop(0)[1]
        share = sum(r for r, _ in self.recent) / max(1, total)
        is_ready = total >= 300 and share >= self.bar
        is_stalled = total >= 300 and self.stage_steps >= self.stall_steps and share >= 0.5
        if (is_ready or is_stalled) and self.length < self.max_length:
            self.length *= 2
            self.stage_steps = 0
            self.recent = []
