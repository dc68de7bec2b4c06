"""Which lane decodes and which prompt's chunk runs in a step, within a token budget.

A request waits in its class's queue, first come, first served, until a lane is free; from then
on it can neither run out of memory nor be pre-empted. In each step every request past its prompt
decodes one token. What the budget leaves goes to prompts, in order of arrival, in chunks of T
tokens whose borders are multiples of T counted from the request's first token: a chunk may be
delayed, never resized. As many consecutive chunks of a prompt as fit share a step. A chunk that is
larger than what is left waits until the left-overs of successive steps add up to it; while nothing
decodes it waits for nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from kvmmu.engine.request import Logprob, Request
from kvmmu.engine.sampler import RowState
from kvmmu.engine.text import TextStream
from kvmmu.errors import CapacityError, IntegrityError
from kvmmu.policies.base import is_count
from kvmmu.slots.pool import LanePool

__all__ = ["BUDGET", "Chunk", "Plan", "Scheduler", "Track"]

BUDGET = 512
"""Rows of a forward by default: on a CPU products of more are slower, whose rows leave the L2."""


@dataclass(eq=False)
class Track:
    """One request on its way: its lane, the tokens fed to it and the tokens made."""

    request: Request
    row: RowState
    text: TextStream
    turn: int = 0
    lane: int | None = None
    num_fed: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)

    @property
    def is_prefilling(self) -> bool:
        """Tell whether part of the prompt is still to be fed."""
        return self.num_fed < len(self.request.prompt_ids)


@dataclass(frozen=True)
class Chunk:
    """Tokens [start, stop) of a prompt, for its lane: one chunk of T or several in a row."""

    track: Track
    start: int
    stop: int

    @property
    def is_last(self) -> bool:
        """Tell whether the prompt ends here, so that its first token follows."""
        return self.stop == len(self.track.request.prompt_ids)


@dataclass(frozen=True)
class Plan:
    """One step: the requests that decode, by class, and the prompt chunks."""

    decodes: Mapping[str, list[Track]]
    chunks: list[Chunk]

    @property
    def tracks(self) -> list[Track]:
        """All requests of the step."""
        decoding = [track for tracks in self.decodes.values() for track in tracks]
        return decoding + [chunk.track for chunk in self.chunks]


class Scheduler:
    """Queues and lanes of all classes; plans steps and touches no tensor.

    token_budget bounds the rows of a forward. max_waiting bounds each class's queue, None for no
    bound.
    Raises ValueError for a budget or a bound that is no positive integer.
    """

    def __init__(
        self, pools: Mapping[str, LanePool], *, token_budget: int, max_waiting: int | None
    ) -> None:
        if not is_count(token_budget) or token_budget < 1:
            raise ValueError(f"token_budget must be an integer of at least 1, got {token_budget!r}")
        if max_waiting is not None and (not is_count(max_waiting) or max_waiting < 0):
            raise ValueError(
                f"max_waiting must be None or an integer of at least 0, got {max_waiting!r}"
            )
        self.pools, self.token_budget, self.max_waiting = pools, token_budget, max_waiting
        self.waiting: dict[str, deque[Track]] = {name: deque() for name in pools}
        self.running: dict[str, list[Track]] = {name: [] for name in pools}
        self._num_turns = 0
        self._saved = 0  # left-overs of the steps in which the first chunk waited

    @property
    def num_waiting(self) -> int:
        """Count the requests that have no lane yet."""
        return sum(map(len, self.waiting.values()))

    @property
    def num_running(self) -> int:
        """Count the requests that have a lane."""
        return sum(map(len, self.running.values()))

    def add(self, track: Track) -> None:
        """Queue a request. Raises CapacityError if too many wait already."""
        name = track.request.lane_class
        if not self.has_room(name):
            raise CapacityError(
                f"at most {self.max_waiting} requests may wait for lanes of class {name!r}, got "
                "one more; try again later, or raise max_waiting or num_lanes"
            )
        track.turn, self._num_turns = self._num_turns, self._num_turns + 1
        self.waiting[name].append(track)

    def has_room(self, lane_class: str) -> bool:
        """Tell whether one more request may come, to a free lane or to wait for one."""
        most = self.max_waiting
        room = self.pools[lane_class].num_free
        return most is None or len(self.waiting[lane_class]) < most + room

    def end(self, track: Track) -> None:
        """Forget a request; its lane, if it has one, is cleared and free at once."""
        name = track.request.lane_class
        if track.lane is None:
            self.waiting[name].remove(track)
            return
        self.running[name].remove(track)
        self.pools[name].release(track.lane)
        track.lane = None

    def plan(self) -> Plan:
        """Give free lanes to those who wait, and choose what the next step runs."""
        for name, queue in self.waiting.items():
            while queue and (lane := self.pools[name].claim()) is not None:
                track = queue.popleft()
                track.lane = lane
                self.running[name].append(track)
        decodes = {
            name: [track for track in tracks if not track.is_prefilling]
            for name, tracks in self.running.items()
        }
        decodes = {name: tracks for name, tracks in decodes.items() if tracks}
        return Plan(decodes, self._chunks(sum(map(len, decodes.values()))))

    def _chunks(self, num_decoding: int) -> list[Chunk]:
        """Choose prompt chunks, oldest request first, for what the budget leaves."""
        prompts = [t for tracks in self.running.values() for t in tracks if t.is_prefilling]
        left = self.token_budget - num_decoding
        saved, self._saved = self._saved + max(left, 1), 0
        chosen: list[Chunk] = []
        for track in sorted(prompts, key=lambda track: track.turn):
            chunk = self._next_chunk(track, left)
            size = chunk.stop - chunk.start
            if size > left and (chosen or (num_decoding and size > saved)):
                self._saved = 0 if chosen else saved
                break
            chosen.append(chunk)
            left -= size
        return chosen

    def _next_chunk(self, track: Track, left: int) -> Chunk:
        """Cut as many chunks off a prompt as fit, at least one; a selector takes it whole."""
        settings = self.pools[track.request.lane_class].settings
        num_prompt = len(track.request.prompt_ids)
        if settings.policy.kind == "selector":
            return Chunk(track, track.num_fed, num_prompt)
        T = settings.chunk_size
        num_chunks = track.num_fed // T + max(1, left // T)
        return Chunk(track, track.num_fed, min(num_prompt, num_chunks * T))

    def check_integrity(self, live: Collection[Track]) -> None:
        """Raise IntegrityError if queues, lanes and live requests do not fit together."""
        known: list[Track] = []
        for name, pool in self.pools.items():
            pool.check_integrity()
            running, waiting = self.running[name], self.waiting[name]
            known += [*running, *waiting]
            lanes = sorted(-1 if track.lane is None else track.lane for track in running)
            if lanes != pool.claimed:
                raise IntegrityError(
                    f"lanes of class {name!r} must be claimed by running requests, got {lanes} "
                    f"running and {pool.claimed} claimed"
                )
            seen = pool.num_seen
            for track in running:
                assert track.lane is not None
                if seen[track.lane] != track.num_fed:
                    raise IntegrityError(
                        f"lane {track.lane} of class {name!r} must have seen {track.num_fed} "
                        f"tokens, got {seen[track.lane]}"
                    )
            if any(track.lane is not None or track.num_fed for track in waiting):
                raise IntegrityError(f"requests that wait for class {name!r} must hold no lane")
        if sorted(map(id, known)) != sorted(map(id, live)):
            raise IntegrityError(
                f"live requests must be those that wait or run, got {len(live)} live and "
                f"{len(known)} that wait or run"
            )
