"""transformers in a benchmark's child process: its own caches, and ours inside it.

Loaded by file by kvmmu/evals/bench/peers/child.py, whose docstring is the contract of Peer.
Settings: model (folder), threads, dtype, cache ("dynamic", "static", "static-compiled",
"slots"), context (tokens a StaticCache has room for), and for slots num_slots, policy and kernel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, Cache, DynamicCache, StaticCache

from kvmmu.hf.cache import SlotCache
from kvmmu.hf.enable import enabled
from kvmmu.policies.base import POLICIES, Policy

__all__ = ["Peer"]


class Peer:
    """A model and a cache at some context; greedy tokens by a bare loop around the forward."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Load the model. Raises ValueError for an unknown cache."""
        self.settings = settings
        self.kind = settings["cache"].removesuffix("-compiled")
        if self.kind not in ("dynamic", "static", "slots"):
            raise ValueError(f"cache must be dynamic, static or slots, got {settings['cache']!r}")
        torch.set_num_threads(settings["threads"])
        transformers.logging.set_verbosity_error()
        dtype = getattr(torch, settings["dtype"])
        self.model = AutoModelForCausalLM.from_pretrained(
            settings["model"], dtype=dtype, use_safetensors=True, attn_implementation="sdpa"
        ).eval()
        self._forward: Callable[..., Any] = self.model
        if settings["cache"].endswith("-compiled"):
            self._forward = torch.compile(self.model, fullgraph=True, dynamic=False)
        self._open = contextlib.ExitStack()
        if self.kind == "slots":
            is_native = settings.get("kernel") == "native"
            own = enabled(self.model, linears="native" if is_native else "torch")
            self._open.enter_context(own)
        self.cache: Cache | None = None
        self.token = torch.empty(0, dtype=torch.long)
        weights = {p.data_ptr(): p.nbytes for p in self.model.parameters()}  # tied ones once
        self.facts = {
            "version": transformers.__version__,
            "weight_bytes": sum(weights.values()),
            "fans_out": True,
        }

    def _make(self, batch: int) -> Cache:
        """Make an empty cache."""
        config = self.model.config
        if self.kind == "dynamic":
            return DynamicCache(config=config)
        if self.kind == "static":
            cache = StaticCache(config=config, max_cache_len=self.settings["context"])
            heads, dim = config.num_key_value_heads, self._head_dim
            cache.early_initialization(batch, heads, dim, self.model.dtype, self.model.device)
            return cache
        return SlotCache.for_model(
            self.model,
            batch_size=batch,
            num_slots=self.settings["num_slots"],
            policy=self._policy(),
            kernel=self.settings.get("kernel"),
        )

    @property
    def _head_dim(self) -> int:
        config = self.model.config
        own = getattr(config, "head_dim", None)
        return int(own or config.hidden_size // config.num_attention_heads)

    def _read(self, ids: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Read prompts [B,S] -> the next token [B,1]."""
        whole = ids.shape[1]
        chunk = (cache.prefill_chunk_size or whole) if isinstance(cache, SlotCache) else whole
        for start in range(0, whole, chunk):
            part = ids[:, start : start + chunk]
            made = self.model(part, past_key_values=cache, logits_to_keep=1)
        token: torch.Tensor = made.logits[:, -1:].argmax(-1)
        return token

    @torch.inference_mode()
    def prefill(self, prompts: list[list[int]]) -> list[int]:
        """Read prompts of one length into a new cache."""
        ids = torch.tensor(prompts)  # [B,S]
        self.cache = self._make(len(prompts))
        self.token = self._read(ids, self.cache)
        return [int(x) for x in self.token[:, 0]]

    @torch.inference_mode()
    def spread(self, count: int) -> None:
        """Copy the row that was read to `count` rows."""
        if count == 1 or self.cache is None:
            return
        self.token = self.token.repeat(count, 1)
        if self.kind == "static":
            wide = self._make(count)
            pairs: list[tuple[Any, Any]] = list(zip(wide.layers, self.cache.layers, strict=True))
            for layer, one in pairs:
                layer.keys.copy_(one.keys)
                layer.values.copy_(one.values)
                layer.cumulative_length.copy_(one.cumulative_length)
            self.cache = wide
        else:
            self.cache.batch_repeat_interleave(count)

    @torch.inference_mode()
    def decode(self, count: int) -> list[list[int]]:
        """Take `count` steps."""
        made = []
        for _ in range(count):
            logits = self._forward(self.token, past_key_values=self.cache).logits
            self.token = logits[:, -1:].argmax(-1)
            made.append(self.token)
        rows: list[list[int]] = torch.cat(made, 1).tolist()
        return rows

    def _policy(self) -> Policy:
        """Make the policy of the settings."""
        about = self.settings["policy"]
        made: Policy = POLICIES.get(about["name"])(**about["params"])
        return made

    def clear(self) -> None:
        """Drop the cache."""
        self.cache = None

    def kv_bytes(self) -> int | None:
        """Count the bytes of K and V."""
        if self.cache is None:
            return None
        if isinstance(self.cache, SlotCache):
            return int(self.cache.kv_nbytes)
        layers: list[Any] = self.cache.layers
        return sum(int(x.untyped_storage().nbytes()) for y in layers for x in (y.keys, y.values))

    def serve(
        self, prompts: list[list[int]], new_tokens: int, cap_tokens: int | None
    ) -> dict[str, Any]:
        """Answer the requests in batches of as many as the cap holds, one batch after another.

        Raises ValueError where the cap does not hold one.
        """
        own = self.settings["num_slots"] if self.kind == "slots" else len(prompts[0]) + new_tokens
        most = len(prompts) if cap_tokens is None else cap_tokens // own
        if most < 1:
            raise ValueError(f"a cap of {cap_tokens} tokens must hold one request of {own}")
        total = 0
        for start in range(0, len(prompts), most):
            batch = prompts[start : start + most]
            self.prefill(batch)
            total += len(batch) * (1 + len(self.decode(new_tokens - 1)[0]))
        return {"num_tokens": total, "most_users": most}
