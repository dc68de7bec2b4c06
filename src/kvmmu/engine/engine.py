"""Engine: continuous batching over lanes of constant size.

Not for several threads at once: a server calls it from one. Memory is settled when an engine is
made; a request that is accepted can then only end by itself, by cancel, or by an error of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvmmu.engine.admission import Admission
from kvmmu.engine.lane_class import LaneClass
from kvmmu.engine.loop import EngineStats, Loop
from kvmmu.engine.model import Backend, Transformer
from kvmmu.engine.request import Completion, Output, Request, SamplingParams
from kvmmu.engine.scheduler import BUDGET
from kvmmu.engine.step import Mode
from kvmmu.engine.weights import WeightForm
from kvmmu.policies.base import Policy

__all__ = ["Engine", "EngineStats"]


class Engine:
    """Serve requests by lanes of one or a few classes; a request names its class.

        tokenizer      of a transformers model; without it prompts are token ids and no text comes
        token_budget   rows of one forward, decoding ones first (see scheduler.py)
        mode           "fast" packs all rows into one forward; "reference" makes a request's
                       output the same bits whoever shares its batch, at some cost
        max_waiting    requests of a class that may wait for a lane, None for any number

    Raises ValueError for what must hold, CapacityError if the lanes do not fit in memory.
    """

    def __init__(
        self,
        transformer: Transformer,
        lane_classes: LaneClass | Sequence[LaneClass],
        *,
        tokenizer: Any = None,
        token_budget: int = BUDGET,
        mode: Mode = "fast",
        max_waiting: int | None = None,
    ) -> None:
        classes = [lane_classes] if isinstance(lane_classes, LaneClass) else list(lane_classes)
        names = [lane_class.name for lane_class in classes]
        if not classes or len(set(names)) < len(names):
            raise ValueError(f"lane_classes must be one or more of different names, got {names!r}")
        if mode not in ("fast", "reference"):
            raise ValueError(f"mode must be 'fast' or 'reference', got {mode!r}")
        self.model, self.mode, self.tokenizer = transformer, mode, tokenizer
        self._loop = Loop(
            transformer, classes, token_budget=token_budget, mode=mode, max_waiting=max_waiting
        )
        self._admission = Admission(transformer.config, self._loop.pools, tokenizer)

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str],
        num_slots: int | None = None,
        *,
        num_lanes: int | None = None,
        policy: str | Policy | None = None,
        lane_classes: LaneClass | Sequence[LaneClass] | None = None,
        dtype: str = "float32",
        weights: WeightForm = "plain",
        backend: Backend | None = None,
        device: str = "cpu",
        num_threads: int | None = None,
        token_budget: int = BUDGET,
        mode: Mode = "fast",
        max_waiting: int | None = None,
    ) -> Engine:
        """Load a shipped model or a local folder, with its tokenizer.

        Give num_slots, with num_lanes (default 8) and policy (default "rce"), or lane_classes.
        Raises ValueError, CapacityError or UnsupportedModelError.
        """
        from kvmmu.hf.load import load_tokenizer, model_path

        is_mixed = any(part is not None for part in (num_slots, num_lanes, policy))
        if is_mixed if lane_classes is not None else num_slots is None:
            raise ValueError(
                "either num_slots (with num_lanes and policy) or lane_classes must be given, got "
                f"num_slots={num_slots!r}, num_lanes={num_lanes!r}, policy={policy!r} and "
                f"lane_classes={lane_classes!r}"
            )
        if lane_classes is None:
            lane_classes = LaneClass(
                num_slots=0 if num_slots is None else num_slots,
                num_lanes=8 if num_lanes is None else num_lanes,
                policy="rce" if policy is None else policy,
            )
        path = model_path(model, is_local=True)
        transformer = Transformer.load(
            path,
            dtype=dtype,
            weights=weights,
            backend=backend,
            device=device,
            num_threads=num_threads,
        )
        return cls(
            transformer,
            lane_classes,
            tokenizer=load_tokenizer(path),
            token_budget=token_budget,
            mode=mode,
            max_waiting=max_waiting,
        )

    # Requests ---------------------------------------------------------------------------------

    def add(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        lane_class: str | None = None,
        request_id: str | None = None,
    ) -> str:
        """Queue a prompt, text or token ids; returns the request's id.

        `lane_class` defaults to the first. Raises ValueError or TypeError for a prompt, class or
        id that cannot be, CapacityError for a text past the model's trained length or if too many
        requests wait.
        """
        loop = self._loop
        request = self._admission.request(
            prompt, params, lane_class=lane_class, request_id=request_id, taken=loop.taken
        )
        loop.add(request, self._admission.decode)
        return request.request_id

    def cancel(self, request_id: str) -> bool:
        """End a request; its lane is cleared and free at once. -> False if it had ended before.

        Its last Output, without tokens, comes with the next step.
        """
        return self._loop.cancel(request_id)

    def step(self) -> list[Output]:
        """Run one step; return what it brought to each request, ends included.

        Outputs of a request that stream() or generate() holds go there. If the model raises, the
        step's requests end with finish "error", their lanes are free, and the error goes on.
        """
        self._loop.advance()
        outputs, self._loop.outbox = self._loop.outbox, []
        return outputs

    @property
    def has_work(self) -> bool:
        """Tell whether a request waits or runs, or an Output is to be fetched."""
        return bool(self._loop.tracks or self._loop.outbox)

    # In one call ------------------------------------------------------------------------------

    def stream(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        lane_class: str | None = None,
        request_id: str | None = None,
    ) -> Iterator[Output]:
        """Add a request and yield its Outputs, stepping all requests; leaving early cancels it."""
        name = self.add(prompt, params, lane_class=lane_class, request_id=request_id)
        outputs = self._stream(name)
        next(outputs)  # started, so that dropping it cancels the request
        return outputs

    def _stream(self, name: str) -> Iterator[Output]:
        """Yield a request's Outputs up to its end, after an empty one."""
        mail = self._loop.mail[name] = []
        try:
            yield Output(name)
            while True:
                while mail:
                    output = mail.pop(0)
                    yield output
                    if output.finish:
                        return
                self._loop.advance()
        finally:
            self._loop.cancel(name)
            del self._loop.mail[name]

    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        lane_class: str | None = None,
    ) -> list[Completion]:
        """Continue prompts to their ends, stepping all requests; one Completion each, in order.

        `params` are for all prompts or one for each. However many prompts there are, no more wait
        at once than may. Raises as add does, before anything runs.
        """
        given: Sequence[Any] = [prompts] if isinstance(prompts, str) else prompts
        requests: list[Request] = []
        for prompt, one in zip(given, _each(params, len(given)), strict=True):
            taken = self._loop.taken | {r.request_id for r in requests}
            request = self._admission.request(
                prompt, one, lane_class=lane_class, request_id=None, taken=taken
            )
            requests.append(request)
        outputs: dict[str, list[Output]] = {r.request_id: [] for r in requests}
        self._loop.mail |= outputs
        try:
            self._run_all(requests, outputs)
        finally:
            for name in outputs:
                self._loop.cancel(name)
                del self._loop.mail[name]
        return [_completion(request, outputs[request.request_id]) for request in requests]

    def _run_all(self, requests: Sequence[Request], outputs: Mapping[str, list[Output]]) -> None:
        """Add requests as there is room, and step until all have ended."""
        waiting = list(requests)[::-1]
        while waiting or any(not out or out[-1].finish is None for out in outputs.values()):
            while waiting and self._loop.scheduler.has_room(waiting[-1].lane_class):
                self._loop.add(waiting.pop(), self._admission.decode)
            self._loop.advance()

    # What it holds ----------------------------------------------------------------------------

    def check_integrity(self) -> None:
        """Raise IntegrityError if an invariant of lanes, queues or requests does not hold."""
        self._loop.scheduler.check_integrity(self._loop.tracks.values())

    def stats(self) -> EngineStats:
        """Say what the engine holds and has done."""
        return self._loop.stats()


def _each(
    params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
) -> Sequence[SamplingParams | None]:
    """Give each prompt its parameters. Raises ValueError if there are not as many."""
    if params is None or isinstance(params, SamplingParams):
        return [params] * num_prompts
    if len(params) != num_prompts:
        raise ValueError(f"params must be one or {num_prompts} of them, got {len(params)}")
    return params


def _completion(request: Request, outputs: Sequence[Output]) -> Completion:
    """Put the Outputs of a request together."""
    last = outputs[-1]
    assert last.finish is not None
    return Completion(
        request.request_id,
        request.prompt_ids,
        tuple(i for output in outputs for i in output.token_ids),
        "".join(output.text for output in outputs),
        tuple(p for output in outputs for p in output.logprobs),
        last.finish,
        last.error,
    )
