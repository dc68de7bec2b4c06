"""A decoder layer in two halves around the attention, in plain PyTorch: any device, any family.

The residual x [N,H] is float32 whatever the model's dtype: it is small beside the weights, and
sums of many layers keep their bits. What goes into a matrix is rounded to the model's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kvmmu.engine.config import ModelConfig
from kvmmu.engine.linear import is_transposed
from kvmmu.engine.rope import angles, frequencies, turn
from kvmmu.engine.tensors import Weights

__all__ = ["TorchLayers", "Turns"]

Turns = tuple[Tensor, Tensor]
"""cos and sin of a call's positions, float32 [N, rotary_dim / 2], attention factor included."""


class TorchLayers:
    """Computes a call: begin, then per layer project, (the attention), finish; then logits."""

    def __init__(self, config: ModelConfig, weights: Weights, *, rotates: bool) -> None:
        self.config, self.weights, self.rotates = config, weights, rotates
        self.freqs: Tensor | None = None
        self.factor = 1.0
        if config.rope is not None:
            self.freqs = frequencies(config.rope).to(weights.embed.device)
            self.factor = config.rope.attention_factor

    def begin(self, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Turns | None]:
        """Embed tokens [N] and find their angles. -> x [N,H] float32, cos and sin or None."""
        x = self.embed(tokens, positions)
        if is_transposed(x.shape[0], self.weights.dtype, x.device):
            x = x.t().contiguous().t()  # as the products come: sums then run along memory
        return x, self.turns(positions)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Look up tokens [N] and learned positions. -> x [N,H] float32."""
        w = self.weights
        x = F.embedding(tokens, w.embed).float()
        if w.positions is not None:
            x += F.embedding(positions + self.config.position_offset, w.positions)
        return x

    def turns(self, positions: Tensor) -> Turns | None:
        """Return cos and sin of positions [N], None where nothing turns here."""
        if self.freqs is None or not self.rotates:
            return None
        cos, sin = angles(self.freqs, positions)
        return (cos * self.factor, sin * self.factor) if self.factor != 1.0 else (cos, sin)

    def project(self, layer: int, x: Tensor, turns: Turns | None) -> tuple[Tensor, Tensor, Tensor]:
        """Make queries, keys and values of x [N,H]. -> q [N,Hq,D], k, v [N,Hkv,D]."""
        c, w = self.config, self.weights.layers[layer]
        N = x.shape[0]
        if c.norm_place == "pre":
            x = self._norm(x, w.attn_norm, w.attn_norm_bias)
        qkv = w.qkv(x.to(self.weights.dtype)).contiguous()  # [N, (Hq + 2 Hkv) D]
        if c.qk_norm is not None:
            assert w.q_norm is not None
            assert w.k_norm is not None
            qkv = self._norm_heads(qkv, w.q_norm, w.k_norm)
        heads = qkv.view(N, c.num_heads + 2 * c.num_kv_heads, c.head_dim)
        both, v = heads[:, : -c.num_kv_heads], heads[:, -c.num_kv_heads :]
        if turns is not None and c.rotary_layers[layer]:
            both = turn(both, turns[0][:, None], turns[1][:, None])
        elif not self.rotates and self.factor != 1.0 and c.rotary_layers[layer]:
            assert c.rope is not None
            both[..., : c.rope.rotary_dim] *= self.factor  # the rotation comes later, and is pure
        return both[:, : c.num_heads], both[:, c.num_heads :], v

    def finish(self, layer: int, x: Tensor, attended: Tensor) -> Tensor:
        """Add the attention [N, Hq D] and the MLP to x [N,H], in place. -> x [N,H]."""
        c, w = self.config, self.weights.layers[layer]
        dtype = self.weights.dtype
        if c.norm_place == "pre":
            x = w.out.add_to(x, attended)
            up = w.up(self._norm(x, w.mlp_norm, w.mlp_norm_bias).to(dtype))
            return w.down.add_to(x, self._activate(up))
        x = x.add_(self._norm(w.out(attended).float(), w.attn_norm, w.attn_norm_bias))
        down = w.down(self._activate(w.up(x.to(dtype))))
        return x.add_(self._norm(down.float(), w.mlp_norm, w.mlp_norm_bias))

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of x [R,H], float32 [R,V]."""
        w = self.weights
        logits = w.head(self._norm(x, w.final_norm, w.final_norm_bias).to(w.dtype))
        return logits.float().contiguous()

    def _norm(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Norm x [...,H], float32, in the layout that it has."""
        if self.config.norm == "layer":
            return F.layer_norm(x, x.shape[-1:], weight, bias, self.config.norm_eps)
        # not mean(): over a transposed x its bits depend on the row's place
        length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # [...,1]
        mean = length.square_().div_(x.shape[-1])
        normed: Tensor = x * mean.add_(self.config.norm_eps).rsqrt_()
        return normed.mul_(weight)

    def _norm_heads(self, qkv: Tensor, q_norm: Tensor, k_norm: Tensor) -> Tensor:
        """Norm the queries and keys of qkv [N, (Hq + 2 Hkv) D], by head or whole."""
        c, N = self.config, qkv.shape[0]
        q, k, v = qkv.split(c.qkv_rows, dim=-1)
        if c.qk_norm == "head":
            q, k = q.reshape(N, c.num_heads, -1), k.reshape(N, c.num_kv_heads, -1)
        q = self._norm(q.float(), q_norm, None).view(N, c.qkv_rows[0])
        k = self._norm(k.float(), k_norm, None).view(N, c.qkv_rows[1])
        return torch.cat([q.to(v.dtype), k.to(v.dtype), v], dim=-1)

    def _activate(self, up: Tensor) -> Tensor:
        """Apply the activation to up [N,I], or to the gate of gate and up [N,2I]. -> [N,I]."""
        c = self.config
        gate = up[:, : c.intermediate_size] if c.is_gated else up
        if c.activation == "silu":
            active = F.silu(gate)
        elif c.activation == "relu":
            active = F.relu(gate)
        else:
            active = F.gelu(gate, approximate="tanh" if c.activation == "gelu_tanh" else "none")
        return active.mul_(up[:, c.intermediate_size :]) if c.is_gated else active
