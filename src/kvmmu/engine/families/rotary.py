"""Reading how a model rotates: `rope_parameters`, or the older rope_theta and `rope_scaling`."""

from __future__ import annotations

import math
from typing import Any

from kvmmu.engine.config import RopeSpec
from kvmmu.engine.families.settings import Settings

__all__ = ["read_rope"]

_USED = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
    "longrope": (
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "short_factor",
        "long_factor",
    ),
}
"""Keys of each kind besides the type, rope_theta and partial_rotary_factor."""


def read_rope(
    settings: Settings,
    head_dim: int,
    *,
    theta: float = 10_000.0,
    can_be_partial: bool = False,
    original_length: int | None = None,
    aliases: dict[str, str] | None = None,
) -> RopeSpec:
    """Read a model's rotation; `theta` is the family's default.

    original_length, where the family names one outside of the parameters, counts before theirs;
    aliases are older names of kinds. Raises UnsupportedModelError for a kind that is not known.
    """
    outer = {
        "rope_theta": settings.get("rope_theta"),
        "partial_rotary_factor": settings.get("partial_rotary_factor"),
    }
    scaling, parameters = settings.get("rope_scaling"), settings.get("rope_parameters")
    given: dict[str, Any] = {**(scaling or parameters or {})}
    if any(isinstance(value, dict) for value in given.values()):
        raise settings.refusal("it has other angles in its sliding-window layers")
    given = {k: v for k, v in (outer | given).items() if v is not None}
    old_name = given.pop("type", "default")
    kind = given.pop("rope_type", old_name)
    kind = (aliases or {}).get(kind, kind)
    if kind == "dynamic":
        raise settings.refusal("its RoPE is 'dynamic': the angles change with the text's length")
    if kind not in _USED:
        raise settings.refusal(f"its RoPE is {kind!r}, the engine knows {', '.join(_USED)}")
    part = given.pop("partial_rotary_factor", 1.0)
    if part != 1.0 and not can_be_partial:
        raise settings.refusal(f"its partial_rotary_factor is {part!r}, the engine knows 1.0")
    theta = float(given.pop("rope_theta", theta))
    unknown = sorted(set(given) - set(_USED[kind]))
    if unknown:
        raise settings.refusal(f"its RoPE {kind!r} names {', '.join(unknown)}, which is not known")
    rotary_dim = int(head_dim * part)
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        raise settings.refusal(f"it rotates {rotary_dim} of {head_dim} dimensions of a head")
    trained = settings.integer("max_position_embeddings")
    original = original_length or given.get("original_max_position_embeddings") or trained
    return _spec(settings, kind, theta, rotary_dim, given, original, trained)


def _spec(
    settings: Settings,
    kind: Any,
    theta: float,
    rotary_dim: int,
    given: dict[str, Any],
    original: int,
    trained: int,
) -> RopeSpec:
    """Make the specification of a kind from the keys given for it."""
    if kind == "default":
        return RopeSpec(kind, theta, rotary_dim)
    if kind in ("linear", "llama3") and "factor" not in given:
        raise settings.refusal(f"its RoPE {kind!r} names no factor")
    factor = float(given.get("factor") or trained / original)
    if kind == "linear":
        return RopeSpec(kind, theta, rotary_dim, factor=factor)
    if kind == "llama3":
        missing = {"low_freq_factor", "high_freq_factor"} - set(given)
        if missing:
            raise settings.refusal(f"its RoPE 'llama3' names no {', '.join(sorted(missing))}")
        return RopeSpec(
            kind,
            theta,
            rotary_dim,
            factor=factor,
            original_length=original,
            low_freq_factor=float(given["low_freq_factor"]),
            high_freq_factor=float(given["high_freq_factor"]),
        )
    if kind == "yarn":
        return RopeSpec(
            kind,
            theta,
            rotary_dim,
            factor=factor,
            original_length=original,
            attention_factor=_yarn_attention(given, factor),
            beta_fast=float(given.get("beta_fast") or 32),
            beta_slow=float(given.get("beta_slow") or 1),
            is_truncated=bool(given.get("truncate", True)),
        )
    short = given.get("short_factor")
    if not isinstance(short, list) or len(short) != rotary_dim // 2:
        raise settings.refusal(f"its short_factor must be a list of {rotary_dim // 2} numbers")
    grown = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return RopeSpec(
        kind,
        theta,
        rotary_dim,
        factor=factor,
        original_length=original,
        attention_factor=float(given.get("attention_factor") or grown),
        short_factors=tuple(map(float, short)),
    )


def _yarn_attention(given: dict[str, Any], factor: float) -> float:
    """Return YaRN's factor on queries and keys (arXiv:2309.00071, section 3.4)."""

    def grown(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if given.get("attention_factor") is not None:
        return float(given["attention_factor"])
    mscale, mscale_all = given.get("mscale"), given.get("mscale_all_dim")
    if mscale and mscale_all:
        return grown(mscale) / grown(mscale_all)
    return grown(1.0)
