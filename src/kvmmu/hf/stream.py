"""LM.stream: text pieces as they are generated; leaving the loop stops the generation."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

if TYPE_CHECKING:
    from kvmmu.hf.lm import LM

__all__ = ["pieces"]


class _Until(StoppingCriteria):
    """Stop when an event is set."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """Return one flag per row. input_ids [B,S] -> bool [B]."""
        return input_ids.new_full((len(input_ids),), self._event.is_set(), dtype=torch.bool)


def pieces(lm: LM, prompt: str, *, max_new_tokens: int, **sampling: Any) -> Iterator[str]:
    """Yield text pieces from a thread that generates; an error there is raised here."""
    streamer = TextIteratorStreamer(lm.tokenizer, skip_prompt=True, skip_special_tokens=True)
    stop = threading.Event()
    failure: list[BaseException] = []
    criteria = _criteria(sampling.pop("stopping_criteria", None), _Until(stop))

    def run() -> None:
        try:
            lm.run(
                prompt,
                max_new_tokens=max_new_tokens,
                streamer=streamer,
                stopping_criteria=criteria,
                **sampling,
            )
        except BaseException as error:
            failure.append(error)
            streamer.end()

    thread = threading.Thread(target=run, daemon=True)
    with lm.turn():  # until the caller has taken the last piece, or leaves
        thread.start()
        try:
            for piece in streamer:
                if piece:
                    yield piece
        finally:
            stop.set()
            thread.join()
    if failure:
        raise failure[0]


def _criteria(given: Any, ours: StoppingCriteria) -> StoppingCriteriaList:
    """Join the caller's criteria, one or a list, with ours."""
    theirs = [] if given is None else list(given) if isinstance(given, list) else [given]
    return StoppingCriteriaList([*theirs, ours])
