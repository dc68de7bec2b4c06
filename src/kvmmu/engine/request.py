"""SamplingParams and Request: what is asked for; Output and Completion: what comes back."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from kvmmu.policies.base import is_count

__all__ = ["Completion", "Finish", "Logprob", "Output", "Request", "SamplingParams"]

Finish = Literal["stop", "length", "cancelled", "error"]
"""Why a request ended: an end or stop token or a stop string; max_new_tokens; cancel; a fault."""

_MAX_SEED = 2**63


@dataclass(frozen=True)
class SamplingParams:
    """How the next tokens of one request are drawn, and when to stop.

        temperature         0 takes the likeliest token; else logits are divided by it
        top_k               keep the k likeliest tokens (and ties), None keeps all
        top_p               keep the fewest tokens that have this probability together
        min_p               keep tokens at least this share as likely as the likeliest
        repetition_penalty  divides (multiplies, below 0) logits of tokens seen, prompt included
        seed                of the request's own generator; None draws one
        max_new_tokens      most tokens to make
        stop                strings that end the text; they are cut off
        stop_token_ids      tokens that end the text, besides the model's own
        ignore_eos          go on after the model's end-of-sequence
        logprobs            n: each token's log-probability and those of the n likeliest; None: no

    Raises ValueError for a value out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_new_tokens: int = 100
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, low, high, takes_low in (
            ("temperature", 0.0, math.inf, True),
            ("top_p", 0.0, 1.0, False),
            ("min_p", 0.0, 1.0, True),
            ("repetition_penalty", 0.0, math.inf, False),
        ):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            is_in = is_number and math.isfinite(value) and low <= value <= high
            if not is_in or (value == low and not takes_low):
                lower = "at least" if takes_low else "above"
                upper = "" if high == math.inf else f" and at most {high:g}"
                raise ValueError(
                    f"{name} must be a finite number {lower} {low:g}{upper}, got {value!r}"
                )
        for name, least in (("top_k", 1), ("max_new_tokens", 1), ("logprobs", 0), ("seed", 0)):
            value = getattr(self, name)
            if value is None and name != "max_new_tokens":
                continue
            if not is_count(value) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        if self.seed is not None and self.seed >= _MAX_SEED:
            raise ValueError(f"seed must be below 2**63, got {self.seed!r}")
        if not isinstance(self.ignore_eos, bool):
            raise ValueError(f"ignore_eos must be True or False, got {self.ignore_eos!r}")
        self._settle_stops()

    def _settle_stops(self) -> None:
        """Make tuples of what stops; one string is a list of one."""
        given: object = self.stop
        if not isinstance(given, Iterable):
            raise ValueError(f"stop must be a string or a list of them, got {given!r}")
        stops = (given,) if isinstance(given, str) else tuple(given)
        if not all(isinstance(s, str) and s for s in stops):
            raise ValueError(f"stop must hold strings that are not empty, got {self.stop!r}")
        if not isinstance(self.stop_token_ids, Iterable):
            raise ValueError(f"stop_token_ids must be a list, got {self.stop_token_ids!r}")
        ids = tuple(self.stop_token_ids)
        if not all(is_count(i) and i >= 0 for i in ids):
            raise ValueError(f"stop_token_ids must hold token ids, got {self.stop_token_ids!r}")
        object.__setattr__(self, "stop", stops)
        object.__setattr__(self, "stop_token_ids", ids)

    @property
    def is_greedy(self) -> bool:
        """Tell whether the likeliest token is always taken."""
        return self.temperature == 0.0


@dataclass(frozen=True)
class Request:
    """One prompt and how to continue it; `lane_class` names the lanes that it may take."""

    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    lane_class: str


@dataclass(frozen=True)
class Logprob:
    """One token's log-probability by the model's own logits, and the likeliest tokens' beside."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Output:
    """What one step brought one request: its tokens, the text that is certain, perhaps its end.

    `text` may lag behind the tokens: part of a character, or of what may become a stop string,
    waits. `error` says what was wrong where finish is "error".
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[Logprob, ...] = ()
    finish: Finish | None = None
    error: str | None = None


@dataclass(frozen=True)
class Completion:
    """All that a request brought, in one piece."""

    request_id: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[Logprob, ...]
    finish: Finish
    error: str | None = None
