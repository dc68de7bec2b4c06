"""The worked example of concept.md: a made-up attention pattern over a real KV-MMU of six slots.

The drawing and the page's tables are made from it, so they cannot differ from what the KV-MMU
does: `kvmmu.fixed_point` chooses every victim.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvmmu.fixed_point import FixedPointConfig, FixedPointMMU, quantize_masses

NUM_SLOTS, NUM_SINKS, WINDOW = 6, 1, 2
WORDS = ("The", "key", "is", "4", "7", ".", "Rain", "fell", "all", "key?")

ATTENTION: tuple[dict[int, float], ...] = (
    {0: 1.0},
    {0: 0.6, 1: 0.4},
    {0: 0.5, 1: 0.4, 2: 0.1},
    {0: 0.3, 1: 0.5, 2: 0.1, 3: 0.1},
    {0: 0.3, 1: 0.2, 2: 0.05, 3: 0.25, 4: 0.2},
    {0: 0.3, 1: 0.1, 2: 0.05, 3: 0.2, 4: 0.3, 5: 0.05},
    {0: 0.5, 1: 0.05, 3: 0.05, 4: 0.03, 5: 0.02, 6: 0.35},
    {0: 0.45, 1: 0.05, 3: 0.05, 4: 0.05, 6: 0.2, 7: 0.2},
    {0: 0.4, 1: 0.1, 3: 0.1, 4: 0.05, 7: 0.15, 8: 0.2},
    {0: 0.1, 1: 0.5, 3: 0.15, 4: 0.15, 8: 0.05, 9: 0.05},
)
"""ATTENTION[t][p]: the weight that token t gives to the token at position p, of those held."""

CHUNK: dict[int, float] = {
    0: 1.35,
    1: 0.2,
    2: 0.1,
    3: 0.2,
    4: 0.15,
    5: 0.05,
    6: 0.45,
    7: 0.3,
    8: 0.2,
}
"""Total weight per position of tokens 6, 7 and 8 when they come as one chunk of three queries."""


@dataclass(frozen=True)
class State:
    """The slots after one step: what each holds, its score, and what the next step would do."""

    token: int
    positions: tuple[int, ...]
    scores: tuple[float, ...]
    written: int
    left: int
    next_victim: int

    def is_sink(self, slot: int) -> bool:
        """Tell whether a slot holds a sink."""
        return 0 <= self.positions[slot] < NUM_SINKS

    def is_recent(self, slot: int) -> bool:
        """Tell whether a slot holds one of the last WINDOW tokens."""
        return self.positions[slot] > self.token - WINDOW


def _mmu() -> FixedPointMMU:
    return FixedPointMMU(FixedPointConfig(NUM_SLOTS, NUM_SINKS, WINDOW))


def _score(position: int, token: int) -> float:
    """Sum the weights that a token has got from queries up to `token`: what the integers stand for.

    The integer KV-MMU clamps a sink's own sum, which ranks nothing.
    """
    return sum(weights.get(position, 0.0) for weights in ATTENTION[: token + 1])


def _feed(mmu: FixedPointMMU, token: int) -> State:
    held = mmu.positions.copy()
    slot = int(mmu.admit())
    weights = [ATTENTION[token].get(int(p), 0.0) for p in mmu.positions]
    mmu.accumulate(quantize_masses(np.array(weights)))
    return State(
        token=token,
        positions=tuple(int(p) for p in mmu.positions),
        scores=tuple(_score(int(p), token) if p >= 0 else 0.0 for p in mmu.positions),
        written=slot,
        left=int(held[slot]),
        next_victim=int(mmu.victim()),
    )


def decode_steps() -> list[State]:
    """Feed all tokens one by one; return the state after each."""
    mmu = _mmu()
    return [_feed(mmu, token) for token in range(len(WORDS))]


def chunk_step() -> tuple[list[tuple[int, float, bool]], tuple[int, ...]]:
    """Feed six tokens one by one and the next three as a chunk.

    Returns the nine candidates (position, score, stays) and the six positions held after it.
    """
    mmu = _mmu()
    for token in range(NUM_SLOTS):
        before = _feed(mmu, token)
    masses = np.array([CHUNK[p] for p in range(NUM_SLOTS + 3)])
    mmu.commit_chunk(quantize_masses(masses, 3))
    held = tuple(int(p) for p in mmu.positions)
    old = [*before.scores, 0.0, 0.0, 0.0]
    rows = [(p, old[p] + CHUNK[p], p in held) for p in range(NUM_SLOTS + 3)]
    return rows, held


def _held(positions: tuple[int, ...]) -> str:
    """Write what the slots hold, in slot order."""
    return ", ".join(f"{p} *{WORDS[p]}*" for p in positions)


def steps_table() -> str:
    """Write the decode steps as a Markdown table."""
    lines = [
        "| new token | leaves | score it had | slots 0 to 5 afterwards |",
        "|---|---|---|---|",
    ]
    states = decode_steps()
    for before, state in zip(states[NUM_SLOTS - 1 :], states[NUM_SLOTS:], strict=False):
        held = _held(state.positions)
        lines.append(
            f"| {state.token} *{WORDS[state.token]}* | {state.left} *{WORDS[state.left]}* "
            f"in slot {state.written} | {before.scores[state.written]:.2f} | {held} |"
        )
    return "\n".join(lines)


def chunk_table() -> str:
    """Write the chunk's candidates as a Markdown table."""
    rows, held = chunk_step()
    return "\n".join(
        [
            "| candidate | " + " | ".join(f"{p} *{WORDS[p]}*" for p, _, _ in rows) + " |",
            "|---|" + "---|" * len(rows),
            "| score after the chunk | " + " | ".join(f"{s:.2f}" for _, s, _ in rows) + " |",
            "| stays | " + " | ".join("yes" if stays else "no" for _, _, stays in rows) + " |",
            "",
            "Slots 0 to 5 afterwards: " + _held(held) + ".",
        ]
    )
