"""Recorder: what every KV-MMU of a cache did, collected in a preallocated ring, written as a trace.

Within the step it only copies small tensors (slots, evicted positions); `flush` turns what was
collected into trace events outside the step, in order of steps. A step is one decode or one
chunk of one layer; all layers run through the same steps, so their counters agree at the end of
each forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvmmu.codecs.base import Rows
from kvmmu.policies.base import Seen
from kvmmu.policies.rce import RCE
from kvmmu.slots.mmu import KVMMU
from kvmmu.trace import NOT_WRITTEN, ChunkEvent, DecodeBlock, LaneEvent, TraceWriter

__all__ = ["Recorder"]

_RING_STEPS = 256
"""Decode steps held before they are written: a few hundred KiB for 32 layers of 8 heads."""


@dataclass(frozen=True)
class _Chunk:
    """One layer's chunk as it was seen; host transfers wait for the flush."""

    step: int
    layer: int
    at: Rows
    evicted: Tensor
    came: Tensor
    valid: Tensor
    masses: Tensor | None


class Recorder:
    """Observe the KV-MMUs of one cache and write their events.

    Raises ValueError if masses are asked of a policy other than RCE(fixed_point=True).
    """

    def __init__(self, mmus: Sequence[KVMMU], writer: TraceWriter, *, masses: bool = False) -> None:
        self._mmus = list(mmus)
        self._writer = writer
        spec = self._mmus[0].spec
        policy = self._mmus[0].policy
        if masses and not (isinstance(policy, RCE) and policy.fixed_point):
            raise ValueError(
                f"masses can be recorded of RCE(fixed_point=True) alone, got policy {policy.name!r}"
            )
        self._words: Callable[[Seen], Tensor] | None = None
        if masses and isinstance(policy, RCE):
            self._words = lambda seen: policy.mass_words(seen, granularity=spec.granularity)
        positions = self._mmus[0].table.positions
        self._batch, self._device = positions.shape[0], positions.device
        self._num_tables = spec.num_kv_heads if spec.granularity == "head" else 1
        self._steps = [0] * len(self._mmus)
        self._rows: dict[int, int] = {}
        self._chunks: list[_Chunk] = []
        self._num_valid = np.zeros((len(self._mmus), self._batch), dtype=np.int32)
        self._ring = self._allocate(_RING_STEPS)
        for mmu in self._mmus:
            mmu.observer = self

    # What the KV-MMUs call --------------------------------------------------------------------

    def decode(
        self, layer_idx: int, slots: Tensor, evicted: Tensor, valid: Tensor | None, seen: Seen
    ) -> None:
        """Copy a decode into the ring. slots, evicted [B,Hkv]."""
        step = self._next(layer_idx)
        row = self._rows.get(step)
        if row is None:
            row = self._rows[step] = len(self._rows)
            self._make_room(row)
            self._ring["positions"][row].copy_(self._mmus[layer_idx].table.num_seen - 1)
            if valid is None:
                self._ring["valid"][row].fill_(1)
            else:
                self._ring["valid"][row].copy_(valid)
        H = self._num_tables
        self._ring["slots"][row, layer_idx].copy_(slots[:, :H])
        self._ring["evicted"][row, layer_idx].copy_(evicted[:, :H])
        if self._words is not None:
            words = self._words(seen)[:, :H]  # [B,H,C]
            self._ring["masses"][row, layer_idx, ..., : words.shape[2]].copy_(words)

    def chunk(
        self, layer_idx: int, at: Rows, evicted: Tensor, came: Tensor, valid: Tensor, seen: Seen
    ) -> None:
        """Keep a chunk's writes [R] for the flush."""
        words = None if self._words is None else self._words(seen)[:, : self._num_tables]
        step = self._next(layer_idx)
        self._chunks.append(_Chunk(step, layer_idx, at, evicted, came, valid, words))

    # What the cache calls between forwards ----------------------------------------------------

    def after_forward(self) -> None:
        """Write what was collected, if the ring is nearly full or chunks wait."""
        if self._chunks or 2 * len(self._rows) >= len(self._ring["positions"]):
            self.flush()

    def lanes(self, kind: str, *, sources: Tensor | None = None) -> None:
        """Write an event of all lanes: "reset", or "reorder" with sources [B]."""
        self.flush()
        origin = None if sources is None else _host(sources).astype(np.int32)
        if origin is not None:
            self._num_valid = self._num_valid[:, origin]
        if kind == "reset":
            self._num_valid[:] = 0
        lanes = np.arange(self._batch, dtype=np.int32)
        self._writer.write(LaneEvent(kind, max(self._steps), lanes, origin))

    def flush(self) -> None:
        """Write the ring and the waiting chunks, in order of steps, that every layer reached."""
        self._drop_unfinished()
        ring = {name: _host(tensor[: len(self._rows)]) for name, tensor in self._ring.items()}
        waiting: dict[int, list[_Chunk]] = {}
        for event in self._chunks:
            waiting.setdefault(event.step, []).append(event)
        run: list[int] = []
        for step in sorted(self._rows.keys() | waiting.keys()):
            if step in self._rows:
                run.append(step)
                continue
            self._write_decodes(run, ring)
            run = []
            for event in waiting[step]:
                self._write_chunk(event)
        self._write_decodes(run, ring)
        self._rows.clear()
        self._chunks.clear()

    # How it is done ---------------------------------------------------------------------------

    def _drop_unfinished(self) -> None:
        """Drop the steps that a failed forward has left to some layers alone."""
        done = min(self._steps)
        self._steps = [done] * len(self._steps)
        # Steps are given rows in order, so that those dropped are the last: no row is moved.
        self._rows = {step: row for step, row in self._rows.items() if step < done}
        self._chunks = [event for event in self._chunks if event.step < done]

    def _next(self, layer_idx: int) -> int:
        """Count one step of a layer and return its number."""
        step = self._steps[layer_idx]
        self._steps[layer_idx] += 1
        return step

    def _allocate(self, num_steps: int) -> dict[str, Tensor]:
        """Make an empty ring."""
        L, B, H = len(self._mmus), self._batch, self._num_tables
        shapes: dict[str, tuple[int, ...]] = {
            "slots": (num_steps, L, B, H),
            "evicted": (num_steps, L, B, H),
            "positions": (num_steps, B),
            "valid": (num_steps, B),
        }
        if self._words is not None:
            most = max(mmu.spec.num_slots for mmu in self._mmus)
            shapes["masses"] = (num_steps, L, B, H, most)
        with torch.inference_mode(mode=False):
            return {
                name: torch.zeros(shape, dtype=torch.int32, device=self._device)
                for name, shape in shapes.items()
            }

    def _make_room(self, row: int) -> None:
        """Double the ring if one forward decodes more tokens than it holds."""
        if row < len(self._ring["positions"]):
            return
        old, self._ring = self._ring, self._allocate(2 * row)
        for name, tensor in old.items():
            self._ring[name][: len(tensor)].copy_(tensor)

    def _write_decodes(self, steps: list[int], ring: dict[str, NDArray[Any]]) -> None:
        """Write consecutive decode steps as one block."""
        if not steps:
            return
        rows = [self._rows[step] for step in steps]
        block = {name: array[rows] for name, array in ring.items()}
        is_real = block["valid"].astype(bool)  # [S,B]
        here = is_real[:, None, :, None]
        evicted = np.where(here, block["evicted"], NOT_WRITTEN)
        filled = np.cumsum(evicted[..., 0] == -1, axis=0, dtype=np.int32)  # [S,L,B]
        num_valid = self._num_valid + filled
        self._num_valid = num_valid[-1]
        masses = None
        if "masses" in block:
            masses = np.where(here[..., None], block["masses"], 0).astype(np.uint16)
        self._writer.write(
            DecodeBlock(
                steps=np.asarray(steps, dtype=np.int64),
                num_queries=is_real.astype(np.int32),
                slots=np.where(here, block["slots"], -1),
                evicted=evicted,
                positions=block["positions"],
                n_valid=num_valid,
                masses=masses,
            )
        )

    def _write_chunk(self, event: _Chunk) -> None:
        """Write one layer's chunk; with one victim a layer, the first head speaks for all."""
        lane, head, slot = (_host(x) for x in (event.at.lane, event.at.head, event.at.slot))
        keep = head < self._num_tables
        lane, head, slot = lane[keep], head[keep], slot[keep]
        evicted = _host(event.evicted)[keep]
        valid = _host(event.valid)
        before = self._num_valid[event.layer].copy()
        written = np.zeros((self._batch, self._num_tables), dtype=np.int32)
        np.add.at(written, (lane, head), 1)
        filled = (head == 0) & (evicted == -1)
        np.add.at(self._num_valid[event.layer], lane[filled], 1)
        self._writer.write(
            ChunkEvent(
                step=event.step,
                layer=event.layer,
                valid=valid,
                n_valid=before,
                lanes=lane,
                heads=head,
                slots=slot,
                evicted=evicted,
                positions=_host(event.came)[keep],
                num_dropped=valid.sum(1, dtype=np.int32)[:, None] - written,
                masses=None if event.masses is None else _host(event.masses).astype(np.uint32),
            )
        )


def _host(tensor: Tensor) -> NDArray[Any]:
    """Bring a tensor to the host; called by the flush alone."""
    array: NDArray[Any] = tensor.numpy(force=True)
    return array
