"""Rotary angles by the configuration, and turning queries and keys by them.

A head's first rotary_dim dimensions are pairs (d, d + rotary_dim / 2); pair d of a token at
position p turns by p * frequencies[d]. Angles and products are float32 whatever the model's dtype.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kvmmu.engine.config import RopeSpec

__all__ = ["Rotation", "angles", "frequencies", "turn"]


def frequencies(spec: RopeSpec) -> Tensor:
    """Return radians per position of each pair, float32 [rotary_dim / 2], on the CPU."""
    steps = torch.arange(0, spec.rotary_dim, 2, dtype=torch.float32) / spec.rotary_dim
    powers = spec.theta**steps
    plain = 1.0 / powers
    if spec.kind == "linear":
        return plain / spec.factor
    if spec.kind == "llama3":
        return _llama3(spec, plain)
    if spec.kind == "yarn":
        return _yarn(spec, powers)
    if spec.kind == "longrope":
        return 1.0 / (torch.tensor(spec.short_factors, dtype=torch.float32) * powers)
    return plain


def _llama3(spec: RopeSpec, plain: Tensor) -> Tensor:
    """Slow down the pairs whose wave is longer than the trained text (Llama 3.1)."""
    length = spec.original_length
    waves = 2 * math.pi / plain
    share = (length / waves - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor)
    blend = (1 - share) * plain / spec.factor + share * plain
    slowed = torch.where(waves > length / spec.low_freq_factor, plain / spec.factor, blend)
    return torch.where(waves < length / spec.high_freq_factor, plain, slowed)


def _yarn(spec: RopeSpec, powers: Tensor) -> Tensor:
    """Blend kept and slowed-down pairs by the turns that each makes in the trained text."""

    def pair_with(turns: float) -> float:
        """Return the index of the pair that makes so many turns (arXiv:2309.00071, eq. 17)."""
        span = spec.original_length / (turns * 2 * math.pi)
        return spec.rotary_dim * math.log(span) / (2 * math.log(spec.theta))

    low, high = pair_with(spec.beta_fast), pair_with(spec.beta_slow)
    if spec.is_truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.rotary_dim - 1)
    width = high - low if high != low else 0.001  # a step, not a division by zero
    pairs = torch.arange(spec.rotary_dim // 2, dtype=torch.float32)
    kept = 1 - ((pairs - low) / width).clamp(0, 1)
    return (1.0 / (spec.factor * powers)) * (1 - kept) + (1.0 / powers) * kept


def angles(freqs: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and sin of positions [...], float32 [..., rotary_dim / 2]."""
    turns = positions[..., None].float() * freqs
    return turns.cos(), turns.sin()


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x [...,D] by cos and sin [...,rotary_dim / 2], which broadcast. -> contiguous."""
    half = cos.shape[-1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    first, second = x[..., :half], x[..., half : 2 * half]
    out[..., :half] = first * cos - second * sin
    out[..., half : 2 * half] = second * cos + first * sin
    out[..., 2 * half :] = x[..., 2 * half :]
    return out


class Rotation:
    """A layer's rotation alone, without the attention factor: slots.Rotary for one model."""

    def __init__(self, freqs: Tensor) -> None:
        self.freqs = freqs

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """Turn x [B,H,N,D] by int positions index [B,H,N]; a negative index turns back."""
        return turn(x, *angles(self.freqs, index))
