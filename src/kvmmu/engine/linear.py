"""One weight matrix in one of its forms; every form multiplies rows of activations by it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Int8Linear", "Linear", "PlainLinear", "quantise_int8"]

_SMALL = 16
"""Rows up to which int8 goes through PyTorch's weight-only kernel; a GEMM is faster above."""


class Linear(Protocol):
    """A matrix [O,K] with its bias [O] or None."""

    out_features: int
    bias: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weights reads."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply x [N,K] of the model's dtype. -> [N,O]."""
        ...

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Add the product with x [N,K] to a float32 residual [N,O], in place if it can be."""
        ...


class PlainLinear:
    """Weights in the model's dtype."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.out_features = weight.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weights reads."""
        return self.weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply x [N,K] of the model's dtype. -> [N,O]."""
        return F.linear(x, self.weight, self.bias)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Add the product with x [N,K] to a float32 residual [N,O], in place if it can be."""
        if x.dtype != residual.dtype:
            return residual.add_(self(x))
        residual.addmm_(x, self.weight.t())  # no product of its own: the GEMM adds
        return residual if self.bias is None else residual.add_(self.bias)


class Int8Linear:
    """Symmetric int8 weights, one float32 scale a row: weight = codes * scales[:, None]."""

    def __init__(self, codes: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        self.codes, self.scales, self.bias = codes, scales, bias
        self.out_features = codes.shape[0]
        self._fast = codes.device.type == "cpu" and codes.shape[0] % 16 == 0

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weights reads."""
        return self.codes.nbytes + self.scales.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply x [N,K] of the model's dtype. -> [N,O]."""
        if self._fast and 0 < x.shape[0] <= _SMALL:
            scales = self.scales.to(x.dtype)
            out: Tensor = torch.ops.aten._weight_int8pack_mm(x.contiguous(), self.codes, scales)
            return out if self.bias is None else out + self.bias
        return F.linear(x, self.dense(x.dtype), self.bias)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the weights in a floating-point dtype, [O,K]."""
        return (self.codes * self.scales[:, None]).to(dtype)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Add the product with x [N,K] to a float32 residual [N,O], in place."""
        return residual.add_(self(x))


def quantise_int8(weight: Tensor, codes: Tensor, scales: Tensor) -> None:
    """Round weight [O,K] to codes int8 [O,K] and scales float32 [O]; |error| <= scale / 2."""
    weight = weight.float()
    scales.copy_(weight.abs().amax(dim=1) / 127)
    safe = torch.where(scales > 0, scales, 1.0)  # a row of zeros has codes of zeros
    codes.copy_((weight / safe[:, None]).round_())
