"""What is checked when a request comes in, so that nothing can go wrong with it later."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kvmmu.engine.config import ModelConfig
from kvmmu.engine.request import Request, SamplingParams
from kvmmu.engine.text import Decode
from kvmmu.errors import CapacityError
from kvmmu.policies.base import is_count
from kvmmu.registry import unknown_name
from kvmmu.slots.pool import LanePool

__all__ = ["Admission"]


class Admission:
    """Turn prompts into requests, or say what is wrong with them."""

    def __init__(self, config: ModelConfig, pools: Mapping[str, LanePool], tokenizer: Any) -> None:
        self._config, self._pools, self._tokenizer = config, pools, tokenizer
        self.decode: Decode | None = None if tokenizer is None else self._decode
        self._num_named = 0

    def _decode(self, token_ids: list[int]) -> str:
        """Return the text of tokens, special ones left out, spaces as they are."""
        text: str = self._tokenizer.decode(
            token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def request(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None,
        *,
        lane_class: str | None,
        request_id: str | None,
        taken: Collection[str],
    ) -> Request:
        """Check a prompt and what goes with it. Raises ValueError, TypeError or CapacityError."""
        params = SamplingParams() if params is None else params
        if not isinstance(params, SamplingParams):
            raise TypeError(f"params must be SamplingParams, got {type(params).__name__}")
        name = next(iter(self._pools)) if lane_class is None else lane_class
        if name not in self._pools:
            raise ValueError(unknown_name("lane class", name, list(self._pools)))
        ids = self._ids(prompt)
        self._check_params(params)
        self._check_length(self._pools[name], len(ids), params.max_new_tokens)
        return Request(self._name(request_id, taken), ids, params, name)

    def _ids(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        """Return a prompt's token ids, all in the vocabulary and at least one."""
        given: object = prompt
        if isinstance(given, str):
            if self._tokenizer is None:
                raise ValueError("prompt must be token ids for an engine without a tokenizer")
            given = self._tokenizer(given)["input_ids"]
        if not isinstance(given, Sequence) or isinstance(given, bytes):
            raise TypeError(
                f"prompt must be a text or a list of token ids, got {type(prompt).__name__}"
            )
        if not given:
            raise ValueError(f"prompt must have at least one token, got {prompt!r}")
        size = self._config.vocab_size
        for token in given:
            if not is_count(token) or not 0 <= token < size:
                raise ValueError(
                    f"token ids of a prompt must be integers in [0, {size}), got {token!r}"
                )
        return tuple(given)

    def _check_params(self, params: SamplingParams) -> None:
        """Raise ValueError for parameters that this model or engine cannot meet."""
        size = self._config.vocab_size
        beyond = [token for token in params.stop_token_ids if token >= size]
        if beyond:
            raise ValueError(f"stop_token_ids must be below {size}, got {beyond[0]!r}")
        if params.logprobs is not None and params.logprobs > size:
            raise ValueError(f"logprobs must be at most {size}, got {params.logprobs!r}")
        if params.stop and self._tokenizer is None:
            raise ValueError(
                f"stop must be empty for an engine without a tokenizer, got {params.stop!r}; "
                "use stop_token_ids"
            )

    def _check_length(self, pool: LanePool, num_prompt: int, max_new_tokens: int) -> None:
        """Raise CapacityError for a text past the model's positions; the last token is not fed."""
        config, options = self._config, pool.settings
        hard, limit = config.position_limit, config.num_positions
        if options.allow_extrapolation and config.is_rotary:
            if hard is None:
                return
            limit = hard
        if options.positions == "in_cache":
            if options.policy.kind == "selector" and num_prompt > limit:
                raise CapacityError(
                    f"prompt must be at most the model's {limit} positions with policy "
                    f"{options.policy.name!r}, which takes it whole, got {num_prompt} tokens"
                )
            return
        num_fed = num_prompt + max_new_tokens - 1
        if num_fed <= limit:
            return
        cure = "; use a lane class with positions='in_cache'" if config.is_rotary else ""
        if config.is_rotary and (hard is None or num_fed <= hard):
            cure += ", or allow_extrapolation=True"
        raise CapacityError(
            f"prompt and new tokens must be at most {limit + 1} (the model's positions and one), "
            f"got {num_fed + 1}; shorten them{cure}"
        )

    def _name(self, request_id: str | None, taken: Collection[str]) -> str:
        """Return an id that no live request has."""
        if request_id is None:
            while (name := f"request-{self._num_named}") in taken:
                self._num_named += 1
            self._num_named += 1
            return name
        if not isinstance(request_id, str) or not request_id:
            raise ValueError(f"request_id must be a text, got {request_id!r}")
        if request_id in taken:
            raise ValueError(f"request_id must be one that no live request has, got {request_id!r}")
        return request_id
