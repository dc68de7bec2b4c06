"""Linear layers on native kernels inside transformers, while a model is enabled so.

Each `nn.Linear` is replaced by one that shares its parameters and, for few rows, multiplies by
kvmmu's numba kernels; more rows, and torch.compile, go PyTorch's way. On exit the layers that
the model had are put back. Decode steps gain; prefill is as it was.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear as torch_linear

from kvmmu.errors import UnsupportedModelError
from kvmmu.kernels.native.limits import MOST_ROWS

__all__ = ["LINEARS", "put_native", "take_native"]

LINEARS = ("torch", "native")

_FOUND = "_kvmmu_linears"
"""Where a model keeps the layers that were replaced, and how often it was asked for."""


class NativeLinear(nn.Module):
    """y = x W^T + b, for few rows on numba kernels. Shares the parameters of a Linear."""

    def __init__(self, found: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = found.in_features, found.out_features
        self.weight, self.bias = found.weight, found.bias
        self._most_rows = MOST_ROWS[found.weight.dtype]
        self._matrix: Any = None

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., K] -> [..., N] in x's type."""
        rows = x.numel() // max(1, self.in_features)
        is_few = 0 < rows <= self._most_rows and x.dtype == self.weight.dtype
        if not is_few or torch.compiler.is_compiling() or torch.is_grad_enabled():
            return torch_linear(x, self.weight, self.bias)
        made = _multiply(x.reshape(rows, -1), self._bound())
        return made.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _bound(self) -> Any:
        """Return the weights as the kernels take them, bound again should they have moved."""
        from kvmmu.kernels.native.block import Matrix

        if self._matrix is None or self._matrix.weight.data_ptr() != self.weight.data_ptr():
            bias = None if self.bias is None else self.bias.detach()
            self._matrix = Matrix(self.weight.detach(), bias=bias)
        return self._matrix


def _multiply(x: Tensor, matrix: Any) -> Tensor:
    """Multiply x [M,K] by a bound matrix. -> float32 [M,N]."""
    from kvmmu.kernels.native.block import linear

    return linear(x.float().contiguous(), matrix)


def put_native(model: nn.Module) -> None:
    """Replace a model's Linear layers. Raises UnsupportedModelError if there is a kernel for none.

    Only plain `nn.Linear` with contiguous weights on a CPU, in a type that the kernels know, is
    replaced; a second call only counts.
    """
    kept: dict[str, Any] | None = model.__dict__.get(_FOUND)
    if kept is not None:
        kept["depth"] += 1
        return
    places = {name: part for name, part in model.named_modules() if _fits(part)}
    if not places:
        raise UnsupportedModelError(
            "linears must be 'torch' for a model without float linear layers on a CPU, got "
            f"'native' with {type(model).__name__}"
        )
    for name, found in places.items():
        _put(model, name, NativeLinear(found))
    model.__dict__[_FOUND] = {"depth": 1, "places": places}


def take_native(model: nn.Module) -> None:
    """Put back what `put_native` replaced, once everybody who called it has called this."""
    kept: dict[str, Any] = model.__dict__[_FOUND]
    kept["depth"] -= 1
    if kept["depth"] == 0:
        for name, found in kept["places"].items():
            _put(model, name, found)
        del model.__dict__[_FOUND]


def _fits(part: nn.Module) -> bool:
    """Tell whether a module is a Linear that the kernels can stand in for."""
    if type(part) is not nn.Linear:  # a subclass does something else
        return False
    weight = part.weight
    is_known = weight.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return is_known and weight.device.type == "cpu" and weight.is_contiguous()


def _put(model: nn.Module, name: str, part: nn.Module) -> None:
    """Set a submodule by its dotted name."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, part)
