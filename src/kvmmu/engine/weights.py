"""From a checkpoint's tensors to the engine's: fused, one block a kind, in the form asked for.

All layers' matrices of a kind lie in one block of memory, which on the CPU numpy allocates: it
asks for huge pages, worth 10 to 20 % of a decode step. Tensors arrive one at a time and go where
they stay, so loading holds the weights once, plus the largest tensor of the file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from kvmmu.engine.checkpoint import Checkpoint
from kvmmu.engine.config import ModelConfig
from kvmmu.engine.families import FAMILIES
from kvmmu.engine.linear import Int8Linear, Linear, PlainLinear, quantise_int8
from kvmmu.engine.tensors import (
    LayerWeights,
    Shape,
    Weights,
    layer_shapes,
    part_rows,
    top_shapes,
)

__all__ = ["WEIGHT_FORMS", "WeightForm", "load_weights", "random_weights"]

WeightForm = Literal["plain", "int8"]
WEIGHT_FORMS = ("plain", "int8")

_ALIGNMENT_BYTES = 64


def load_weights(
    path: str | os.PathLike[str],
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    form: WeightForm = "plain",
    device: torch.device,
) -> Weights:
    """Load a checkpoint's folder. Raises ValueError that names a missing or surplus tensor."""
    source = _Files(Checkpoint(path), config)
    weights = _Builder(config, source, dtype, form, device).build()
    source.check_all_used()
    return weights


def random_weights(
    config: ModelConfig,
    seed: int,
    *,
    dtype: torch.dtype,
    form: WeightForm = "plain",
    device: torch.device,
) -> Weights:
    """Make random weights that keep activations of order one."""
    return _Builder(config, _Random(seed), dtype, form, device).build()


class _Source(Protocol):
    """Where tensors come from."""

    def parts(self, target: str, layer: int | None, shape: Shape) -> Iterator[Tensor]:
        """Yield a tensor's rows in order, in pieces; layer None is outside of the layers."""
        ...


class _Random:
    """Normal matrices, norms of one, biases of zero."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def parts(self, target: str, layer: int | None, shape: Shape) -> Iterator[Tensor]:
        """Yield the tensor in one piece."""
        if len(shape) == 1:
            yield torch.zeros(shape) if target.endswith("bias") else torch.ones(shape)
            return
        scale = 1.0 if target == "positions" else shape[1] ** -0.5
        yield torch.empty(shape).normal_(0, scale, generator=self._generator)


class _Files:
    """A checkpoint's tensors under the engine's names."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig) -> None:
        self._checkpoint, self._config = checkpoint, config
        self._family = FAMILIES[config.model_type]
        whole = self._family.prefix
        base = whole.split(".", 1)[1]  # a checkpoint of the decoder alone
        has_whole = any(name.startswith(whole) for name in checkpoint.names)
        self._prefix = whole if has_whole else base
        self._used: set[str] = set()

    def parts(self, target: str, layer: int | None, shape: Shape) -> Iterator[Tensor]:
        """Yield the checkpoint's tensors that make up the engine's. Raises ValueError."""
        names = self._names(target, layer)
        is_transposed = target in self._family.transposed
        for name, rows in zip(names, part_rows(self._config, target, len(names), shape[0])):
            self._used.add(name)
            part: Shape = (rows, *shape[1:])
            tensor = self._checkpoint.read(name, part[::-1] if is_transposed else part)
            yield tensor.t() if is_transposed else tensor

    def check_all_used(self) -> None:
        """Raise ValueError that names a tensor without a place, or a head that is not tied."""
        family, shape = self._family, top_shapes(self._config)["embed"]
        rest = [n for n in self._checkpoint.names - self._used if not n.endswith(family.ignored)]
        if self._config.is_tied and family.head in rest:
            rest.remove(family.head)
            (embed,) = self.parts("embed", None, shape)
            if not torch.equal(embed, self._checkpoint.read(family.head, shape)):
                raise ValueError(
                    f"{family.head} must equal the embedding, as tie_word_embeddings says"
                )
        if rest:
            raise ValueError(
                f"checkpoint must hold the tensors of a {family.model_type} of its config.json "
                f"alone, got {min(rest)} ({len(rest)} in all) besides"
            )

    def _names(self, target: str, layer: int | None) -> tuple[str, ...]:
        """Name a tensor's parts, in the order of its rows."""
        if target == "head":
            return (self._family.head,)
        if layer is None:
            return (self._prefix + self._family.top[target],)
        stem = self._prefix + self._family.layers.format(layer)
        return tuple(stem + tail for tail in self._family.layer[target])


def _empty(shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocate a tensor, on the CPU in aligned memory of numpy's."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    nbytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(nbytes + _ALIGNMENT_BYTES, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT_BYTES
    return torch.from_numpy(raw[start : start + nbytes]).view(dtype).view(shape)


@dataclass(frozen=True)
class _Builder:
    """Allocates a model's tensors and fills them from a source."""

    config: ModelConfig
    source: _Source
    dtype: torch.dtype
    form: WeightForm
    device: torch.device

    def build(self) -> Weights:
        """Return the whole model."""
        top, config = top_shapes(self.config), self.config
        embed = self._table("embed", top["embed"])
        positions = self._table("positions", top["positions"]) if "positions" in top else None
        stacks = {name: self._matrices(name) for name in ("qkv", "out", "up", "down")}
        layers = [
            self._layer(i, {name: stack[i] for name, stack in stacks.items()})
            for i in range(config.num_layers)
        ]
        if config.is_tied and self.form == "plain":
            head: Linear = PlainLinear(embed, None)
        else:
            (head,) = self._stack("embed" if config.is_tied else "head", top["embed"], [None])
        return Weights(
            dtype=self.dtype,
            embed=embed,
            positions=positions,
            layers=tuple(layers),
            final_norm=self._vector("final_norm", None, top["final_norm"]),
            final_norm_bias=self._optional("final_norm_bias", None, top),
            head=head,
        )

    def _layer(self, layer: int, matrices: dict[str, Linear]) -> LayerWeights:
        """Put one layer together."""
        shapes = layer_shapes(self.config)
        for name, matrix in matrices.items():
            matrix.bias = self._optional(f"{name}_bias", layer, shapes)
        return LayerWeights(
            qkv=matrices["qkv"],
            out=matrices["out"],
            up=matrices["up"],
            down=matrices["down"],
            attn_norm=self._vector("attn_norm", layer, shapes["attn_norm"]),
            mlp_norm=self._vector("mlp_norm", layer, shapes["mlp_norm"]),
            attn_norm_bias=self._optional("attn_norm_bias", layer, shapes),
            mlp_norm_bias=self._optional("mlp_norm_bias", layer, shapes),
            q_norm=self._optional("q_norm", layer, shapes),
            k_norm=self._optional("k_norm", layer, shapes),
        )

    def _table(self, target: str, shape: Shape) -> Tensor:
        """Fill a table that rows are looked up in."""
        table = _empty(shape, self.dtype, self.device)
        for piece, rows in self._pieces(target, None, shape):
            table[rows].copy_(piece)
        return table

    def _matrices(self, target: str) -> list[Linear]:
        """Fill all layers' matrices of a kind."""
        return self._stack(
            target, layer_shapes(self.config)[target], list(range(self.config.num_layers))
        )

    def _stack(self, target: str, shape: Shape, layers: Sequence[int | None]) -> list[Linear]:
        """Fill the matrices of the layers named, in one block; their biases come later."""
        whole = (len(layers), *shape)
        if self.form == "plain":
            block = _empty(whole, self.dtype, self.device)
            for weight, layer in zip(block, layers):
                for piece, rows in self._pieces(target, layer, shape):
                    weight[rows].copy_(piece)
            return [PlainLinear(weight, None) for weight in block]
        codes = _empty(whole, torch.int8, self.device)
        scales = _empty(whole[:2], torch.float32, self.device)
        for code, scale, layer in zip(codes, scales, layers):
            for piece, rows in self._pieces(target, layer, shape):
                quantise_int8(piece, code[rows], scale[rows])
        return [Int8Linear(code, scale, None) for code, scale in zip(codes, scales)]

    def _vector(self, target: str, layer: int | None, shape: Shape) -> Tensor:
        """Fill a norm, in float32 as the residual is, or a bias, in the model's dtype."""
        dtype = torch.float32 if "norm" in target else self.dtype
        vector = torch.empty(shape, dtype=dtype, device=self.device)
        for piece, rows in self._pieces(target, layer, shape):
            vector[rows].copy_(piece)
        return vector

    def _optional(self, target: str, layer: int | None, shapes: dict[str, Shape]) -> Tensor | None:
        """Fill a vector that the model may not have."""
        return self._vector(target, layer, shapes[target]) if target in shapes else None

    def _pieces(
        self, target: str, layer: int | None, shape: Shape
    ) -> Iterator[tuple[Tensor, slice]]:
        """Yield a tensor's pieces and the rows where they go."""
        first = 0
        for piece in self.source.parts(target, layer, shape):
            yield piece, slice(first, first + piece.shape[0])
            first += piece.shape[0]
