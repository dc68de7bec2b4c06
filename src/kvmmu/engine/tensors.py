"""A model's tensors: their shapes by the configuration, and the records that hold them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvmmu.engine.config import ModelConfig
from kvmmu.engine.linear import Linear

__all__ = ["LayerWeights", "Shape", "Weights", "layer_shapes", "part_rows", "top_shapes"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer. up holds gate and up in a gated MLP; norms are float32."""

    qkv: Linear
    out: Linear
    up: Linear
    down: Linear
    attn_norm: Tensor
    mlp_norm: Tensor
    attn_norm_bias: Tensor | None
    mlp_norm_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None


@dataclass(frozen=True)
class Weights:
    """A model's weights. embed [V,H] and positions are in `dtype`, the head in its own form."""

    dtype: torch.dtype
    embed: Tensor
    positions: Tensor | None
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    final_norm_bias: Tensor | None
    head: Linear

    @property
    def nbytes(self) -> int:
        """Bytes that a decode step reads of the weights: all but the embeddings."""
        matrices = [m for w in self.layers for m in (w.qkv, w.out, w.up, w.down)]
        return sum(m.nbytes for m in [*matrices, self.head])


def layer_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Return the shapes of a layer's tensors."""
    c = config
    width, ups = c.num_heads * c.head_dim, (2 if c.is_gated else 1) * c.intermediate_size
    q, k, _ = c.qkv_rows
    shapes: dict[str, Shape] = {
        "qkv": (sum(c.qkv_rows), c.hidden_size),
        "out": (c.hidden_size, width),
        "up": (ups, c.hidden_size),
        "down": (c.hidden_size, c.intermediate_size),
        "attn_norm": (c.hidden_size,),
        "mlp_norm": (c.hidden_size,),
    }
    if c.has_qkv_bias:
        shapes["qkv_bias"] = (sum(c.qkv_rows),)
    if c.has_out_bias:
        shapes["out_bias"] = (c.hidden_size,)
    if c.has_mlp_bias:
        shapes |= {"up_bias": (ups,), "down_bias": (c.hidden_size,)}
    if c.norm == "layer":
        shapes |= {"attn_norm_bias": (c.hidden_size,), "mlp_norm_bias": (c.hidden_size,)}
    if c.qk_norm is not None:
        each = (c.head_dim,) if c.qk_norm == "head" else None
        shapes |= {"q_norm": each or (q,), "k_norm": each or (k,)}
    return shapes


def top_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Return the shapes of the tensors outside of the layers; the head only if it is not tied."""
    shapes: dict[str, Shape] = {
        "embed": (config.vocab_size, config.hidden_size),
        "final_norm": (config.hidden_size,),
    }
    if config.norm == "layer":
        shapes["final_norm_bias"] = (config.hidden_size,)
    if not config.is_rotary:
        rows = config.max_positions + config.position_offset
        shapes["positions"] = (rows, config.hidden_size)
    if not config.is_tied:
        shapes["head"] = shapes["embed"]
    return shapes


def part_rows(config: ModelConfig, target: str, num_parts: int, num_rows: int) -> tuple[int, ...]:
    """Return how many rows of a fused tensor each of its parts in the checkpoint has."""
    if num_parts == 1:
        return (num_rows,)
    if target.startswith("qkv"):
        return config.qkv_rows
    return (num_rows // num_parts,) * num_parts
