"""What the fields of a results file may hold: every line is checked as it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["NEEDED", "check"]

Line = dict[str, Any]

NEEDED: dict[str, tuple[str, ...]] = {
    "about": (),
    "answers": ("key", "task", "mode", "num_tokens", "policy", "label", "compression", "rows"),
    "pages": ("key", "text", "num_tokens", "policy", "label", "compression", "rows"),
    "speed": ("label", "compression", "num_tokens", "ratio_to_static"),
    "survivors": ("label", "compression", "num_tokens", "edges", "kept"),
    "agreement": ("label", "compression", "num_tokens", "text", "victims"),
    "skipped": ("task", "mode", "num_tokens", "reason"),
}
"""The kinds of lines that are read, and the fields that each must have; others may be null."""

_MOST = 1e15
_MOST_NATS = 700  # a token's loss of which a perplexity can still be written


@dataclass(frozen=True)
class _Rule:
    """What a field must be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def _is_number(value: Any, low: float = -_MOST, high: float = _MOST) -> bool:
    return type(value) in (int, float) and low <= value <= high  # nan is in no range


def _is_whole(value: Any, low: float = -_MOST) -> bool:
    return type(value) is int and low <= value <= _MOST


def _is_list(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(holds, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_answers(row: Any) -> bool:
    """Tell whether a row is [score sum, answers]; sums were rounded to 6 digits."""
    return (
        _is_list(row, _is_number)
        and len(row) == 2
        and row[1] >= 1
        and -1e-5 <= row[0] <= row[1] + 1e-5
    )


def _is_losses(row: Any) -> bool:
    """Tell whether a row is [loss sum in nats, tokens]."""
    return (
        _is_list(row, _is_number)
        and len(row) == 2
        and row[1] >= 1
        and -1e-5 <= row[0] <= _MOST_NATS * row[1]
    )


def _is_sample(row: Any) -> bool:
    return _is_list(row, _is_text) and len(row) == 2


def _is_rising(value: Any) -> bool:
    return _is_list(value, _is_number) and len(value) >= 2 and value == sorted(value)


_VICTIMS = ("evictions", "same_slot", "same_or_tied", "num_ties", "chunk_evictions", "chunk_same")


def _are_victims(value: Any) -> bool:
    """Tell whether these are the counts of a VictimAgreement, none beyond its evictions."""
    if not isinstance(value, dict) or value.get("weights") not in ("float32", "uq0.16"):
        return False
    if not all(_is_whole(value.get(name), 0) for name in _VICTIMS):
        return False
    if not all(_is_number(value.get(name), 0) for name in ("lost_mass", "least_mass")):
        return False
    ranks: Any = value.get("ranks")
    return (
        _is_list(ranks, lambda count: _is_whole(count, 0))
        and sum(ranks) == value["evictions"]
        and value["same_slot"] <= value["same_or_tied"] <= value["evictions"]
        and value["num_ties"] <= value["evictions"]
        and value["chunk_same"] <= value["chunk_evictions"]
    )


def _are_params(value: Any) -> bool:
    return isinstance(value, dict) and _is_number(value.get("depth", 0))


_TEXT = _Rule("a text", _is_text)
_OBJECT = _Rule("an object", lambda value: isinstance(value, dict))
_WHOLE = _Rule("a whole number", _is_whole)
_COUNT = _Rule("a whole number of at least 0", lambda value: _is_whole(value, 0))
_AMOUNT = _Rule("a number of at least 0", lambda value: _is_number(value, 0))
_SHARE = _Rule("a number in [0, 1]", lambda value: _is_number(value, 0, 1))
_SHARES = _Rule(
    "a list of numbers of at least 0", lambda v: _is_list(v, lambda x: _is_number(x, 0))
)
_NUMBERS = _Rule("a list of numbers", lambda value: _is_list(value, _is_number))

_TEXTS = ("key", "task", "mode", "text", "policy", "label", "granularity", "capability", "reason",
          "model")  # fmt: skip
_COUNTS = ("num_tokens", "num_slots", "chunk_size", "peak_tokens", "kv_bytes", "batch", "size")
_AMOUNTS = ("ops_per_slot", "ratio_to_static", "tokens_per_s", "num_parameters")
_FIELDS: dict[str, _Rule] = {
    **dict.fromkeys(_TEXTS, _TEXT),
    **dict.fromkeys(_COUNTS, _COUNT),
    **dict.fromkeys(_AMOUNTS, _AMOUNT),
    **dict.fromkeys(("chance", "full_score", "floor"), _SHARE),
    "compression": _Rule("a number of at least 1", lambda value: _is_number(value, 1)),
    "seed": _WHOLE,
    "params": _Rule("an object whose depth, if any, is a number", _are_params),
    "host": _OBJECT,
    "seeds": _Rule("a list of whole numbers", lambda value: _is_list(value, _is_whole)),
    "texts": _Rule("a list of texts", lambda value: _is_list(value, _is_text)),
    "edges": _Rule("a list of two or more rising numbers", _is_rising),
    "kept": _SHARES,
    "ratio_quartiles": _Rule(
        "a list of two numbers", lambda value: _NUMBERS.holds(value) and len(value) == 2
    ),
    "log_likelihoods": _NUMBERS,
    "victims": _Rule("the counts of an agreement of victims", _are_victims),
    "samples": _Rule("a list of [id, text]", lambda value: _is_list(value, _is_sample)),
}
_ROWS = {
    "answers": _Rule(
        "a list of [score sum, answers], 0 <= score sum <= answers",
        lambda value: _is_list(value, _is_answers),
    ),
    "pages": _Rule(
        f"a list of [loss sum, tokens], 0 <= loss sum <= {_MOST_NATS} tokens",
        lambda value: _is_list(value, _is_losses),
    ),
}


def check(line: Line, number: int, path: str) -> None:
    """Raise ValueError, naming the file, the line and the field, unless a line can be read.

    Fields that no table knows may hold anything, and so may lines of a kind that is not NEEDED.
    """
    where = f"in line {number} of {path}"
    kind = line.get("kind")
    if not isinstance(kind, str):
        raise ValueError(f"field 'kind' {where} must be a text, got {kind!r:.60}")
    needed = NEEDED.get(kind)
    if needed is None:
        return
    for name in needed:
        if name not in line:
            raise ValueError(
                f"the object of kind {kind!r} {where} must have a field {name!r}, "
                f"got {', '.join(sorted(line))}"
            )
    rules = _FIELDS | ({"rows": _ROWS[kind]} if kind in _ROWS else {})
    for name, value in line.items():
        is_told = value is not None or name in needed
        if is_told and name in rules and not rules[name].holds(value):
            raise ValueError(
                f"field {name!r} {where} must be {rules[name].words}, got {value!r:.60}"
            )
    if kind == "survivors" and len(line["kept"]) != len(line["edges"]) - 1:
        raise ValueError(
            f"field 'kept' {where} must hold one number less than 'edges', "
            f"got {len(line['kept'])} and {len(line['edges'])}"
        )
