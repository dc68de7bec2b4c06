"""Both ends of a ready/valid stream in Amaranth's simulator, cycle by cycle."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from amaranth.hdl import Value
from amaranth.sim import SimulatorContext

__all__ = ["Sink", "Source"]


class Source:
    """One input stream: beats wait here; valid stays up until the beat has moved."""

    def __init__(self, stream: Any, gap: float) -> None:
        self.stream, self.gap = stream, gap
        self.payload = Value.cast(stream.payload)
        self.beats: deque[int] = deque()
        self.is_valid = False
        self.stalls = 0

    def offer(self, ctx: SimulatorContext, rng: np.random.Generator) -> None:
        """Put the next beat on the stream, unless this cycle is a gap."""
        if self.is_valid or not self.beats or (self.gap and rng.random() < self.gap):
            return
        self.is_valid = True
        ctx.set(self.stream.valid, 1)
        ctx.set(self.payload, self.beats[0])

    def moves(self, ctx: SimulatorContext) -> bool:
        """Tell whether the beat is taken in this cycle; count a stall if not."""
        if not self.is_valid:
            return False
        if not ctx.get(self.stream.ready):
            self.stalls += 1
            return False
        return True

    def moved(self, ctx: SimulatorContext) -> None:
        """Forget the beat that was taken, after the clock's edge."""
        self.beats.popleft()
        self.is_valid = False
        ctx.set(self.stream.valid, 0)


class Sink:
    """One output stream; what waits must stay as it is."""

    def __init__(self, stream: Any, stall: float) -> None:
        self.stream, self.stall = stream, stall
        self.payload = Value.cast(stream.payload)
        self.waiting: int | None = None
        self.is_ready = False
        self.stalls = 0

    def set_ready(self, ctx: SimulatorContext, rng: np.random.Generator) -> None:
        """Draw whether this cycle takes a beat."""
        self.is_ready = not (self.stall and rng.random() < self.stall)
        ctx.set(self.stream.ready, int(self.is_ready))

    def take(self, ctx: SimulatorContext) -> tuple[int | None, str]:
        """Return the beat that moves in this cycle, if one does, and what broke the contract."""
        if not ctx.get(self.stream.valid):
            fault = "valid fell before ready" if self.waiting is not None else ""
            self.waiting = None
            return None, fault
        bits = int(ctx.get(self.payload))
        fault = "payload changed while it waited" if self.waiting not in (None, bits) else ""
        self.waiting = None if self.is_ready else bits
        self.stalls += not self.is_ready
        return (bits if self.is_ready else None), fault
