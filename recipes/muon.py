"""Muon for matrices of equal shape at once; the same step as torch.optim.Muon, fewer calls."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Newton-Schulz iteration of Muon's authors
NUM_ITERATIONS = 5


def orthogonalise(updates: Tensor) -> Tensor:
    """Bring the singular values of each matrix near 1; [N,R,C] with R <= C -> [N,R,C]."""
    a, b, c = COEFFICIENTS
    x = updates.bfloat16()
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; decoupled weight decay."""

    def __init__(
        self, params: Iterable[nn.Parameter], *, lr: float, weight_decay: float, momentum: float
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for shape, parameters in shapes.items():
                self._step(shape, parameters, group)

    def _step(
        self, shape: torch.Size, parameters: list[nn.Parameter], group: dict[str, float]
    ) -> None:
        momentum, rate = group["momentum"], group["lr"]
        updates = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
            updates.append(parameter.grad.lerp(state["momentum_buffer"], momentum))
        stacked = torch.stack(updates)
        is_tall = shape[0] > shape[1]
        result = orthogonalise(stacked.mT if is_tall else stacked)
        result = result.mT if is_tall else result
        scale = rate * math.sqrt(max(1.0, shape[0] / shape[1]))
        for parameter, update in zip(parameters, result, strict=True):
            parameter.mul_(1 - rate * group["weight_decay"])
            parameter.add_(update, alpha=-scale)
