"""kvpress in a benchmark's child process, in an environment of its own (it pins transformers).

Loaded by file by kvmmu/evals/bench/peers/child.py, whose docstring is the contract of Peer; it
imports nothing of kvmmu. Settings: model (folder), threads, num_slots, press:

    snapkv     SnapKVPress in prefill: the prompt is cut to C once, then the cache grows
    decoding   KnormPress in prefill and, every 16 steps, in decode (DecodingPress): about C
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache

_INTERVAL = 16


class Peer:
    """A model with a press on it; greedy tokens by a bare loop around the forward."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Load the model."""
        kvpress = importlib.import_module("kvpress")
        self.settings = settings
        torch.set_num_threads(settings["threads"])
        transformers.logging.set_verbosity_error()
        self.model = AutoModelForCausalLM.from_pretrained(
            settings["model"], dtype=torch.float32, use_safetensors=True
        ).eval()
        self._kvpress = kvpress
        self._decoding: Any = None
        self.cache: Any = None
        self.token = torch.empty(0, dtype=torch.long)
        weights = {p.data_ptr(): p.nbytes for p in self.model.parameters()}
        self.facts = {
            "version": importlib.import_module("importlib.metadata").version("kvpress"),
            "weight_bytes": sum(weights.values()),
            "fans_out": True,
        }

    @torch.inference_mode()
    def prefill(self, prompts: list[list[int]]) -> list[int]:
        """Read prompts of one length; at its end each layer's cache is cut to C."""
        self.clear()
        ids = torch.tensor(prompts)  # [B,S]
        ratio = max(0.0, 1 - self.settings["num_slots"] / ids.shape[1])
        name = {"snapkv": "SnapKVPress", "decoding": "KnormPress"}[self.settings["press"]]
        self.cache = DynamicCache()
        with getattr(self._kvpress, name)(compression_ratio=ratio)(self.model):
            made = self.model(ids, past_key_values=self.cache, logits_to_keep=1)
        self.token = made.logits[:, -1:].argmax(-1)
        self._at = ids.shape[1]
        if self.settings["press"] == "decoding":
            press = self._kvpress.DecodingPress(
                base_press=self._kvpress.KnormPress(),
                compression_interval=_INTERVAL,
                target_size=self.settings["num_slots"],
            )
            self._decoding = contextlib.ExitStack()
            self._decoding.enter_context(press(self.model))
        return [int(x) for x in self.token[:, 0]]

    @torch.inference_mode()
    def spread(self, count: int) -> None:
        """Copy the row that was read to `count` rows."""
        self.token = self.token.repeat(count, 1)
        if count > 1:
            self.cache.batch_repeat_interleave(count)

    @torch.inference_mode()
    def decode(self, count: int) -> list[list[int]]:
        """Take `count` steps, each at its place in the text."""
        made = []
        for _ in range(count):
            at = torch.full_like(self.token, self._at)
            logits = self.model(
                self.token,
                past_key_values=self.cache,
                position_ids=at,
                cache_position=at[0],
            ).logits
            self.token = logits[:, -1:].argmax(-1)
            self._at += 1
            made.append(self.token)
        rows: list[list[int]] = torch.cat(made, 1).tolist()
        return rows

    def clear(self) -> None:
        """Drop the cache and what hooks are on the model."""
        if self._decoding is not None:
            self._decoding.close()
        self.cache, self._decoding = None, None

    def kv_bytes(self) -> int | None:
        """Count the bytes of K and V."""
        if self.cache is None:
            return None
        layers = self.cache.layers
        return sum(int(x.untyped_storage().nbytes()) for y in layers for x in (y.keys, y.values))
