"""Loop: requests in lanes, step by step; what Engine's calls are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvmmu.engine.cuda_graph import CapturedStep
from kvmmu.engine.lane_class import LaneClass
from kvmmu.engine.model import Transformer
from kvmmu.engine.request import Finish, Output, Request
from kvmmu.engine.sampler import Draw, RowState, sample
from kvmmu.engine.scheduler import Plan, Scheduler, Track
from kvmmu.engine.step import Mode, captured_decode, run
from kvmmu.engine.text import Decode, TextStream

__all__ = ["EngineStats", "Loop"]


@dataclass(frozen=True)
class EngineStats:
    """What an engine holds and has done; lanes are (busy, all) by class.

    num_evicted counts tokens that left or were never written, in all layers. kv_nbytes are bytes
    of K and V, nbytes all persistent tensors of the lanes, workspace_nbytes the largest transient
    of a layer's prefill so far (with a selector, of its longest prompt).
    """

    lanes: Mapping[str, tuple[int, int]]
    num_waiting: int
    num_running: int
    num_steps: int
    num_prompt_tokens: int
    num_new_tokens: int
    num_evicted: int
    kv_nbytes: int
    nbytes: int
    workspace_nbytes: int


class Loop:
    """Run accepted requests. `outbox` holds Outputs until they are fetched.

    A request whose id is in `mail` gets its Outputs there instead.
    """

    def __init__(
        self,
        model: Transformer,
        classes: Sequence[LaneClass],
        *,
        token_budget: int,
        mode: Mode,
        max_waiting: int | None,
    ) -> None:
        self.model, self.mode = model, mode
        self.pools = {one.name: one.make_pool(model) for one in classes}
        self.captured: dict[str, CapturedStep] = {}
        if model.device.type == "cuda":
            fused = {name: pool for name, pool in self.pools.items() if pool.is_fused}
            self.captured = {name: captured_decode(model, pool) for name, pool in fused.items()}
        self.scheduler = Scheduler(self.pools, token_budget=token_budget, max_waiting=max_waiting)
        self.tracks: dict[str, Track] = {}
        self.outbox: list[Output] = []
        self.mail: dict[str, list[Output]] = {}
        self._num_steps = self._num_prompt = self._num_new = self._num_evicted = 0

    @property
    def taken(self) -> set[str]:
        """Ids that no new request may have: of live ones, and of those whose mail is open."""
        return self.tracks.keys() | self.mail.keys()

    def add(self, request: Request, decode: Decode | None) -> None:
        """Queue a request whose text `decode` makes. Raises CapacityError if too many wait."""
        row = RowState(request.params, request.prompt_ids, self.model.config.vocab_size)
        track = Track(request, row, TextStream(decode, request.params.stop))
        self.scheduler.add(track)
        self.tracks[request.request_id] = track

    def cancel(self, request_id: str) -> bool:
        """End a request and clear its lane. -> False if it had ended before."""
        track = self.tracks.get(request_id)
        if track is None:
            return False
        self._finish(track, "cancelled")
        return True

    def advance(self) -> None:
        """Plan and run a step, draw tokens, hand out what came of it.

        If the model raises, the step's requests end with finish "error", and the error goes on.
        """
        plan = self.scheduler.plan()
        if not plan.tracks:
            return
        try:
            drawn = [
                (track, draw)
                for logits, tracks in run(self.model, self.pools, plan, self.mode, self.captured)
                if tracks
                for track, draw in zip(tracks, sample(logits, [t.row for t in tracks]), strict=True)
            ]
        except BaseException as error:
            for track in plan.tracks:  # their lanes may be half written
                self._finish(track, "error", f"{type(error).__name__}: {error}")
            raise
        self._count(plan)
        for track, draw in drawn:
            self._accept(track, draw)

    def _count(self, plan: Plan) -> None:
        """Note what was fed."""
        self._num_steps += 1
        for tracks in plan.decodes.values():
            for track in tracks:
                track.num_fed += 1
        for chunk in plan.chunks:
            chunk.track.num_fed = chunk.stop
            self._num_prompt += chunk.stop - chunk.start

    def _accept(self, track: Track, draw: Draw) -> None:
        """Take a request's new token in, and end the request if that was its last."""
        if draw.error is not None:
            self._finish(track, "error", draw.error)
            return
        self._num_new += 1
        params, token = track.request.params, draw.token_id
        track.token_ids.append(token)
        is_end = not params.ignore_eos and token in self.model.config.eos_ids
        is_stop = is_end or token in params.stop_token_ids  # its text is not part of the text
        is_full = len(track.token_ids) == params.max_new_tokens
        text = "" if is_stop else track.text.feed([token])
        if is_stop or is_full:
            text += track.text.flush()
        finish: Finish | None = "length" if is_full else None
        if is_stop or track.text.is_over:
            finish = "stop"
        if finish:
            self._end(track)
        logprobs = () if draw.logprob is None else (draw.logprob,)
        self._deliver(Output(track.request.request_id, (token,), text, logprobs, finish))

    def _finish(self, track: Track, finish: Finish, error: str | None = None) -> None:
        """End a request and say why."""
        self._end(track)
        self._deliver(Output(track.request.request_id, finish=finish, error=error))

    def _end(self, track: Track) -> None:
        """Forget a request and free its lane."""
        self._num_evicted += self._evicted(track)
        self.scheduler.end(track)
        del self.tracks[track.request.request_id]

    def _evicted(self, track: Track) -> int:
        """Count what left a request's lane, in all layers."""
        mmus = self.pools[track.request.lane_class].mmus
        return sum(max(0, track.num_fed - mmu.spec.num_slots) for mmu in mmus)

    def _deliver(self, output: Output) -> None:
        """Hand an Output to whoever asked for the request."""
        self.mail.get(output.request_id, self.outbox).append(output)

    def stats(self) -> EngineStats:
        """Say what is held and what was done."""
        pools = self.pools
        return EngineStats(
            lanes={n: (p.num_lanes - p.num_free, p.num_lanes) for n, p in pools.items()},
            num_waiting=self.scheduler.num_waiting,
            num_running=self.scheduler.num_running,
            num_steps=self._num_steps,
            num_prompt_tokens=self._num_prompt,
            num_new_tokens=self._num_new,
            num_evicted=self._num_evicted + sum(map(self._evicted, self.tracks.values())),
            kv_nbytes=sum(pool.kv_nbytes for pool in pools.values()),
            nbytes=sum(pool.nbytes for pool in pools.values()),
            workspace_nbytes=max(pool.workspace_nbytes for pool in pools.values()),
        )
