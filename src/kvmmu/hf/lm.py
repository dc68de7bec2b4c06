"""LM: a model, its tokenizer, and a constant-size cache for each generation."""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from kvmmu.errors import CapacityError, IntegrityError
from kvmmu.hf.cache import SlotCache
from kvmmu.hf.enable import enabled
from kvmmu.hf.record import masses_nbytes, record
from kvmmu.policies.base import is_count

__all__ = ["LM"]

_OURS = ("inputs", "input_ids", "attention_mask", "past_key_values")
"""Arguments of transformers' generate() that LM.generate sets itself."""


@dataclass
class LM:
    """A model, its tokenizer, and how large a cache each generation gets.

    `cache` is the SlotCache of the last generation, None before the first or in full mode.
    """

    model: PreTrainedModel
    tokenizer: Any
    num_slots: int | None = None
    compression: float | None = None
    parts: dict[str, Any] = field(default_factory=dict)
    cache: SlotCache | None = None
    _busy: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def encode(self, text: str | list[str]) -> dict[str, Tensor]:
        """Tokenize texts, padded on the left. -> input_ids, attention_mask [B,S]."""
        texts = [text] if isinstance(text, str) else text
        if not texts or not all(texts):
            raise ValueError(f"prompt must not be empty, got {text!r}")
        if len(texts) > 1 and self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        made = self.tokenizer(
            texts, return_tensors="pt", padding=len(texts) > 1, padding_side="left"
        )
        return {key: made[key].to(self.model.device) for key in ("input_ids", "attention_mask")}

    def make_cache(self, num_tokens: int, *, batch_size: int = 1) -> SlotCache | None:
        """Make the cache for rows of `num_tokens` tokens, prompt and new ones; None if full.

        Raises CapacityError if the rows get longer than what the model was trained on.
        """
        self._check_length(num_tokens)
        if self.compression is None:
            if self.num_slots is None:
                return None
            return self._slots(self.num_slots, batch_size)
        num_slots = math.ceil(num_tokens / self.compression)
        try:
            return self._slots(num_slots, batch_size)
        except ValueError as error:
            raise ValueError(
                f"compression {self.compression:g} of {num_tokens} tokens makes {num_slots} slots: "
                f"{error}; or lower compression"
            ) from error

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 100,
        streamer: BaseStreamer | None = None,
        trace: str | os.PathLike[str] | None = None,
        masses: bool = False,
        **sampling: Any,
    ) -> str | list[str]:
        """Continue a prompt; returns the new text. Greedy unless `sampling` says otherwise.

        `trace` names a file for the KV-MMU's events, `masses` adds the attention mass of every
        slot (RCE(fixed_point=True) only) and warns beforehand of how many bytes that takes.
        `sampling` goes to transformers' generate(); num_return_sequences > 1 returns a list.
        Raises ValueError, TypeError or CapacityError, IntegrityError while a stream is open.
        """
        with self.turn():
            made = self.run(
                prompt,
                max_new_tokens=max_new_tokens,
                streamer=streamer,
                trace=trace,
                masses=masses,
                **sampling,
            )
        return made if len(made) > 1 else made[0]

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the model for one generation. Raises IntegrityError if another one holds it."""
        if not self._busy.acquire(blocking=False):
            raise IntegrityError(
                "an LM must run one generation at a time, got a second one while the first is "
                "not finished; exhaust the stream, or call its close()"
            )
        try:
            yield
        finally:
            self._busy.release()

    def run(
        self,
        prompt: str,
        *,
        max_new_tokens: int,
        streamer: BaseStreamer | None,
        trace: str | os.PathLike[str] | None = None,
        masses: bool = False,
        **sampling: Any,
    ) -> list[str]:
        """Do what `generate` says, within a `turn`; one text per sequence asked for."""
        if not isinstance(prompt, str):
            raise TypeError(
                f"prompt must be one str, got {type(prompt).__name__}; call it for each"
            )
        if not is_count(max_new_tokens) or max_new_tokens < 1:
            raise ValueError(
                f"max_new_tokens must be an integer of at least 1, got {max_new_tokens!r}"
            )
        if masses and trace is None:
            raise ValueError("masses must go with trace, got no file to write them to")
        batch = _num_rows(self.model, sampling)
        if streamer is not None and batch > 1:
            raise ValueError(f"a stream must be of one sequence, got {batch} beams or samples")
        inputs: dict[str, Any] = dict(self.encode(prompt))
        length = inputs["input_ids"].shape[1]
        self.cache = self.make_cache(length + max_new_tokens, batch_size=batch)
        if trace is not None and self.cache is None:
            raise ValueError("a trace needs a SlotCache; give num_slots or compression")
        if masses and not (self.cache and getattr(self.cache.policy, "fixed_point", False)):
            raise ValueError("masses must go with policy RCE(fixed_point=True), got another")
        greedy = {} if "generation_config" in sampling else {"do_sample": False}
        options: dict[str, Any] = greedy | sampling | inputs
        options |= {"max_new_tokens": max_new_tokens, "streamer": streamer}
        options["return_dict_in_generate"] = False
        model: Any = self.model
        with ExitStack() as stack:
            if self.cache is not None:
                is_native = self.cache.options.kernel == "native"
                stack.enter_context(enabled(self.model, linears="native" if is_native else "torch"))
                options["past_key_values"] = self.cache
                options["prefill_chunk_size"] = self.cache.prefill_chunk_size
                if trace is not None:
                    name = Path(str(self.model.name_or_path)).name or None
                    recording = record(self.cache, trace, model_name=name, masses=masses)
                    if masses:
                        size = masses_nbytes(self.cache, length, max_new_tokens=max_new_tokens)
                        warnings.warn(
                            f"the masses take up to {size} bytes before compression",
                            UserWarning,
                            stacklevel=3,
                        )
                    stack.enter_context(recording)
            ids = model.generate(**options)
        texts: list[str] = self.tokenizer.batch_decode(ids[:, length:], skip_special_tokens=True)
        return texts

    def _slots(self, num_slots: int, batch_size: int) -> SlotCache:
        return SlotCache.for_model(self.model, num_slots, batch_size=batch_size, **self.parts)

    def _check_length(self, num_tokens: int) -> None:
        """Refuse what the model was not trained for; the last new token is never fed to it."""
        config: Any = self.model.config.get_text_config(decoder=True)
        limit = getattr(config, "max_position_embeddings", None)
        is_free = self.parts.get("allow_extrapolation") or self.parts.get("positions") == "in_cache"
        if is_free or not limit or num_tokens - 1 <= limit:
            return
        raise CapacityError(
            f"prompt and new tokens must be at most {limit + 1} (the model's trained positions "
            f"and one), got {num_tokens}; shorten them, or give num_slots and "
            "positions='in_cache', or allow_extrapolation=True"
        )

    def stream(self, prompt: str, *, max_new_tokens: int = 100, **sampling: Any) -> Iterator[str]:
        """Continue a prompt piece by piece, as `generate` does; leave early to stop."""
        from kvmmu.hf.stream import pieces

        yield from pieces(self, prompt, max_new_tokens=max_new_tokens, **sampling)


def _num_rows(model: PreTrainedModel, sampling: dict[str, Any]) -> int:
    """Count the rows that generate() runs for a prompt. Raises ValueError for what is ours."""
    ours = sorted(sampling.keys() & set(_OURS))
    if ours:
        raise ValueError(f"{ours[0]} must not be given: LM.generate makes it from the prompt")
    config = sampling.get("generation_config")
    if sampling.get("return_dict_in_generate") or getattr(config, "return_dict_in_generate", False):
        raise ValueError(
            "return_dict_in_generate must not be given: LM.generate returns text; call "
            "lm.model.generate inside kvmmu.enabled(lm.model)"
        )
    rows = 1
    for name in ("num_beams", "num_return_sequences"):
        value = sampling.get(name)
        for source in (config, model.generation_config):
            value = getattr(source, name, None) if value is None else value
        value = 1 if value is None else value
        if not is_count(value) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        rows = max(rows, value)
    return rows
