"""Settings, commands and masses drawn at random from a seed, with the hard cases made likely.

What is sought: sums that saturate, all scores equal, all slots protected but one, long runs of
zeros, rescales one after the other, the same table twice in a row, tables interleaved, lanes that
leave after one token and are taken again, and fewer slots than were built.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmmu.fixed_point import MASS_MAX
from kvmmu.rtl.config import ADDRESS_BITS, STRIDE_BITS, BlockConfig
from kvmmu.rtl.model import num_rows
from kvmmu.rtl.ports import Op
from kvmmu.rtl.transactions import BlockSettings, Command, LayerSettings, Masses

__all__ = ["MASS_KINDS", "Item", "Mix", "draw_items", "draw_settings"]

MASS_KINDS = ("uniform", "small", "equal", "zero", "full", "spike", "bits")
"""uniform: any word; small: below 16; equal: one word for all; full: 65535; spike: one way of
the row is large, the others zero; bits: powers of two."""
_FLOOD_BEATS = 260
"""258 beats of 65535 pass 2**24 - 1."""


@dataclass(frozen=True, eq=False)
class Item:
    """One command; of a STEP its masses, and the slot that a recording says was written."""

    command: Command
    masses: Masses = ()
    recorded_slot: int | None = None


@dataclass(frozen=True)
class Mix:
    """Weigh what is drawn: shares of commands, and of the kinds of masses.

    most_beats is the largest number of beats of a row; flood the share of steps with a row of so
    many full beats that its 24-bit sum saturates. order "sweep" steps
    through all tables of a lane in turn, "same" repeats one table, "mixed" does both and random
    ones between them.
    """

    admit: float = 0.04
    release: float = 0.02
    flood: float = 0.01
    most_beats: int = 2
    order: str = "mixed"
    masses: dict[str, float] = field(
        default_factory=lambda: {
            "uniform": 4.0,
            "small": 2.0,
            "equal": 1.0,
            "zero": 1.0,
            "full": 1.0,
            "spike": 2.0,
            "bits": 2.0,
        }
    )

    def __post_init__(self) -> None:
        if self.order not in ("sweep", "same", "mixed"):
            raise ValueError(f"order must be 'sweep', 'same' or 'mixed', got {self.order!r}")
        if unknown := self.masses.keys() - set(MASS_KINDS):
            raise ValueError(f"masses must name {MASS_KINDS}, got {sorted(unknown)}")


def draw_settings(
    rng: np.random.Generator, config: BlockConfig, *, head_shift: int | None = None
) -> BlockSettings:
    """Draw settings that the block must take; a third leave one slot unprotected."""
    needed = int(rng.choice([1, 2, 3, config.slots // 2, int(rng.integers(1, config.slots))]))
    needed = max(1, min(needed, config.slots))
    num_sinks = int(rng.integers(0, needed))
    window = needed - num_sinks
    if window == 1 and rng.random() < 0.5:
        window = 0  # protects as much as 1
    choices = [needed, config.slots, int(rng.integers(needed, config.slots + 1))]
    layers = tuple(
        LayerSettings(int(rng.choice(choices)), _address(rng, ADDRESS_BITS))
        for _ in range(config.layers)
    )
    shift = None if rng.random() < 0.4 else int(rng.integers(0, 17))
    return BlockSettings(
        layers=layers,
        num_sinks=num_sinks,
        window=window,
        decay_shift=shift,
        head_shift=int(rng.integers(0, 5)) if head_shift is None else head_shift,
        lane_stride_bytes=_address(rng, ADDRESS_BITS - 10),
        slot_stride_bytes=_address(rng, STRIDE_BITS),
    )


def draw_items(
    rng: np.random.Generator,
    config: BlockConfig,
    *,
    settings: BlockSettings,
    num_steps: int,
    mix: Mix | None = None,
) -> Iterator[Item]:
    """Yield commands until num_steps STEPs are out; none of them is an error."""
    yield from _Draw(rng, config, settings, mix or Mix()).items(num_steps)


def _address(rng: np.random.Generator, bits: int) -> int:
    """Draw a number of few or many bits below 2**bits."""
    return int(rng.integers(0, 1 << int(rng.integers(1, bits))))


class _Draw:
    """The lanes as the drawer knows them: tokens of each table, tables touched."""

    def __init__(
        self, rng: np.random.Generator, config: BlockConfig, settings: BlockSettings, mix: Mix
    ) -> None:
        self.rng, self.config, self.settings, self.mix = rng, config, settings, mix
        self.tokens: dict[int, list[int]] = {}  # active lane -> tokens of each touched table
        self.queue: list[tuple[int, int]] = []  # (lane, table of the lane) yet to step
        self.kind, self.kind_left = "uniform", 0

    def items(self, num_steps: int) -> Iterator[Item]:
        steps = 0
        while steps < num_steps:
            chance = self.rng.random()
            if not self.tokens or chance < self.mix.admit:
                yield self._admit()
            elif chance < self.mix.admit + self.mix.release:
                yield self._release()
            else:
                yield self._step()
                steps += 1

    def _admit(self) -> Item:
        free = [n for n in range(self.config.lanes) if n not in self.tokens]
        if free:
            self.tokens[free[0]] = []
        return Item(Command(Op.ADMIT))

    def _release(self) -> Item:
        """Release a lane, half of the time one with few tokens."""
        lanes = sorted(self.tokens, key=lambda lane: sum(self.tokens[lane]))
        lane = lanes[0] if self.rng.random() < 0.5 else int(self.rng.choice(lanes))
        del self.tokens[lane]
        self.queue = [turn for turn in self.queue if turn[0] != lane]
        return Item(Command(Op.RELEASE, lane=lane))

    def _step(self) -> Item:
        if not self.queue:
            self._plan()
        lane, table = self.queue.pop(0)
        tokens = self.tokens[lane]
        if table == len(tokens):
            tokens.append(0)
        layer, head = divmod(table, self.config.heads)
        num_slots = self.settings.layers[layer].num_slots
        rows = num_rows(tokens[table], num_slots, ways=self.config.ways)
        tokens[table] += 1
        return Item(Command(Op.STEP, lane, layer, head), self._masses(rows))

    def _plan(self) -> None:
        """Choose the next steps: a sweep, one table again and again, or one at random."""
        lane = int(self.rng.choice(sorted(self.tokens)))
        tokens, every = self.tokens[lane], self.config.tables_per_lane
        order = self.mix.order
        if order == "mixed":
            order = str(self.rng.choice(["sweep", "same", "any"]))
        if order == "sweep":
            self.queue = [(lane, table) for table in range(every)]
            return
        limit = min(len(tokens) + 1, every)  # one past the touched ones is the next in order
        table = int(self.rng.integers(0, limit))
        count = int(self.rng.integers(2, 3 * self.config.slots)) if order == "same" else 1
        self.queue = [(lane, table)] * count

    def _masses(self, rows: int) -> Masses:
        if self.kind_left == 0:
            kinds = list(self.mix.masses)
            weights = np.array([self.mix.masses[kind] for kind in kinds])
            self.kind = str(self.rng.choice(kinds, p=weights / weights.sum()))
            self.kind_left = int(self.rng.integers(1, 3 * self.config.slots + 1))
        self.kind_left -= 1
        same = int(self.rng.integers(0, MASS_MAX + 1))
        drawn = [self._row(same) for _ in range(rows)]
        if self.rng.random() < self.mix.flood:
            full = np.full((_FLOOD_BEATS, self.config.ways), MASS_MAX)
            drawn[int(self.rng.integers(rows))] = full
        return tuple(drawn)

    def _row(self, same: int) -> NDArray[np.integer[Any]]:
        """Draw one row's beats [beats, W]; what a slot not held gets is drawn like the others."""
        rng, ways = self.rng, self.config.ways
        beats = int(rng.integers(1, self.mix.most_beats + 1))
        kind = self.kind
        if kind == "uniform":
            return rng.integers(0, MASS_MAX + 1, (beats, ways))
        if kind == "small":
            return rng.integers(0, 16, (beats, ways))
        if kind == "bits":
            powers: NDArray[np.int64] = 1 << rng.integers(0, 17, (beats, ways))
            return np.minimum(powers, MASS_MAX)
        if kind == "spike":
            return np.where(np.arange(ways) == rng.integers(ways), MASS_MAX, 0)[None].repeat(
                beats, 0
            )
        value = {"equal": same, "zero": 0, "full": MASS_MAX}[kind]
        return np.full((self.mix.most_beats, ways), value)
