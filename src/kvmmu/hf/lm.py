"""kvmmu.load: a model with a constant-size cache, by the name of a shipped one, a folder, a hub."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from kvmmu.hf.cache import SlotCache
from kvmmu.hf.enable import enabled
from kvmmu.hf.record import record
from kvmmu.hf.support import describe
from kvmmu.policies.base import Policy

__all__ = ["LM", "list_models", "load", "model_path"]

_SHIPPED = Path(str(files("kvmmu") / "models"))


def list_models() -> list[str]:
    """List the names of the models that are shipped in the package."""
    return sorted(p.parent.name for p in _SHIPPED.glob("*/config.json"))


def model_path(name: str | os.PathLike[str]) -> str:
    """Return the folder of a shipped model or a local one, else the hub name unchanged.

    Raises ValueError for what can be neither: it names the shipped models.
    """
    text = os.fspath(name)
    if text in list_models():
        return str(_SHIPPED / text)
    if (Path(text) / "config.json").is_file():
        return text
    if Path(text).exists():
        raise ValueError(f"model folder must hold a config.json, got {text!r} without one")
    if text.count("/") != 1:
        known = ", ".join(list_models())
        raise ValueError(
            f"model must be a shipped one ({known}), a local folder or a hub name 'owner/name', "
            f"got {text!r}"
        )
    return text


def load(
    name: str | os.PathLike[str],
    num_slots: int | None = None,
    *,
    compression: float | None = None,
    policy: str | Policy = "rce",
    device: str = "cpu",
    dtype: str = "float32",
    **parts: Any,
) -> LM:
    """Load a model and its tokenizer; safetensors only, no remote code.

    Each generation gets a cache of `num_slots` slots, or of ceil((prompt + new tokens) /
    compression), or, with neither, a full one. `parts` are SlotCache's other arguments.
    Raises ValueError or UnsupportedModelError.
    """
    if num_slots is not None and compression is not None:
        raise ValueError(
            f"at most one of num_slots and compression may be given, got {num_slots!r} and "
            f"{compression!r}"
        )
    if compression is not None and not compression >= 1:
        raise ValueError(f"compression must be at least 1, got {compression!r}")
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}")
    path = model_path(name)
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=kind, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = model.to(device).eval()
    if num_slots is not None:
        SlotCache.for_model(model, num_slots, policy=policy, **parts)  # refuse now, not later
    elif compression is not None:
        describe(model)
    return LM(model, tokenizer, num_slots, compression, {"policy": policy, **parts})


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
        """Make the cache for rows of `num_tokens` tokens, prompt and new ones; None if full."""
        num_slots = self.num_slots
        if self.compression is not None:
            num_slots = math.ceil(num_tokens / self.compression)
        if num_slots is None:
            return None
        return SlotCache.for_model(self.model, num_slots, batch_size=batch_size, **self.parts)

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 100,
        streamer: BaseStreamer | None = None,
        trace: str | os.PathLike[str] | None = None,
        **sampling: Any,
    ) -> str:
        """Continue a prompt; returns the new text. Greedy unless `sampling` says otherwise.

        `trace` names a file for the KV-MMU's events; `sampling` goes to transformers' generate().
        Raises ValueError for an empty prompt, or a trace of a full cache.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        inputs: dict[str, Any] = dict(self.encode(prompt))
        length = inputs["input_ids"].shape[1]
        self.cache = self.make_cache(length + max_new_tokens)
        if trace is not None and self.cache is None:
            raise ValueError("a trace needs a SlotCache; give num_slots or compression")
        options: dict[str, Any] = {"do_sample": False} | sampling | inputs
        options |= {"max_new_tokens": max_new_tokens, "streamer": streamer}
        model: Any = self.model
        with ExitStack() as stack:
            if self.cache is not None:
                stack.enter_context(enabled(self.model))
                options["past_key_values"] = self.cache
                options["prefill_chunk_size"] = self.cache.prefill_chunk_size
                if trace is not None:
                    name = Path(str(self.model.name_or_path)).name or None
                    stack.enter_context(record(self.cache, trace, model_name=name))
            ids = model.generate(**options)
        text: str = self.tokenizer.decode(ids[0, length:], skip_special_tokens=True)
        return text

    def stream(self, prompt: str, *, max_new_tokens: int = 100, **sampling: Any) -> Iterator[str]:
        """Continue a prompt piece by piece, as `generate` does; leave early to stop."""
        from kvmmu.hf.stream import pieces

        yield from pieces(self, prompt, max_new_tokens=max_new_tokens, **sampling)
