"""One weight matrix in one of its forms; every form multiplies rows of activations by it.

On a CPU the product of many rows is formed as W x^T and returned transposed: the libraries beneath
(oneDNN, MKL) take that order faster, by a fifth at 256 rows and up to twice at 16 (float32, two
cores). The result [N,O] is then a view whose columns are contiguous.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Int8Linear", "Linear", "PlainLinear", "is_transposed", "quantise_int8"]

_FLOAT_FROM, _HALF_BELOW = 9, 384
"""Rows from which W x^T is the faster order in float32, and below which in half precision."""

_BLOCK_ROWS = 512
"""Rows of an int8 matrix that are made floats at a time: their floats stay in the L2 cache."""


class Linear(Protocol):
    """A matrix [O,K] with its bias [O] or None."""

    bias: Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weights reads."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply x [N,K] of the model's dtype. -> [N,O]."""
        ...

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Add the product with x [N,K] to a float32 residual [N,O], in place."""
        ...


class PlainLinear:
    """Weights in the model's dtype."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weights reads."""
        return self.weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply x [N,K] of the model's dtype. -> [N,O]."""
        if not is_transposed(x.shape[0], x.dtype, x.device):
            return F.linear(x, self.weight, self.bias)
        out = torch.mm(self.weight, x.t()).t()
        return out if self.bias is None else out.add_(self.bias)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Add the product with x [N,K] to a float32 residual [N,O], in place."""
        if x.dtype != torch.float32 or is_transposed(x.shape[0], x.dtype, x.device):
            return residual.add_(self(x))
        residual.addmm_(x, self.weight.t())  # no product of its own: the GEMM adds
        return residual if self.bias is None else residual.add_(self.bias)


def is_transposed(num_rows: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether W x^T is the order for so many rows; products then come as [O,N].t()."""
    if device.type != "cpu":
        return False
    return num_rows >= _FLOAT_FROM if dtype == torch.float32 else num_rows < _HALF_BELOW


class Int8Linear:
    """Symmetric int8 weights, one float32 scale a row: weight = codes * scales[:, None].

    The codes, which every floating-point dtype holds exactly, are made floats block by block and
    multiplied; the scales apply to the sums, so activations keep the model's dtype and nothing
    but the weights is rounded.
    """

    def __init__(self, codes: Tensor, scales: Tensor, bias: Tensor | None = None) -> None:
        self.codes, self.scales, self.bias = codes, scales, bias

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weights reads."""
        return self.codes.nbytes + self.scales.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply x [N,K] of the model's dtype. -> [N,O]."""
        num_rows, width = self.codes.shape
        out = torch.empty(num_rows, x.shape[0], dtype=x.dtype, device=x.device)
        block = min(num_rows, _BLOCK_ROWS) if x.device.type == "cpu" else num_rows
        floats = torch.empty(block, width, dtype=x.dtype, device=x.device)
        for a in range(0, num_rows, block):
            codes = self.codes[a : a + block]
            torch.mm(floats[: len(codes)].copy_(codes), x.t(), out=out[a : a + block])
        out *= self.scales[:, None]
        return out.t() if self.bias is None else out.t().add_(self.bias)

    def dense(self) -> Tensor:
        """Return the weights that the codes stand for, float32 [O,K]."""
        return self.codes * self.scales[:, None]

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Add the product with x [N,K] to a float32 residual [N,O], in place."""
        return residual.add_(self(x))


def quantise_int8(weight: Tensor, codes: Tensor, scales: Tensor) -> None:
    """Round weight [O,K] to codes int8 [O,K] and scales float32 [O]; |error| <= scale / 2."""
    weight = weight.float()
    scales.copy_(weight.abs().amax(dim=1) / 127)
    safe = torch.where(scales > 0, scales, 1.0)  # a row of zeros has codes of zeros
    codes.copy_((weight / safe[:, None]).round_())
