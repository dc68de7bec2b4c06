"""openvino-genai as a peer: its continuous batching, asked for one step at a time.

Settings: model (IR folder), threads, dtype ("f32" sets inference and K/V to float32; "default"
leaves openvino's own choices), evict_tokens (CacheEvictionConfig.max_cache_size; None: full),
max_batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai

BLOCK = 32
"""Tokens of a block of K and V on the CPU."""
_LONG = 1 << 30


class Peer:
    """A ContinuousBatchingPipeline, made anew after `clear`, its model compiled each time."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Compile the model."""
        self.settings = settings
        self._folder = Path(settings["model"])
        weights = (self._folder / "openvino_model.bin").stat().st_size
        self.facts = {
            "version": openvino_genai.__version__,
            "weight_bytes": weights,
            "fans_out": False,
        }
        self._blocks = 0
        self._next_id = 0
        self.clear()

    def clear(self) -> None:
        """Make a new pipeline, whose pool is empty."""
        self._handles: list[Any] = []
        self._tokens: list[list[int]] = []
        self._pipe: Any = None
        properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": self.settings["threads"]}
        if self.settings["dtype"] == "f32":
            properties |= {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
        self._pipe = openvino_genai.ContinuousBatchingPipeline(
            self._folder, self._scheduler(), "CPU", properties
        )

    def _scheduler(self) -> Any:
        config = openvino_genai.SchedulerConfig()
        config.max_num_seqs = max(self.settings["max_batch"], 1)
        config.enable_prefix_caching = False
        if self._blocks:
            config.num_kv_blocks = self._blocks
        kept = self.settings["evict_tokens"]
        if kept:
            config.use_cache_eviction = True
            config.cache_eviction_config = openvino_genai.CacheEvictionConfig(
                start_size=BLOCK,
                recent_size=max(BLOCK, kept // 8 // BLOCK * BLOCK),
                max_cache_size=kept,
                aggregation_mode=openvino_genai.AggregationMode.NORM_SUM,
            )
        return config

    def _add(self, prompt: list[int], count: int) -> None:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = count
        config.ignore_eos = True
        config.do_sample = False
        ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
        self._handles.append(self._pipe.add_request(self._next_id, ids, config))
        self._tokens.append([])
        self._next_id += 1

    def _step(self) -> None:
        """Take one step and collect what it made."""
        self._pipe.step()
        for handle, made in zip(self._handles, self._tokens):
            while handle.can_read():
                for output in handle.read().values():
                    made.extend(output.generated_ids)

    def prefill(self, prompts: list[list[int]]) -> list[int]:
        """Read the prompts until every row has its first token."""
        for prompt in prompts:
            self._add(prompt, _LONG)
        while not all(self._tokens):
            if not self._pipe.has_non_finished_requests():
                raise RuntimeError("the pipeline ended the requests without a token")
            self._step()
        firsts = [made[-1] for made in self._tokens]
        for made in self._tokens:
            made.clear()
        return firsts

    def decode(self, count: int) -> list[list[int]]:
        """Take `count` steps."""
        for _ in range(count):
            self._step()
        made = [list(tokens) for tokens in self._tokens]
        for tokens in self._tokens:
            tokens.clear()
        if any(len(tokens) != count for tokens in made):
            raise RuntimeError(
                f"{count} steps must give {count} tokens a row, got "
                f"{[len(tokens) for tokens in made]}"
            )
        return made

    def kv_bytes(self) -> int | None:
        """Return what the pipeline says of its pool, if it does."""
        metrics = self._pipe.get_metrics()
        size = getattr(metrics, "kv_cache_size_in_bytes", None)
        return int(size) if size else None

    def serve(
        self, prompts: list[list[int]], new_tokens: int, cap_tokens: int | None
    ) -> dict[str, Any]:
        """Answer all requests with a pool of cap_tokens (None: as large as it grows)."""
        self._blocks = cap_tokens // BLOCK if cap_tokens else 0
        self.clear()
        for prompt in prompts:
            self._add(prompt, new_tokens)
        while self._pipe.has_non_finished_requests():
            self._step()
        return {"num_tokens": sum(len(made) for made in self._tokens)}
