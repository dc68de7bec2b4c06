"""The lm-eval model "kvmmu": stock `hf`, with the slots on the path of scoring and generation.

lm-eval's own HFLM scores log-likelihoods by one whole forward without any cache: a cache that is
given to generate() alone is silently not measured by multiple choice and perplexity. Importing
this module registers the model:

    import lm_eval
    import kvmmu.evals.lm_harness.model
    lm_eval.simple_evaluate(
        "kvmmu", {"pretrained": "kvmmu-ref-1m", "compression": 4, "policy": "rce:decay=0.99"}, ...
    )
"""

from __future__ import annotations

import logging
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from kvmmu.evals.answers import read_context
from kvmmu.evals.continuations import score_continuations
from kvmmu.evals.lm_harness.arguments import MissingExtraError, as_arguments
from kvmmu.hf.enable import enabled
from kvmmu.hf.load import load

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
    from tqdm import tqdm
except ImportError as error:
    raise MissingExtraError(
        f"kvmmu lm-eval needs lm-eval; pip install 'kvmmu[eval]' ({error})"
    ) from error

__all__ = ["KVMMULM"]

_Request = tuple[Any, list[int], list[int]]
"""What lm-eval asks to score: a key for its response cache, a context, a continuation."""


@register_model("kvmmu")
class KVMMULM(HFLM):  # type: ignore[misc] # lm-eval has no types
    """Answer lm-eval's requests one row at a time, each with an empty cache of its own.

    A request of N tokens (context and continuation, or context and max_gen_toks) gets the cache
    that CacheArguments says; full=True is stock `hf`. `pretrained` is a shipped model, a local
    folder or a hub name. Texts beyond max_length (default: the trained length) lose their
    beginning, as in stock `hf`. Raises ValueError for an argument that it does not know.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        **cache: Any,
    ) -> None:
        self.cache_arguments = as_arguments(cache)
        if str(batch_size or 1) != "1" or (max_batch_size or 1) != 1:
            raise ValueError(
                "batch_size must be 1 with model 'kvmmu' (a cache of its own for each request), "
                f"got {batch_size!r} and max_batch_size {max_batch_size!r}"
            )
        lm = load(
            pretrained,
            self.cache_arguments.num_slots,
            compression=self.cache_arguments.compression,
            device=device,
            dtype=dtype,
            **self.cache_arguments.parts,
        )
        with _quiet("lm_eval.models.huggingface"):  # it warns of a model that is loaded already
            super().__init__(
                pretrained=lm.model,
                tokenizer=lm.tokenizer,
                batch_size=1,
                max_length=max_length,
                add_bos_token=add_bos_token,
                prefix_token_id=prefix_token_id,
            )
        self._name = pretrained

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval keeps with its results; asks no hub."""
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": str(self.model.dtype),
            "pretrained": self._name,
            "cache": self.cache_arguments.describe(),
        }

    def _loglikelihood_tokens(
        self,
        requests: Sequence[_Request],
        disable_tqdm: bool = False,  # noqa: FBT001, FBT002
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Score continuations through the cache; requests of one context and C read it once."""
        if self.cache_arguments.full:
            stock: list[tuple[float, bool]] = super()._loglikelihood_tokens(
                requests, disable_tqdm, override_bs
            )
            return stock
        rows = self._cut(requests)
        if rows:
            self.cache_arguments.make(self.model, min(len(a) + len(b) for a, b in rows))
        alike: dict[tuple[int, tuple[int, ...]], list[int]] = defaultdict(list)
        for i, (context, tokens) in enumerate(rows):
            num_slots = self.cache_arguments.slots(len(context) + len(tokens))
            alike[num_slots, tuple(context)].append(i)
        made: list[tuple[float, bool]] = [(0.0, False)] * len(rows)
        is_hidden = True if disable_tqdm or len(rows) == 1 else None  # None: where no terminal is
        with tqdm(total=len(rows), desc="log-likelihoods", disable=is_hidden) as bar:
            for (_, shared), members in alike.items():
                num_tokens = len(shared) + max(len(rows[i][1]) for i in members)
                cache = self.cache_arguments.make(self.model, num_tokens)
                with enabled(self.model):
                    scores = score_continuations(
                        self.model,
                        cache,
                        shared,
                        [rows[i][1] for i in members],
                        chunk=self.cache_arguments.call_size(num_tokens),
                    )
                for i, score in zip(members, scores, strict=True):
                    made[i] = score
                    if requests[i][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[i][0], score)
                bar.update(len(members))
        return made

    def _cut(self, requests: Sequence[_Request]) -> list[tuple[list[int], list[int]]]:
        """Cut contexts on the left as stock `hf` does. Raises ValueError for what cannot be."""
        rows, num_cut = [], 0
        for _, context, tokens in requests:
            if not context or not 1 <= len(tokens) <= self.max_length:
                raise ValueError(
                    f"a continuation must have 1 to {self.max_length} tokens after a context, got "
                    f"{len(tokens)} after {len(context)}"
                )
            room = self.max_length + 1 - len(tokens)
            num_cut += len(context) > room
            rows.append((context[-room:], tokens))
        if num_cut:
            warnings.warn(
                f"{num_cut} contexts lost their beginning to fit max_length {self.max_length}",
                UserWarning,
                stacklevel=2,
            )
        return rows

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **options: Any
    ) -> Tensor:
        """Generate through the cache; greedy unless the task says otherwise. context [1,S]."""
        if self.cache_arguments.full:
            stock: Tensor = super()._model_generate(context, max_length, stop, **options)
            return stock
        for name in ("num_beams", "num_return_sequences"):
            if options.get(name, 1) != 1:
                raise ValueError(f"{name} must be 1 with model 'kvmmu', got {options[name]!r}")
        ids = context.to(self.device)
        cache = self.cache_arguments.make(self.model, max_length)
        chunk = self.cache_arguments.call_size(max_length)
        options.setdefault("attention_mask", torch.ones_like(ids))  # else all of ids is fed again
        with torch.inference_mode(), enabled(self.model):
            read_context(self.model, cache, ids[:, :-1], chunk=chunk)
            made: Tensor = super()._model_generate(
                ids, max_length, stop, past_key_values=cache, **options
            )
        return made


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Silence a logger while the with statement lasts."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
