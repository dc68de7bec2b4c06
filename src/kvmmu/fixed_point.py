"""The normative integer KV-MMU, in plain numpy; hardware and torch must equal it bit for bit.

A table is the score table of one (lane, layer), or one (lane, layer, KV head), by granularity.
Every function works on any leading shape [...] of independent tables; the last axis is slots.

Rule                                                    Reason
mass: UQ0.16 of the mean over the table's query heads,  p * 65536 is exact in float32, the 0.5 is
  floor(p * 65536 + 0.5) in float64, at most 65535        not: float64 makes every side agree
chunk of n queries: one word a slot, the decay-weighted 65535 * 256 < 2**24: n <= 256 fits a
  sum over its real queries, at most 65535 * n            24-bit word
score = mantissa (16 bit) << exponent (one a table), in the table is SRAM: 2 bytes a slot; only
  units of 2**-16; a newcomer's mantissa is 0             the order inside a table matters
decay k, per token: mantissa -= ceil(mantissa / 2**k)   the ceiling lets a score reach 0; the
  and n times before a chunk's masses are added           floor would stop at 2**k - 1
accumulate: acc = mantissa + (mass >> exponent)         a shift, no rounder; truncation loses less
  (17 bits in decode, 25 for a chunk word)                than one mantissa unit a token
rescale: while the largest acc of the unprotected, held >= shifts keep a >= b => a' >= b'; sinks,
  slots is over 65535 all accs shift right, exponent + 1  which draw much mass, must not cost the
  then protected accs are clamped to 65535                others their low bits
victim: lowest empty slot, else the lowest mantissa of  known one step ahead of the attention,
  the unprotected slots, ties to the lowest slot          so the write address is ready
protected: position < num_sinks, or position > p -      the newest token p is always held; the
  max(window, 1), where p is the newest token             window counts the token being written

The exponent never passes 24: a rescale needs a mass word that survives its shift.

A decode step is `slots = mmu.admit()`, attention over the slots, `mmu.accumulate(masses)`.
A chunk is attention over C + T candidates (slots, then new tokens), `mmu.commit_chunk(masses)`;
of a row's candidates pads lose first, then empty slots, then the unprotected by (mantissa,
candidate), and exactly T lose. A chunk with one real token is not a decode step: its attention
still saw the token that then leaves. A pad inserts nothing, weighs nothing and decays nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvmmu.errors import IntegrityError

__all__ = [
    "EMPTY",
    "MANTISSA_MAX",
    "MAX_CHUNK",
    "NOT_WRITTEN",
    "ChunkWrites",
    "FixedPointConfig",
    "FixedPointMMU",
    "accumulate",
    "decay",
    "is_protected",
    "quantize_masses",
    "rescale",
    "select_losers",
    "select_victim",
]

MANTISSA_MAX = 65535
MASS_MAX = 65535
MASS_SCALE = 65536
MAX_CHUNK = 256
EMPTY = -1
NOT_WRITTEN = -2

Ints = NDArray[np.signedinteger[Any]]
Words = NDArray[np.integer[Any]]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class FixedPointConfig:
    """Say how many slots a table has, which are protected, and how scores decay (1 - 2**-k)."""

    num_slots: int
    num_sinks: int
    window: int
    decay_shift: int | None = None

    def __post_init__(self) -> None:
        if self.num_sinks < 0 or self.window < 0:
            raise ValueError(
                f"num_sinks and window must not be negative, got {self.num_sinks}, {self.window}"
            )
        needed = self.num_sinks + max(self.window, 1)
        if self.num_slots < needed:
            raise ValueError(
                f"num_slots must be at least num_sinks + max(window, 1) = {needed}, "
                f"got {self.num_slots}; raise num_slots or lower window"
            )
        if self.decay_shift is not None and not 0 <= self.decay_shift <= 16:
            raise ValueError(f"decay_shift must be None or in [0, 16], got {self.decay_shift}")


@dataclass(frozen=True)
class ChunkWrites:
    """List what a chunk wrote, in writing order: each array [..., K], K = min(C, T).

    slots is -1 past a table's last write; evicted is the position that left, -1 = was empty,
    -2 = nothing written; num_dropped [...] counts real new tokens that were never written.
    """

    slots: NDArray[np.int32]
    positions: NDArray[np.int32]
    evicted: NDArray[np.int32]
    num_dropped: NDArray[np.int32]


def quantize_masses(weights: ArrayLike, num_queries: int | Words = 1) -> Words:
    """Quantise weights [..., C] to words: uint16 for num_queries = 1, else uint32 (24 bits used).

    num_queries counts the real queries of the chunk, an int or an array [...] one a table.
    """
    exact = np.asarray(weights, dtype=np.float32).astype(np.float64)
    if not bool((exact >= 0).all()):
        raise ValueError("attention masses must be numbers >= 0, got a negative one or a NaN")
    is_decode = isinstance(num_queries, int) and num_queries == 1
    counts = np.asarray(num_queries, dtype=np.int64)[..., None]
    if bool((counts < 0).any()) or bool((counts > MAX_CHUNK).any()):
        raise ValueError(f"num_queries must be in [0, {MAX_CHUNK}], got {num_queries!r}")
    words = np.minimum(np.floor(exact * MASS_SCALE + 0.5), MASS_MAX * counts)
    return words.astype(np.uint16 if is_decode else np.uint32)


def is_protected(positions: Ints, newest: ArrayLike, *, num_sinks: int, window: int) -> Bools:
    """Mark sinks and the last max(window, 1) positions; positions [..., C], newest [...].

    An empty slot (-1) counts as unprotected; whoever ranks slots treats it first.
    """
    oldest_kept = np.asarray(newest, dtype=np.int64)[..., None] - max(window, 1)
    protected: Bools = (positions < num_sinks) | (positions > oldest_kept)
    return protected & (positions >= 0)


def decay(mantissas: Words, decay_shift: int | None, *, num_tokens: ArrayLike = 1) -> Ints:
    """Subtract ceil(m / 2**decay_shift) num_tokens [...] times; mantissas [..., C] -> same."""
    faded = mantissas.astype(np.int64)
    if decay_shift is None:
        return faded
    counts = np.asarray(num_tokens, dtype=np.int64)[..., None]
    for token in range(int(counts.max(initial=0))):
        loss = (faded + (1 << decay_shift) - 1) >> decay_shift
        faded = np.where(token < counts, faded - loss, faded)
    return faded


def rescale(accs: Words, eligible: Bools) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Fit accs [..., C] into 16 bits -> mantissas [..., C], shifts [...].

    The shift is the smallest that brings the largest eligible acc to 65535 or less; what is
    still larger (never eligible) is clamped. Weakly monotone: a >= b gives a' >= b'.
    """
    wide = accs.astype(np.int64)
    largest = np.where(eligible, wide, 0).max(axis=-1)  # [...]
    shifts = np.zeros(largest.shape, dtype=np.int64)
    while bool(((largest >> shifts) > MANTISSA_MAX).any()):
        shifts = shifts + ((largest >> shifts) > MANTISSA_MAX)
    mantissas = np.minimum(wide >> shifts[..., None], MANTISSA_MAX)
    return mantissas.astype(np.uint16), shifts.astype(np.uint8)


def accumulate(
    mantissas: Words,
    exponents: Words,
    *,
    masses: Words,
    eligible: Bools,
    decay_shift: int | None,
    num_tokens: ArrayLike = 1,
) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Decay, add the masses and rescale; [..., C], exponents [...] -> mantissas, exponents.

    eligible marks held, unprotected slots; the caller passes mass 0 for empty ones.
    """
    faded = decay(mantissas, decay_shift, num_tokens=num_tokens)
    added = masses.astype(np.int64) >> exponents.astype(np.int64)[..., None]
    fitted, shifts = rescale(faded + added, eligible)
    return fitted, (exponents + shifts).astype(np.uint8)


def select_victim(
    mantissas: Words, positions: Ints, *, newest: ArrayLike, num_sinks: int, window: int
) -> NDArray[np.int32]:
    """Choose the slot for the token at position newest [...]; [..., C] -> [...].

    Contract: at least one slot is empty or unprotected. Ties go to the lowest slot.
    """
    protected = is_protected(positions, newest, num_sinks=num_sinks, window=window)
    ranks = np.where(protected, MANTISSA_MAX + 1, mantissas.astype(np.int64))
    ranks = np.where(positions < 0, -1, ranks)
    return np.asarray(ranks.argmin(axis=-1), dtype=np.int32)


def select_losers(mantissas: Words, positions: Ints, *, protected: Bools, num_slots: int) -> Bools:
    """Mark the T of C + T candidates that do not stay; [..., C+T] -> bool [..., C+T].

    Candidates [0, C) are slots, [C, C+T) new tokens; position -1 is an empty slot or a pad.
    """
    num_new = mantissas.shape[-1] - num_slots
    is_new = np.arange(mantissas.shape[-1]) >= num_slots
    # classes in the order they lose: 0 pad, 1 empty slot, 2 unprotected, 3 protected
    classes = np.where(positions < 0, np.where(is_new, 0, 1), np.where(protected, 3, 2))
    ranked = classes >= 2
    ranks = classes * (MANTISSA_MAX + 1) + np.where(ranked, mantissas.astype(np.int64), 0)
    order = np.argsort(ranks, axis=-1, kind="stable")
    losers = np.zeros(mantissas.shape, dtype=np.bool_)
    np.put_along_axis(losers, order[..., :num_new], True, axis=-1)
    return losers


class FixedPointMMU:
    """Keep the slot tables of any leading shape of tables; the state of the integer KV-MMU.

    positions int32 [..., C] (-1 = empty), mantissas uint16 [..., C], exponents uint8 [...],
    num_seen int64 [...] real tokens so far, which is the next token's position.
    """

    def __init__(self, config: FixedPointConfig, *, shape: tuple[int, ...] = ()) -> None:
        self.config = config
        self.shape = shape
        self.positions = np.full((*shape, config.num_slots), EMPTY, dtype=np.int32)
        self.mantissas = np.zeros((*shape, config.num_slots), dtype=np.uint16)
        self.exponents = np.zeros(shape, dtype=np.uint8)
        self.num_seen = np.zeros(shape, dtype=np.int64)
        self._admitted: Bools | None = None

    def victim(self) -> NDArray[np.int32]:
        """Name the slot that the next token would take; -> [...]."""
        return select_victim(
            self.mantissas,
            self.positions,
            newest=self.num_seen,
            num_sinks=self.config.num_sinks,
            window=self.config.window,
        )

    def admit(self, valid: ArrayLike | None = None) -> NDArray[np.int32]:
        """Put the next token of each valid [...] table in its victim; -> slots [...], -1 = none."""
        if self._admitted is not None:
            raise IntegrityError("admit must be followed by accumulate, got a second admit")
        wanted = np.broadcast_to(np.asarray(True if valid is None else valid, bool), self.shape)
        slots = np.where(wanted, self.victim(), EMPTY).astype(np.int32)
        chosen = np.arange(self.config.num_slots) == slots[..., None]  # [..., C], none for -1
        newest = self.num_seen[..., None]
        self.positions = np.where(chosen, newest, self.positions).astype(np.int32)
        self.mantissas = np.where(chosen, 0, self.mantissas).astype(np.uint16)
        self.num_seen = self.num_seen + wanted
        self._admitted = wanted
        return slots

    def accumulate(self, masses: Words) -> None:
        """Add the masses [..., C] of the tokens just admitted; tables without one ignore theirs.

        Raises IntegrityError without an admit before it.
        """
        if self._admitted is None:
            raise IntegrityError("accumulate must follow admit, got no admitted token")
        self._check_masses(masses, self.config.num_slots, limit=MASS_MAX)
        admitted, self._admitted = self._admitted, None
        mantissas, exponents = self._score(
            self.mantissas, self.positions, masses=masses, num_tokens=1
        )
        self.mantissas = np.where(admitted[..., None], mantissas, self.mantissas)
        self.exponents = np.where(admitted, exponents, self.exponents)

    def commit_chunk(self, masses: Words, *, valid: ArrayLike | None = None) -> ChunkWrites:
        """Keep the best C of C + T candidates; masses [..., C+T], valid [..., T] marks no pad."""
        if self._admitted is not None:
            raise IntegrityError("commit_chunk must not come between admit and accumulate")
        num_slots = self.config.num_slots
        num_new = int(masses.shape[-1]) - num_slots
        if not 1 <= num_new <= MAX_CHUNK:
            raise ValueError(f"a chunk must hold 1 to {MAX_CHUNK} tokens, got {num_new}")
        real = np.broadcast_to(
            np.asarray(True if valid is None else valid, bool), (*self.shape, num_new)
        )
        counts = real.sum(axis=-1)  # [...]
        self._check_masses(masses, num_slots + num_new, limit=MASS_MAX * num_new)
        places = self.num_seen[..., None] + real.cumsum(axis=-1) - 1
        new_positions = np.where(real, places, EMPTY).astype(np.int32)
        positions = np.concatenate([self.positions, new_positions], axis=-1)  # [..., C+T]
        mantissas = np.concatenate(
            [self.mantissas, np.zeros(new_positions.shape, np.uint16)], axis=-1
        )
        self.num_seen = self.num_seen + counts
        mantissas, self.exponents = self._score(
            mantissas,
            positions,
            masses=np.where(counts[..., None] > 0, masses, 0),  # a row of pads weighs nothing
            num_tokens=counts,
        )
        losers = select_losers(
            mantissas, positions, protected=self._protected(positions), num_slots=num_slots
        )
        return self._replace(mantissas, positions, losers=losers)

    def clear(self, tables: ArrayLike | None = None) -> None:
        """Empty the tables marked in bool [...] (all if None); no old score is left behind."""
        gone = np.broadcast_to(np.asarray(True if tables is None else tables, bool), self.shape)
        self.positions = np.where(gone[..., None], EMPTY, self.positions).astype(np.int32)
        self.mantissas = np.where(gone[..., None], 0, self.mantissas).astype(np.uint16)
        self.exponents = np.where(gone, 0, self.exponents).astype(np.uint8)
        self.num_seen = np.where(gone, 0, self.num_seen)
        if self._admitted is not None:
            self._admitted = self._admitted & ~gone

    def reorder(self, sources: Words) -> None:
        """Let row i of the first leading axis continue row sources[i], scores and all."""
        if self._admitted is not None:
            raise IntegrityError("reorder must not come between admit and accumulate")
        self.positions = self.positions[sources]
        self.mantissas = self.mantissas[sources]
        self.exponents = self.exponents[sources]
        self.num_seen = self.num_seen[sources]

    def _protected(self, positions: Ints) -> Bools:
        return is_protected(
            positions,
            self.num_seen - 1,
            num_sinks=self.config.num_sinks,
            window=self.config.window,
        )

    def _score(
        self, mantissas: Words, positions: Ints, *, masses: Words, num_tokens: ArrayLike
    ) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
        held = positions >= 0
        return accumulate(
            mantissas,
            self.exponents,
            masses=np.where(held, masses, 0),
            eligible=held & ~self._protected(positions),
            decay_shift=self.config.decay_shift,
            num_tokens=num_tokens,
        )

    def _replace(self, mantissas: Words, positions: Ints, *, losers: Bools) -> ChunkWrites:
        """Write the surviving new tokens over the losing slots; all arrays [..., C+T]."""
        num_slots = self.config.num_slots
        old, new = np.s_[..., :num_slots], np.s_[..., num_slots:]
        num_writes = min(num_slots, positions.shape[-1] - num_slots)
        # freed slots: empty ones first, then evicted ones, each in slot order
        turns = np.where(losers[old], np.where(positions[old] < 0, 0, 1), 2)
        slots = np.argsort(turns, axis=-1, kind="stable")[..., :num_writes]  # [..., K]
        tokens = np.argsort(losers[new], axis=-1, kind="stable")[..., :num_writes]
        num_kept = (~losers[new]).sum(axis=-1)
        is_written = np.arange(num_writes) < num_kept[..., None]  # [..., K]

        left = np.take_along_axis(positions[old], slots, axis=-1)
        came = np.take_along_axis(positions[new], tokens, axis=-1)
        earned = np.take_along_axis(mantissas[new], tokens, axis=-1)
        self.positions = _put(positions[old], slots, came, is_written)
        self.mantissas = _put(mantissas[old], slots, earned, is_written)
        num_real = (positions[new] >= 0).sum(axis=-1)
        return ChunkWrites(
            slots=np.where(is_written, slots, EMPTY).astype(np.int32),
            positions=np.where(is_written, came, EMPTY).astype(np.int32),
            evicted=np.where(is_written, left, NOT_WRITTEN).astype(np.int32),
            num_dropped=(num_real - num_kept).astype(np.int32),
        )

    def _check_masses(self, masses: Words, width: int, *, limit: int) -> None:
        if masses.shape != (*self.shape, width):
            raise ValueError(f"masses must have shape {(*self.shape, width)}, got {masses.shape}")
        if masses.dtype.kind not in "iu":
            raise TypeError(f"masses must be integer words, got {masses.dtype}; quantize_masses")
        if masses.size and (int(masses.min()) < 0 or int(masses.max()) > limit):
            raise ValueError(f"masses must be in [0, {limit}], got up to {int(masses.max())}")


def _put(table: Words, slots: Words, fresh: Words, is_written: Bools) -> Any:
    """Copy table [..., C] with fresh [..., K] at slots [..., K] where is_written."""
    changed = table.copy()
    kept = np.take_along_axis(table, slots, axis=-1)
    np.put_along_axis(changed, slots, np.where(is_written, fresh, kept), axis=-1)
    return changed
