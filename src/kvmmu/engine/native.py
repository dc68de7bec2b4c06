"""The two halves of a layer on native CPU kernels, for few rows; see kernels/native/block.py.

A row's bits depend neither on the other rows nor on their number, as long as there are at most
`limit` of them; a call of more rows goes through PyTorch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvmmu.engine.config import ModelConfig
from kvmmu.engine.layers import TorchLayers, Turns
from kvmmu.engine.linear import Int8Linear, Linear, PlainLinear
from kvmmu.engine.tensors import LayerWeights, Weights
from kvmmu.kernels.native.block import Block, Matrix, Norm, finish, linear, project
from kvmmu.kernels.native.limits import MOST_ROWS

__all__ = ["NativeLayers", "most_rows"]


def most_rows(weights: Weights) -> int:
    """Return up to how many rows the native kernels are faster for these weights."""
    is_int8 = isinstance(weights.head, Int8Linear)
    return MOST_ROWS[torch.int8 if is_int8 else weights.dtype]


class NativeLayers:
    """What TorchLayers does, for few rows on a CPU."""

    def __init__(self, plain: TorchLayers) -> None:
        """Bind the weights of `plain`, which must not move; its embedding is used as it is."""
        config, weights = plain.config, plain.weights
        self.config, self.dtype, self._plain = config, weights.dtype, plain
        self._factor = 1.0 if plain.rotates else plain.factor  # else in cos and sin already
        self._blocks = [_block(config, layer) for layer in weights.layers]
        self._head = _matrix(weights.head)
        self._norm = _norm(config, weights.final_norm, weights.final_norm_bias)

    def begin(self, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Turns | None]:
        """Embed tokens [N] and find their angles. -> x [N,H] float32, cos and sin or None."""
        return self._plain.embed(tokens, positions), self._plain.turns(positions)

    def project(self, layer: int, x: Tensor, turns: Turns | None) -> tuple[Tensor, Tensor, Tensor]:
        """Make queries, keys and values of x [N,H]. -> q [N,Hq,D], k, v [N,Hkv,D]."""
        c = self.config
        turns = turns if c.rotary_layers[layer] else None
        q, k, v = project(self._blocks[layer], x, turns)
        if self._factor != 1.0 and c.rotary_layers[layer]:
            assert c.rope is not None
            q[..., : c.rope.rotary_dim] *= self._factor
            k[..., : c.rope.rotary_dim] *= self._factor
        return q.to(self.dtype), k.to(self.dtype), v.to(self.dtype)

    def finish(self, layer: int, x: Tensor, attended: Tensor) -> Tensor:
        """Add the attention [N, Hq D] and the MLP to x [N,H]. -> x [N,H]."""
        return finish(self._blocks[layer], x, attended.float())

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of x [R,H], float32 [R,V]."""
        return linear(x.contiguous(), self._head, norm=self._norm)


def _matrix(given: Linear) -> Matrix:
    """Bind a matrix where it lies."""
    if isinstance(given, Int8Linear):
        return Matrix(given.codes, scales=given.scales, bias=given.bias)
    assert isinstance(given, PlainLinear)
    return Matrix(given.weight, bias=given.bias)


def _norm(config: ModelConfig, weight: Tensor, bias: Tensor | None) -> Norm:
    """Bind a norm."""
    return Norm(config.norm, weight, bias=bias, eps=config.norm_eps)


def _block(config: ModelConfig, layer: LayerWeights) -> Block:
    """Bind a layer."""
    return Block(
        qkv=_matrix(layer.qkv),
        out=_matrix(layer.out),
        up=_matrix(layer.up),
        down=_matrix(layer.down),
        attn_norm=_norm(config, layer.attn_norm, layer.attn_norm_bias),
        mlp_norm=_norm(config, layer.mlp_norm, layer.mlp_norm_bias),
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        activation=config.activation,
        is_gated=config.is_gated,
        norm_place=config.norm_place,
        qk_norm=config.qk_norm,
        q_norm=layer.q_norm,
        k_norm=layer.k_norm,
    )
