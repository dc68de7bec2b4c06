"""A decoder layer on native kernels: its weights bound once, then two calls a step.

    block = Block(...)                       # addresses are taken here; tensors are kept alive
    q, k, v = project(block, x, turns)       # norm, qkv product, norms of q and k, rotation
    x = finish(block, x, attended)           # out product, residual, norm, MLP, residual
    logits = linear(x, head, norm=final)

Rows are float32 whatever the weights' type; each row's bits do not depend on the other rows nor
on their number. Made for few rows: from some tens on, PyTorch's products are faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kvmmu.kernels.native.functions import GELU, GELU_TANH, RELU, SILU
from kvmmu.kernels.native.fused import TOKENS
from kvmmu.kernels.native.halves import (
    HEAD_NORM,
    NO_QK_NORM,
    WIDTH_NORM,
    finish_rows,
    linear_rows,
    project_rows,
)
from kvmmu.kernels.native.rows import LAYER_NORM, NO_NORM, RMS_NORM
from kvmmu.kernels.native.threads import num_threads

__all__ = ["Block", "Matrix", "Norm", "finish", "linear", "project"]

_WEIGHTS: dict[torch.dtype, Any] = TOKENS | {torch.int8: np.int8(0)}
_ACTIVATIONS = {"silu": SILU, "gelu": GELU, "gelu_tanh": GELU_TANH, "relu": RELU}
_QK_NORMS = {None: NO_QK_NORM, "head": HEAD_NORM, "width": WIDTH_NORM}


class Matrix:
    """Weights [N,K], float32, bfloat16, float16 or int8 with a float32 scale a row; bias [N].

    The weights stay where they are and must not move. Raises TypeError or ValueError.
    """

    def __init__(
        self, weight: Tensor, *, scales: Tensor | None = None, bias: Tensor | None = None
    ) -> None:
        if weight.dtype not in _WEIGHTS:
            raise TypeError(f"weights must be one of {list(_WEIGHTS)}, got {weight.dtype}")
        if weight.ndim != 2 or not weight.is_contiguous() or weight.is_cuda:
            raise ValueError(
                f"weights must be a contiguous matrix on a CPU, got {tuple(weight.shape)} with "
                f"strides {weight.stride()} on {weight.device}"
            )
        if (weight.dtype == torch.int8) != (scales is not None):
            raise ValueError(f"scales must come with int8 weights alone, got {weight.dtype}")
        N, K = weight.shape
        self.weight, self.num_out, self.num_in = weight, N, K
        self.scales = None if scales is None else _vector("scales", scales, N)
        self.bias = None if bias is None else _vector("bias", bias, N)
        self.token = _WEIGHTS[weight.dtype]
        row_bytes = K * weight.element_size()
        self.table = (weight.data_ptr(), row_bytes, _address(self.scales), _address(self.bias))


class Norm:
    """A norm over rows: its kind, weight [H] or None, bias [H] or None, and eps."""

    def __init__(
        self,
        kind: Literal["rms", "layer"],
        weight: Tensor | None,
        *,
        bias: Tensor | None = None,
        eps: float,
    ) -> None:
        if kind not in ("rms", "layer"):
            raise ValueError(f"norm must be 'rms' or 'layer', got {kind!r}")
        self.weight = None if weight is None else _vector("weight", weight, weight.numel())
        self.bias = None if bias is None else _vector("bias", bias, bias.numel())
        self.eps = eps
        code = RMS_NORM if kind == "rms" else LAYER_NORM
        self.table = (code, _address(self.weight), _address(self.bias))


_NO_NORM = (NO_NORM, 0, 0)


@dataclass(frozen=True)
class Block:
    """One layer's weights and rules. up is the gate's rows, then up's, where is_gated.

    norm_place "pre" norms what enters attention and MLP, "post" what leaves them; qk_norm tells
    over what queries and keys are RMS-normed, with q_norm and k_norm, by attn_norm's eps.
    """

    qkv: Matrix
    out: Matrix
    up: Matrix
    down: Matrix
    attn_norm: Norm
    mlp_norm: Norm
    num_heads: int
    num_kv_heads: int
    head_dim: int
    activation: Literal["silu", "relu", "gelu", "gelu_tanh"] = "silu"
    is_gated: bool = True
    norm_place: Literal["pre", "post"] = "pre"
    qk_norm: Literal["head", "width"] | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None

    def __post_init__(self) -> None:
        D, Hq, Hkv = self.head_dim, self.num_heads, self.num_kv_heads
        H, inner = self.qkv.num_in, self.down.num_in
        wanted = {
            "qkv": ((Hq + 2 * Hkv) * D, H),
            "out": (H, Hq * D),
            "up": (inner * (1 + self.is_gated), H),
            "down": (H, inner),
        }
        for name, shape in wanted.items():
            matrix: Matrix = getattr(self, name)
            if (
                matrix.num_out,
                matrix.num_in,
            ) != shape or matrix.token.dtype != self.qkv.token.dtype:
                raise ValueError(
                    f"{name} must be {shape} of qkv's type, got "
                    f"{(matrix.num_out, matrix.num_in)}, {matrix.weight.dtype}"
                )
        widths = {None: (0, 0), "head": (D, D), "width": (Hq * D, Hkv * D)}[self.qk_norm]
        for name, width in zip(("q_norm", "k_norm"), widths):
            given: Tensor | None = getattr(self, name)
            if (given is None) != (width == 0):
                raise ValueError(f"{name} must be given with qk_norm alone, got {self.qk_norm!r}")
            if given is not None:
                object.__setattr__(self, name, _vector(name, given, width))


def project(
    block: Block, x: Tensor, turns: tuple[Tensor, Tensor] | None, *, threads: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Make queries, keys and values of x [M,H]. -> q [M,Hq,D], k, v [M,Hkv,D], views of one.

    turns: cos and sin, float32 [M, rotary_dim / 2]; None for no rotation.
    """
    M, H = _rows("x", x, block.qkv.num_in)
    Hq, Hkv, D = block.num_heads, block.num_kv_heads, block.head_dim
    made = torch.empty(M, Hq + 2 * Hkv, D)
    half, angles = 0, (0, 0, 0)
    if turns is not None:
        half = turns[0].shape[1]
        for turn in turns:
            _rows("cos and sin", turn, half)
        if turns[0].shape != (M, half) or turns[1].stride() != turns[0].stride() or 2 * half > D:
            raise ValueError(f"cos and sin must be [{M}, <= {D // 2}], got {turns[0].shape}")
        angles = (turns[0].data_ptr(), turns[1].data_ptr(), 4 * turns[0].stride(0))
    project_rows(
        block.qkv.token,
        block.qkv.table,
        block.attn_norm.table if block.norm_place == "pre" else _NO_NORM,
        (_address(block.q_norm), _address(block.k_norm)),
        block.attn_norm.eps,
        x.data_ptr(),
        4 * x.stride(0),
        (M, H),
        (Hq, Hkv, D, half, _QK_NORMS[block.qk_norm]),
        angles,
        made.data_ptr(),
        num_threads() if threads is None else threads,
    )
    return made[:, :Hq], made[:, Hq : Hq + Hkv], made[:, Hq + Hkv :]


def finish(block: Block, x: Tensor, attended: Tensor, *, threads: int | None = None) -> Tensor:
    """Add the attention [M, Hq D] and the MLP to x [M,H]. -> [M,H], new."""
    M, H = _rows("x", x, block.out.num_out)
    _, width = _rows("attended", attended, block.out.num_in)
    if attended.shape[0] != M:
        raise ValueError(f"attended must have {M} rows, got {attended.shape[0]}")
    made = torch.empty(M, H)
    finish_rows(
        block.qkv.token,
        block.out.table,
        block.up.table,
        block.down.table,
        block.attn_norm.table,
        block.mlp_norm.table,
        block.attn_norm.eps,
        x.data_ptr(),
        attended.data_ptr(),
        (M, H, width, block.down.num_in, 4 * x.stride(0), 4 * attended.stride(0)),
        (_ACTIVATIONS[block.activation], int(block.is_gated), int(block.norm_place == "post")),
        made.data_ptr(),
        num_threads() if threads is None else threads,
    )
    return made


def linear(
    x: Tensor, matrix: Matrix, *, norm: Norm | None = None, threads: int | None = None
) -> Tensor:
    """Multiply x [M,K], normed if asked for, by a matrix. -> float32 [M,N]."""
    M, K = _rows("x", x, matrix.num_in)
    made = torch.empty(M, matrix.num_out)
    linear_rows(
        matrix.token,
        matrix.table,
        _NO_NORM if norm is None else norm.table,
        0.0 if norm is None else norm.eps,
        x.data_ptr(),
        4 * x.stride(0),
        (M, matrix.num_out, K),
        made.data_ptr(),
        num_threads() if threads is None else threads,
    )
    return made


def _vector(name: str, x: Tensor, num: int) -> Tensor:
    """Return a vector as contiguous float32. Raises ValueError for another shape."""
    if x.shape != (num,) or x.is_cuda:
        raise ValueError(f"{name} must be [{num}] on a CPU, got {tuple(x.shape)} on {x.device}")
    return x.detach().float().contiguous()


def _address(x: Tensor | None) -> int:
    """Return where a tensor's numbers are, 0 for none."""
    return 0 if x is None else x.data_ptr()


def _rows(name: str, x: Tensor, width: int) -> tuple[int, int]:
    """Check rows of float32 and return their number and width."""
    M, K = x.shape
    if x.dtype != torch.float32 or width != K or (x.stride(1) != 1 and K > 1) or x.is_cuda:
        raise ValueError(
            f"{name} must be float32 [*, {width}] on a CPU with contiguous rows, "
            f"got {x.dtype} {tuple(x.shape)}, strides {x.stride()}"
        )
    return M, K
