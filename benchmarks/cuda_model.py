"""A Llama of random weights for bench_cuda: once on fused steps, once in transformers.

Both share their weights: transformers' matrices are rows of the fused ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kvmmu.kernels.step import LaneState, StepSpec

__all__ = ["Shape", "StaticBaseline", "Transformer", "make_lanes"]

EPS = 1e-5
BASE = 500_000.0
HEADROOM = 64
"""Tokens that a StaticCache has room for past its context."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama; by default those of the 8B."""

    layers: int = 32
    hidden: int = 4096
    intermediate: int = 14336
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    vocab: int = 128256

    def slot_bytes(self, dtype: torch.dtype) -> int:
        """Count the bytes of K and V of one slot of one layer."""
        return 2 * self.kv_heads * self.head_dim * dtype.itemsize


def make_lanes(shape: Shape, B: int, C: int, dtype: torch.dtype, device: str = "cuda") -> LaneState:
    """Make one layer's slots of B lanes, full of tokens out of a text four times as long."""
    kv = torch.randn(2, B, shape.kv_heads, C, shape.head_dim, dtype=dtype, device=device)
    heads = (B, shape.kv_heads)
    order = torch.rand(*heads, C, device=device).argsort(-1)
    return LaneState(
        kv[0],
        kv[1],
        (order * 4).int(),
        torch.rand(*heads, C, device=device),
        torch.full((B,), 4 * C, dtype=torch.int32, device=device),
        torch.randint(C, heads, dtype=torch.int32, device=device),
    )


@dataclass(frozen=True)
class Layer:
    """One decoder layer's matrices, [out, in] each."""

    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor


class Transformer:
    """Run one decode step on fused kernels; tokens in, the likeliest tokens out."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: str = "cuda") -> None:
        self.shape = shape

        def weight(rows: int, columns: int) -> Tensor:
            return torch.empty(rows, columns, dtype=dtype, device=device).normal_(std=0.02)

        heads = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
        self.embed, self.head = (weight(shape.vocab, shape.hidden) for _ in "eh")
        self.norm = torch.ones(shape.hidden, dtype=dtype, device=device)
        self.layers = [
            Layer(
                weight(heads, shape.hidden),
                weight(shape.hidden, shape.heads * shape.head_dim),
                weight(2 * shape.intermediate, shape.hidden),
                weight(shape.hidden, shape.intermediate),
            )
            for _ in range(shape.layers)
        ]
        places = torch.arange(0, shape.head_dim, 2, device=device) / shape.head_dim
        self.frequencies = BASE**-places  # [D/2]

    @property
    def weight_bytes(self) -> int:
        """Count the bytes of weights that a step reads, the embedding's few rows apart."""
        held = [x for y in self.layers for x in (y.qkv, y.out, y.gate_up, y.down)]
        return sum(x.nbytes for x in (self.head, *held))

    def step(
        self,
        tokens: Tensor,
        positions: Tensor,
        lanes: Tensor,
        *,
        layers: Sequence[LaneState],
        spec: StepSpec,
    ) -> Tensor:
        """Decode one token a row. All [N] -> int64 [N]."""
        from kvmmu.kernels.triton import step

        shape = self.shape
        N, Hq, Hkv = tokens.shape[0], shape.heads, shape.kv_heads
        angles = positions[:, None].float() * self.frequencies  # [N,D/2]
        x = F.embedding(tokens, self.embed)
        cos, sin = (f(angles).to(x.dtype).repeat(1, 2)[:, None] for f in (torch.cos, torch.sin))
        for layer, state in zip(self.layers, layers):
            h = F.linear(self._normed(x), layer.qkv).view(N, Hq + 2 * Hkv, shape.head_dim)
            qk, v = h[:, : Hq + Hkv], h[:, Hq + Hkv :]
            a, b = qk.chunk(2, dim=-1)
            qk = qk * cos + torch.cat([-b, a], dim=-1) * sin
            out = torch.empty(N, Hq, shape.head_dim, dtype=x.dtype, device=x.device)
            step(qk[:, :Hq], qk[:, Hq:], v, lanes, positions, state, spec, out)
            x = x + F.linear(out.view(N, -1), layer.out)
            gate, up = F.linear(self._normed(x), layer.gate_up).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, layer.down)
        return F.linear(self._normed(x), self.head).argmax(-1)

    def _normed(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.norm, EPS)


class StaticBaseline:
    """Run transformers' Llama on the same weights with a StaticCache at `context` tokens."""

    def __init__(self, model: Transformer, B: int, context: int, dtype: torch.dtype) -> None:
        from transformers import StaticCache

        device = model.embed.device
        self.context = context
        self.model = _llama(model, dtype)
        config = self.model.config
        self.cache: Any = StaticCache(config=config, max_cache_len=context + HEADROOM)
        shape = model.shape
        self.cache.early_initialization(B, shape.kv_heads, shape.head_dim, dtype, device)
        for layer in self.cache.layers:
            layer.keys.normal_()
            layer.values.normal_()
        self.token = torch.zeros(B, 1, dtype=torch.int64, device=device)
        self.positions = torch.full((B, 1), context, device=device)
        self.forward: Callable[..., Any] = self.model
        self.rewind()

    def rewind(self) -> None:
        """Hold `context` tokens again."""
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(self.context)

    def step(self) -> Tensor:
        """Decode one token a row, always the one after the context."""
        self.rewind()
        logits = self.forward(
            self.token, past_key_values=self.cache, position_ids=self.positions
        ).logits
        return logits[:, -1].argmax(-1)

    def compiled(self) -> Callable[[], Tensor]:
        """Return a step whose forward torch.compile has compiled, CUDA graphs included."""
        self.forward = torch.compile(
            self.model, fullgraph=True, dynamic=False, mode="reduce-overhead"
        )
        for _ in range(3):
            self.step()
        return self.step


def _llama(model: Transformer, dtype: torch.dtype) -> Any:
    """Build transformers' model around the weights, without a second copy."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = model.shape
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=EPS,
        rope_parameters={"rope_type": "default", "rope_theta": BASE},
        max_position_embeddings=1 << 20,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.device("meta"):
        llama = LlamaForCausalLM(config).eval().to(dtype)
    sizes = [x * shape.head_dim for x in (shape.heads, shape.kv_heads, shape.kv_heads)]
    weights = {"model.embed_tokens": model.embed, "lm_head": model.head, "model.norm": model.norm}
    for i, layer in enumerate(model.layers):
        at = f"model.layers.{i}"
        for name, rows in zip("qkv", layer.qkv.split(sizes)):
            weights[f"{at}.self_attn.{name}_proj"] = rows
        gate, up = layer.gate_up.chunk(2)
        weights |= {f"{at}.mlp.gate_proj": gate, f"{at}.mlp.up_proj": up}
        weights |= {f"{at}.self_attn.o_proj": layer.out, f"{at}.mlp.down_proj": layer.down}
        weights |= {f"{at}.{n}_layernorm": model.norm for n in ("input", "post_attention")}
    llama.load_state_dict({f"{k}.weight": v for k, v in weights.items()}, assign=True)
    rotary = type(llama.model.rotary_emb)
    llama.model.rotary_emb = rotary(config=config).to(model.embed.device)  # no weight
    return llama.requires_grad_(False)
