"""The streams of the KV-MMU's RTL in a test: beats offered back to back, cycle by cycle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from kvmmu.rtl.verify.streams import Source

__all__ = ["advance", "offer"]

_RNG = np.random.default_rng(0)  # draws nothing: there are no gaps


def offer(block: Any, beats: Mapping[str, Iterable[int]]) -> dict[str, Source]:
    """Put beats before the streams of these names."""
    sources = {name: Source(getattr(block, name), gap=0.0) for name in beats}
    for name, source in sources.items():
        source.beats.extend(beats[name])
    return sources


async def advance(
    ctx: Any, sources: Mapping[str, Source], look: Callable[[list[str]], None] = lambda _: None
) -> None:
    """Offer, let look see which streams move a beat in this cycle, and tick."""
    for source in sources.values():
        source.offer(ctx, _RNG)
    moving = [name for name, source in sources.items() if source.moves(ctx)]
    look(moving)
    await ctx.tick()
    for name in moving:
        sources[name].moved(ctx)
