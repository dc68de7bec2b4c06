"""agreement: of the victims of integer scores, how many would fp32 scores have chosen?

Teacher-forced: the integer KV-MMU decides what is held, and at every eviction an fp32 KV-MMU with
the same history is asked. fp32 scores are plain sums, a newcomer's 0; they decay as the integers.
`agreement` asks this of a trace, whose masses are words of 16 bits; the evaluation asks it of
attention weights that were never rounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kvmmu.fixed_point import FixedPointConfig, FixedPointMMU, is_protected
from kvmmu.trace.reader import Trace
from kvmmu.trace.schema import ChunkEvent, DecodeBlock, LaneEvent, TraceHeader

__all__ = ["VictimAgreement", "VictimTally", "agreement"]

Ranks = NDArray[np.floating[Any]]
_MASS_SCALE = np.float32(65536)


@dataclass(frozen=True)
class VictimAgreement:
    """Say how often fp32 scores would choose the victim that integer scores chose.

    weights tells what the fp32 scores add up: "float32" attention weights, or the "uq0.16" words
    of a trace. Of `evictions` in decode, same_slot chose one slot; same_or_tied also counts those
    where fp32's slot had the lowest integer score too, and the lower index won; num_ties had
    several slots at the lowest integer score. ranks[n] counts victims below which n slots had a
    lower fp32 score. In units of one query's attention, summed over evictions: lost_mass is the
    fp32 score of the victims, least_mass that of fp32's own. Of the chunk_evictions tokens that
    lost in a chunk, fp32 scores would have let chunk_same go too.
    """

    weights: Literal["float32", "uq0.16"]
    evictions: int
    same_slot: int
    same_or_tied: int
    num_ties: int
    ranks: tuple[int, ...]
    lost_mass: float
    least_mass: float
    chunk_evictions: int
    chunk_same: int

    @property
    def rate(self) -> float | None:
        """Share of decode evictions that chose one slot."""
        return _share(self.same_slot, self.evictions)

    @property
    def mean_rank(self) -> float | None:
        """Mean number of slots with a lower fp32 score than the victim's."""
        return _share(sum(n * count for n, count in enumerate(self.ranks)), self.evictions)

    @property
    def p99_rank(self) -> int | None:
        """The rank that 99 % of the victims do not pass."""
        if not self.evictions:
            return None
        return int(np.searchsorted(np.cumsum(self.ranks), 0.99 * self.evictions))

    @property
    def lost_more(self) -> float | None:
        """Attention lost beyond what fp32 would have lost, as a share of that."""
        return _share(self.lost_mass - self.least_mass, self.least_mass)

    def to_json(self) -> dict[str, Any]:
        """Return counts and rates as plain JSON values."""
        rates = {
            "rate": self.rate,
            "rate_or_tied": _share(self.same_or_tied, self.evictions),
            "tie_share": _share(self.num_ties, self.evictions),
            "mean_rank": self.mean_rank,
            "p99_rank": self.p99_rank,
            "lost_more": self.lost_more,
            "chunk_rate": _share(self.chunk_same, self.chunk_evictions),
        }
        return asdict(self) | {"ranks": list(self.ranks)} | rates

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> VictimAgreement:
        """Build the counts from what to_json returned; rates are reckoned anew."""
        counts = {name: plain[name] for name in cls.__dataclass_fields__}
        return cls(**counts | {"ranks": tuple(counts["ranks"])})

    @staticmethod
    def pooled(parts: Iterable[VictimAgreement]) -> VictimAgreement:
        """Add up at least one. Raises ValueError if they weigh differently."""
        every = list(parts)
        kinds = {part.weights for part in every}
        if len(kinds) != 1:
            raise ValueError(f"pooled agreements must have one kind of weights, got {kinds!r}")
        names = [name for name in every[0].__dataclass_fields__ if name not in ("weights", "ranks")]
        ranks = zip_longest(*(part.ranks for part in every), fillvalue=0)
        sums = {name: sum(getattr(part, name) for part in every) for name in names}
        return VictimAgreement(every[0].weights, ranks=tuple(map(sum, ranks)), **sums)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


class VictimTally:
    """Count evictions as they come. Ranks are those of the KV-MMU: lowest leaves, inf stays."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(("same_slot", "same_or_tied", "num_ties"), 0)
        self._ranks = np.zeros(0, dtype=np.int64)
        self._masses = np.zeros(2)
        self._chunk = [0, 0]

    def decode(self, exact: Ranks, integer: Ranks, *, slots: NDArray[Any], masses: Ranks) -> None:
        """Count N evictions: ranks and fp32 masses [N,C], the slots [N] that integers chose."""
        if not len(slots):
            return
        rows = np.arange(len(slots))
        best = exact.argmin(axis=-1)
        is_least = integer == integer.min(axis=-1, keepdims=True)
        same = best == slots
        self._counts["same_slot"] += int(same.sum())
        self._counts["same_or_tied"] += int((same | is_least[rows, best]).sum())
        self._counts["num_ties"] += int((is_least.sum(axis=-1) > 1).sum())
        below = (exact < exact[rows, slots][:, None]).sum(axis=-1)
        counts = np.bincount(below, minlength=len(self._ranks))
        counts[: len(self._ranks)] += self._ranks
        self._ranks = counts
        self._masses += [masses[rows, of].sum(dtype=np.float64) for of in (slots, best)]

    def chunk(self, exact: Ranks, is_lost: NDArray[np.bool_], *, num_new: int) -> None:
        """Count the tokens [N,C+T] that lost in a chunk, of T = num_new; -inf ranks no token."""
        losers = exact.argsort(axis=-1, kind="stable")[..., :num_new]
        would = np.zeros(exact.shape, dtype=np.bool_)
        np.put_along_axis(would, losers, True, axis=-1)
        self._chunk[0] += int(is_lost.sum())
        self._chunk[1] += int((is_lost & would).sum())

    def made(self, weights: Literal["float32", "uq0.16"]) -> VictimAgreement:
        """Return what was counted."""
        lost, least = (float(mass) for mass in self._masses)
        return VictimAgreement(
            weights=weights,
            evictions=int(self._ranks.sum()),
            ranks=tuple(int(n) for n in self._ranks),
            lost_mass=lost,
            least_mass=least,
            chunk_evictions=self._chunk[0],
            chunk_same=self._chunk[1],
            **self._counts,
        )


def agreement(trace: Trace) -> VictimAgreement:
    """Ask fp32 scores of a trace's masses for every victim; raises TraceError if it has none.

    The trace is taken to be that of the integer KV-MMU, as `replay` checks.
    """
    run = _Run(trace.header)
    for event in trace.events(masses=True):
        if isinstance(event, DecodeBlock):
            for index in range(len(event.steps)):
                run.decode(event, index)
        elif isinstance(event, ChunkEvent):
            run.chunk(event)
        else:
            run.lane(event)
    return run.tally.made("uq0.16")


class _Run:
    """The integer tables of every layer, and fp32 scores [B,H,C_l] of what they hold."""

    def __init__(self, header: TraceHeader) -> None:
        num_layers, batch, num_tables, _ = header.table_shape
        self.shape = (batch, num_tables)
        self.keep = np.float32(1 - 2.0**-header.decay_shift if header.decay_shift else 1)
        if header.decay_shift == 0:
            self.keep = np.float32(0)
        rules = (header.num_sinks, header.window, header.decay_shift)
        self.tables = [
            FixedPointMMU(FixedPointConfig(slots, *rules), shape=self.shape)
            for slots in header.geometry.slots[:num_layers]
        ]
        self.scores = [np.zeros(mmu.positions.shape, dtype=np.float32) for mmu in self.tables]
        self.tally = VictimTally()

    def decode(self, block: DecodeBlock, index: int) -> None:
        assert block.masses is not None
        valid = np.broadcast_to(block.num_queries[index][:, None] > 0, self.shape)  # [B,H]
        for layer, mmu in enumerate(self.tables):
            scores = self.scores[layer]
            evicts = valid & (mmu.positions >= 0).all(axis=-1)
            exact = _ranks(scores, mmu.positions, mmu.num_seen, mmu.config)
            integer = _ranks(mmu.mantissas, mmu.positions, mmu.num_seen, mmu.config)
            slots = mmu.admit(valid)
            self.tally.decode(
                exact[evicts], integer[evicts], slots=slots[evicts], masses=scores[evicts]
            )
            words = block.masses[index, layer, :, :, : mmu.config.num_slots]
            mmu.accumulate(words)
            chosen = np.arange(mmu.config.num_slots) == slots[..., None]
            added = np.where(chosen, 0, scores) * self.keep + words.astype(np.float32) / _MASS_SCALE
            self.scores[layer] = np.where(valid[..., None], added, scores)

    def chunk(self, event: ChunkEvent) -> None:
        assert event.masses is not None
        mmu, held = self.tables[event.layer], self.scores[event.layer]
        num_slots, num_new = mmu.config.num_slots, event.valid.shape[-1]
        valid = np.broadcast_to(event.valid[:, None], (*self.shape, num_new))
        counts = valid.sum(axis=-1)  # [B,H]
        places = mmu.num_seen[..., None] + valid.cumsum(axis=-1) - 1
        positions = np.concatenate([mmu.positions, np.where(valid, places, -1)], axis=-1)
        kept = np.concatenate([held, np.zeros(valid.shape, dtype=np.float32)], axis=-1)
        kept = kept * (self.keep ** counts[..., None]).astype(np.float32)
        scores = kept + np.where(counts[..., None] > 0, event.masses, 0) / _MASS_SCALE
        scores = scores.astype(np.float32)  # [B,H,C+T]
        writes = mmu.commit_chunk(event.masses, valid=valid)
        exact = _ranks(scores, positions, mmu.num_seen - 1, mmu.config)
        is_held = (positions[..., :, None] == mmu.positions[..., None, :]).any(axis=-1)
        flat = (-1, num_slots + num_new)
        is_lost = ~is_held & (positions >= 0)
        self.tally.chunk(exact.reshape(flat), is_lost.reshape(flat), num_new=num_new)
        self.scores[event.layer] = scores[..., :num_slots].copy()
        lanes, heads, turns = np.nonzero(writes.slots >= 0)
        at = (lanes, heads, turns)
        came = positions[lanes, heads, num_slots:] == writes.positions[at][:, None]  # [R,T]
        source = num_slots + came.argmax(axis=-1)
        self.scores[event.layer][lanes, heads, writes.slots[at]] = scores[lanes, heads, source]

    def lane(self, event: LaneEvent) -> None:
        batch = self.shape[0]
        if event.kind == "reorder":
            sources = np.arange(batch)
            sources[event.lanes] = np.asarray(event.sources)
            for layer, mmu in enumerate(self.tables):
                mmu.reorder(sources)
                self.scores[layer] = self.scores[layer][sources]
        elif event.kind != "merge":
            gone = np.isin(np.arange(batch), event.lanes)[:, None]
            for mmu in self.tables:  # an empty slot's score is not looked at
                mmu.clear(gone)


def _ranks(
    scores: NDArray[Any], positions: NDArray[Any], newest: Any, config: FixedPointConfig
) -> Ranks:
    """Put the KV-MMU's order over scores [...,N]: empty slots -inf, protected ones inf."""
    protected = is_protected(positions, newest, num_sinks=config.num_sinks, window=config.window)
    ranks = np.where(protected, np.float32(np.inf), scores.astype(np.float32))
    return np.where(positions < 0, np.float32(-np.inf), ranks)
