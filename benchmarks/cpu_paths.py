"""The model that bench_cpu_paths.py runs, of random weights, and the ways of PyTorch and ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kvmmu.kernels import native
from kvmmu.kernels.native import Block, Matrix, Norm
from kvmmu.kernels.step import LaneState, StepRule, StepSpec

__all__ = [
    "Lanes",
    "Model",
    "Run",
    "Sizes",
    "compiled_step",
    "native_path",
    "torch_linears",
    "torch_path",
]

Run = Callable[[], Any]


@dataclass(frozen=True)
class Sizes:
    """The model's shape."""

    layers: int = 12
    hidden: int = 768
    inner: int = 2048
    heads: int = 12
    kv_heads: int = 4
    head_dim: int = 64
    vocab: int = 16_000


class Model:
    """Random weights in one form; [N,K] in numpy's memory, which asks for huge pages."""

    def __init__(self, sizes: Sizes, form: str) -> None:
        self.sizes, self.form = sizes, form
        s, g = sizes, torch.Generator().manual_seed(0)
        width = s.heads * s.head_dim
        shapes = {
            "qkv": ((s.heads + 2 * s.kv_heads) * s.head_dim, s.hidden),
            "out": (s.hidden, width),
            "up": (2 * s.inner, s.hidden),
            "down": (s.hidden, s.inner),
        }
        self._matrices = {
            (name, i): m
            for name, (n, k) in shapes.items()
            for i, m in enumerate(self._stack(s.layers, n, k, g))
        }
        (self._matrices["head", None],) = self._stack(1, s.vocab, s.hidden, g)

    def _stack(self, num: int, n: int, k: int, g: torch.Generator) -> list[Matrix]:
        """Allocate matrices of a kind as one block and fill them."""
        dtype = getattr(torch, self.form)
        raw = np.empty(num * n * k * dtype.itemsize, np.uint8)
        block = torch.from_numpy(raw).view(dtype).view(num, n, k)
        made = []
        for weight in block:
            dense = torch.empty(n, k).normal_(0, k**-0.5, generator=g)
            scales = dense.abs().amax(1) / 127 if self.form == "int8" else None
            weight.copy_(dense if scales is None else (dense / scales[:, None]).round())
            made.append(Matrix(weight, scales=scales))
        return made

    def matrix(self, name: str, layer: int | None = None) -> Matrix:
        """Return one matrix."""
        return self._matrices[name, layer]

    @property
    def nbytes(self) -> int:
        """Bytes that one step reads."""
        return sum(m.weight.nbytes for m in self._matrices.values())


class Lanes:
    """C slots in every layer for B lanes, and the native fused step on them."""

    def __init__(self, sizes: Sizes, B: int, C: int, dtype: torch.dtype, rule: StepRule) -> None:
        s = sizes
        shape = (B, s.kv_heads, C)
        self.spec = StepSpec(rule, s.head_dim**-0.5, num_sinks=4, window=C // 8)
        self.lanes = torch.arange(B, dtype=torch.int32)
        self.at = torch.full((B,), C, dtype=torch.int32)
        self.sizes, self.states = s, []
        for _ in range(s.layers):
            kv = [torch.randn(*shape, s.head_dim).to(dtype) for _ in range(2)]
            held = torch.arange(C, dtype=torch.int32).expand(shape).contiguous()
            victims = torch.full((B, s.kv_heads), 9, dtype=torch.int32)
            self.states.append(LaneState(*kv, held, torch.rand(shape), self.at.clone(), victims))

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """Make one layer's step with qkv [B, (Hq + 2 Hkv) D]. -> [B, Hq D]."""
        s = self.sizes
        heads = qkv.view(len(qkv), -1, s.head_dim)
        q, k, v = heads.split([s.heads, s.kv_heads, s.kv_heads], dim=1)
        return self.step(layer, q, k, v)

    def step(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Make one layer's step. -> [B, Hq D]."""
        out = torch.empty(q.shape, dtype=q.dtype)
        native.step(q, k, v, self.lanes, self.at, self.states[layer], self.spec, out)
        return out.view(len(q), -1)


def torch_path(model: Model, linear: Callable[..., Tensor], dtype: torch.dtype) -> Any:
    """The model in PyTorch's operators around `linear`(x, name, layer)."""
    s = model.sizes

    def norm(x: Tensor) -> Tensor:
        return F.rms_norm(x, (s.hidden,), eps=1e-5).to(dtype)

    def run(x: Tensor, attend: Callable[[int, Tensor], Tensor]) -> Tensor:
        for i in range(s.layers):
            attended = attend(i, linear(norm(x), "qkv", i))
            x = x + linear(attended, "out", i)
            gate, up = linear(norm(x), "up", i).chunk(2, -1)
            x = x + linear(F.silu(gate) * up, "down", i)
        return linear(norm(x), "head", None)

    return run


def torch_linears(model: Model, M: int) -> dict[str, tuple[Any, torch.dtype]]:
    """PyTorch's own ways to multiply: name -> (linear, type of activations)."""
    form, ways = model.form, {}
    if form == "int8":
        scales = {k: m.scales.bfloat16() for k, m in model._matrices.items()}
        pack = torch._weight_int8pack_mm

        def packed(x: Tensor, name: str, layer: int | None) -> Tensor:
            return pack(x, model.matrix(name, layer).weight, scales[name, layer])

        return {"torch _weight_int8pack_mm": (packed, torch.bfloat16)}
    dtype = getattr(torch, form)

    def plain(x: Tensor, name: str, layer: int | None) -> Tensor:
        return F.linear(x, model.matrix(name, layer).weight)

    ways["torch F.linear"] = (plain, dtype)
    if hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        reorder = torch.ops.mkldnn._reorder_linear_weight
        ready = {k: reorder(m.weight, M) for k, m in model._matrices.items()}
        multiply = torch.ops.mkldnn._linear_pointwise

        def prepacked(x: Tensor, name: str, layer: int | None) -> Tensor:
            return multiply(x, ready[name, layer], None, "none", [], "")

        ways["oneDNN prepacked"] = (prepacked, dtype)
    return ways


def native_path(model: Model) -> Any:
    """Ours: two native calls a layer around the attention."""
    s = model.sizes

    def norm() -> Norm:
        return Norm("rms", torch.ones(s.hidden), eps=1e-5)

    blocks = [
        Block(
            *(model.matrix(name, i) for name in ("qkv", "out", "up", "down")),
            norm(), norm(), s.heads, s.kv_heads, s.head_dim,
        )
        for i in range(s.layers)
    ]  # fmt: skip
    head, final = model.matrix("head"), norm()

    def run(x: Tensor, step: Callable[..., Tensor]) -> Tensor:
        for i, block in enumerate(blocks):
            x = native.finish(block, x, step(i, *native.project(block, x, None)))
        return native.linear(x, head, norm=final)

    return run


def compiled_step(model: Model, B: int, C: int) -> Run:
    """torch.compile of a whole static step: scatter, attention, scores and argmin over C slots."""
    s = model.sizes
    lanes = Lanes(s, B, C, torch.float32, StepRule("mass"))
    slots = [torch.zeros(B, s.kv_heads, 1, dtype=torch.int64) for _ in range(s.layers)]

    def attend(i: int, qkv: Tensor) -> Tensor:
        state = lanes.states[i]
        heads = qkv.view(B, -1, s.head_dim)
        q, k, v = heads.split([s.heads, s.kv_heads, s.kv_heads], dim=1)
        at = slots[i][..., None].expand(-1, -1, 1, s.head_dim)
        state.keys.scatter_(2, at, k[:, :, None])
        state.values.scatter_(2, at, v[:, :, None])
        state.scores.scatter_(2, slots[i], 0.0)
        q = q.reshape(B, s.kv_heads, -1, s.head_dim) * s.head_dim**-0.5
        p = (q @ state.keys.mT).softmax(-1)  # [B,Hkv,G,C]
        state.scores.add_(p.sum(2))
        slots[i].copy_(state.scores.argmin(-1, keepdim=True))
        return (p @ state.values).view(B, -1)

    linear, dtype = torch_linears(model, B)["torch F.linear"]
    run = torch_path(model, linear, dtype)
    step = torch.compile(lambda x: run(x, attend), fullgraph=True, dynamic=False)
    x = torch.randn(B, s.hidden)
    return lambda: step(x)
