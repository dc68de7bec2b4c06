"""One engine step: rows of decode and of prefill through the model, each to its own lanes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kvmmu.engine.cuda_graph import Capture, CapturedStep
from kvmmu.engine.model import Transformer
from kvmmu.engine.scheduler import Chunk, Plan, Track
from kvmmu.slots.pool import LanePool

__all__ = ["Mode", "captured_decode", "run"]

Mode = Literal["fast", "reference"]


@dataclass(frozen=True)
class _Part:
    """Consecutive rows of a forward: one token for each of several lanes, or a chunk of one.

    tracks[i] is whose row i is, None for an idle lane; a chunk has one track. `wants` names the
    rows, counted within the part, whose logits are drawn from.
    """

    pool: LanePool
    token_ids: list[int]
    places: list[int]
    tracks: list[Track | None]
    wants: list[int]
    lanes: list[int]
    chunk: Chunk | None = None

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, ids: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Attend in the part's lanes. q [n,Hq,D], k, v [n,Hkv,D] -> [n,Hq,D]; ids: lanes, at."""
        if self.chunk is not None:
            return self.pool.prefill(layer, self.lanes[0], q, k, v, self.chunk.start)
        assert ids is not None
        return self.pool.decode(layer, q, k, v, *ids)


def run(
    model: Transformer,
    pools: Mapping[str, LanePool],
    plan: Plan,
    mode: Mode,
    captured: Mapping[str, CapturedStep],
) -> list[tuple[Tensor, list[Track]]]:
    """Run a plan. -> for each forward logits float32 [R,V] and the R requests they belong to.

    In mode "fast" all rows share one forward. In mode "reference" each class decodes at its full
    lane count, row i being lane i, and each chunk of T has a forward of its own. In either, a
    class whose decode was captured replays it, at its full lane count.
    """
    owned = [(pools[c.track.request.lane_class], c) for c in plan.chunks]
    line_up = _packed if mode == "fast" else _whole
    decodes = {name: line_up(pools[name], tracks) for name, tracks in plan.decodes.items()}
    made = [_replay(captured[name], part) for name, part in decodes.items() if name in captured]
    parts = [part for name, part in decodes.items() if name not in captured]
    if mode == "fast":
        forwards = [parts + [_chunk(pool, c) for pool, c in owned]]
    else:
        forwards = [[part] for part in parts]
        forwards += [[_chunk(pool, x)] for pool, c in owned for x in _cut(pool, c)]
    return made + [_forward(model, parts) for parts in forwards if parts]


def captured_decode(
    model: Transformer, pool: LanePool, capture: Capture | None = None
) -> CapturedStep:
    """Capture the decode step of a pool of lanes, which must be fused. Raises as CapturedStep."""

    def step(tokens: Tensor, places: Tensor, lanes: Tensor) -> Tensor:
        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return pool.decode(layer, q, k, v, lanes, places)

        return model.forward(tokens, places, attend)

    return CapturedStep(step, num_rows=pool.num_lanes, device=model.device, capture=capture)


def _replay(step: CapturedStep, part: _Part) -> tuple[Tensor, list[Track]]:
    """Replay a captured decode. -> logits [R,V] and whose they are."""
    tokens = torch.tensor(part.token_ids)
    cpu = tokens.device
    logits = step(tokens, _int32(part.places, cpu), _int32(part.lanes, cpu))
    if len(part.wants) < len(part.tracks):
        logits = logits[torch.tensor(part.wants, device=logits.device)]
    return logits, [track for track in part.tracks if track is not None]


def _cut(pool: LanePool, chunk: Chunk) -> list[Chunk]:
    """Cut chunks in a row into single ones; a selector's stays whole."""
    if pool.settings.policy.kind == "selector":
        return [chunk]
    T = pool.settings.chunk_size
    starts = range(chunk.start, chunk.stop, T)
    return [Chunk(chunk.track, a, min(a + T, chunk.stop)) for a in starts]


def _packed(pool: LanePool, tracks: list[Track]) -> _Part:
    """Give a row to each request that decodes."""
    owners: list[Track | None] = [*tracks]
    return _decode(pool, owners)


def _whole(pool: LanePool, tracks: list[Track]) -> _Part:
    """Give a row to each lane of the pool, idle ones included."""
    owners: list[Track | None] = [None] * pool.num_lanes
    for track in tracks:
        assert track.lane is not None
        owners[track.lane] = track
    return _decode(pool, owners)


def _decode(pool: LanePool, owners: list[Track | None]) -> _Part:
    """Line up one token a row, the last one that was made; an idle row's is 0, at place 0."""
    return _Part(
        pool,
        token_ids=[0 if t is None else t.token_ids[-1] for t in owners],
        places=[0 if t is None else t.num_fed for t in owners],
        tracks=owners,
        wants=[i for i, t in enumerate(owners) if t is not None],
        lanes=[-1 if t is None or t.lane is None else t.lane for t in owners],
    )


def _chunk(pool: LanePool, chunk: Chunk) -> _Part:
    """Line up the tokens of a prompt's chunk."""
    track = chunk.track
    assert track.lane is not None
    return _Part(
        pool,
        token_ids=list(track.request.prompt_ids[chunk.start : chunk.stop]),
        places=list(range(chunk.start, chunk.stop)),
        tracks=[track],
        wants=[chunk.stop - chunk.start - 1] if chunk.is_last else [],
        lanes=[track.lane],
        chunk=chunk,
    )


def _forward(model: Transformer, parts: list[_Part]) -> tuple[Tensor, list[Track]]:
    """Run the rows of the parts through the model, once. -> logits [R,V] and whose they are."""
    device = model.device
    spans: list[slice] = []
    ids: list[tuple[Tensor, Tensor] | None] = []
    wants: list[int] = []
    owners: list[Track] = []
    num_rows = 0
    for part in parts:
        spans.append(slice(num_rows, num_rows + len(part.token_ids)))
        wants += [num_rows + i for i in part.wants]
        owners += [t for t in part.tracks if t is not None and part.wants]
        num_rows += len(part.token_ids)
        ids.append(
            None if part.chunk else (_int32(part.lanes, device), _int32(part.places, device))
        )

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if len(parts) == 1:
            return parts[0].attend(layer, q, k, v, ids[0])
        out = q.new_empty(q.shape)
        for part, rows, where in zip(parts, spans, ids, strict=True):
            out[rows] = part.attend(layer, q[rows], k[rows], v[rows], where)
        return out

    tokens = torch.tensor([i for part in parts for i in part.token_ids], device=device)
    places = torch.tensor([i for part in parts for i in _model_places(part)], device=device)
    is_all = len(parts) == 1 and parts[0].chunk is None
    rows = None if is_all else torch.tensor(wants, dtype=torch.int64, device=device)
    logits = model.forward(tokens, places, attend, rows)
    if is_all and len(wants) < num_rows:  # all rows had logits, whoever is idle
        logits = logits[torch.tensor(wants, device=device)]
    return logits, owners


def _model_places(part: _Part) -> list[int]:
    """Return where the model shall turn keys to: place 0 if lanes number them themselves."""
    if part.pool.settings.positions == "in_cache":
        return [0] * len(part.places)
    return part.places


def _int32(values: list[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)
