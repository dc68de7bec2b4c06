"""Transformer: tokens in, logits out; the attention is handed in by the caller."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from kvmmu.engine.config import ModelConfig
from kvmmu.engine.layers import TorchLayers
from kvmmu.engine.native import NativeLayers, most_rows
from kvmmu.engine.rope import Rotation, frequencies
from kvmmu.engine.tensors import Weights
from kvmmu.engine.weights import WEIGHT_FORMS, WeightForm, load_weights, random_weights
from kvmmu.kernels.dispatch import usable_device

__all__ = ["Attention", "Transformer"]

Attention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""attend(layer, q [N,Hq,D], k [N,Hkv,D], v [N,Hkv,D]) -> [N,Hq,D], all in the model's dtype."""

Backend = Literal["torch", "native"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Transformer:
    """A decoder without an attention of its own.

    With positions="in_cache" queries and keys reach `attend` unrotated, and rotary(layer) turns
    them by their places.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        positions: Literal["original", "in_cache"] = "original",
        backend: Backend | None = None,
    ) -> None:
        _one_of("positions", positions, ("original", "in_cache"))
        if positions == "in_cache" and not config.is_rotary:
            raise ValueError(
                f"positions='in_cache' must be used with a model that rotates, got model type "
                f"{config.model_type!r}, which has learned positions"
            )
        self.config, self.weights = config, weights
        self.positions = positions
        self._layers = TorchLayers(config, weights, rotates=positions == "original")
        self.backend = _chosen(backend, self.device)
        self._native, self.native_rows = None, 0
        if self.backend == "native":
            self._native = NativeLayers(self._layers)
            self.native_rows = most_rows(weights)
        self._rotation = None
        if config.rope is not None:
            self._rotation = Rotation(frequencies(config.rope).to(self.device))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        dtype: str = "float32",
        weights: WeightForm = "plain",
        backend: Backend | None = None,
        device: str | torch.device = "cpu",
        num_threads: int | None = None,
        positions: Literal["original", "in_cache"] = "original",
    ) -> Transformer:
        """Load a Hugging Face folder: config.json and safetensors, no other code, no network.

        num_threads sets PyTorch's threads, for the whole process. Raises ValueError for a folder
        or an option that is wrong, UnsupportedModelError for a model that would not be exact.
        """
        config = ModelConfig.from_folder(path)
        kind = _checked(dtype, weights, num_threads)
        loaded = load_weights(path, config, dtype=kind, form=weights, device=usable_device(device))
        return cls(config, loaded, positions=positions, backend=backend)

    @classmethod
    def random(
        cls,
        config: ModelConfig,
        seed: int = 0,
        *,
        dtype: str = "float32",
        weights: WeightForm = "plain",
        backend: Backend | None = None,
        device: str | torch.device = "cpu",
        num_threads: int | None = None,
        positions: Literal["original", "in_cache"] = "original",
    ) -> Transformer:
        """Make a model of random weights, to measure with; as load otherwise."""
        kind = _checked(dtype, weights, num_threads)
        made = random_weights(config, seed, dtype=kind, form=weights, device=usable_device(device))
        return cls(config, made, positions=positions, backend=backend)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weights.embed.device

    @property
    def dtype(self) -> torch.dtype:
        """What queries, keys and values are made in."""
        return self.weights.dtype

    @property
    def weight_nbytes(self) -> int:
        """Bytes of weights that a decode step reads, scales included, embeddings not."""
        return self.weights.nbytes

    def rotary(self, layer: int) -> Rotation | None:
        """Return a layer's rotation of x [B,H,N,D] by index [B,H,N], None if it does not turn."""
        return self._rotation if self.config.rotary_layers[layer] else None

    @torch.no_grad()  # not inference mode: what attend stores must stay writable
    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        attend: Attention,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Run tokens and their positions, int64 [N]. -> logits of `rows` or all, float32 [R,V].

        attend is called once a layer, in order; q, k and v may be views of one buffer, which the
        next layer overwrites. Raises ValueError for positions that the model cannot have.
        """
        if tokens.ndim != 1 or tokens.shape != positions.shape:
            raise ValueError(
                "tokens and positions must be of one shape [N], "
                f"got {list(tokens.shape)} and {list(positions.shape)}"
            )
        self._check_positions(positions)
        N, width = tokens.shape[0], self.config.num_heads * self.config.head_dim
        layers = self._layers_for(N)
        x, turns = layers.begin(tokens, positions)
        for layer in range(self.config.num_layers):
            q, k, v = layers.project(layer, x, turns)
            x = layers.finish(layer, x, attend(layer, q, k, v).reshape(N, width))
        wanted = x if rows is None else x[rows]
        if not wanted.shape[0]:  # a chunk within a prompt
            return wanted.new_empty(0, self.config.vocab_size)
        return self._layers_for(wanted.shape[0]).logits(wanted)

    def _layers_for(self, num_rows: int) -> TorchLayers | NativeLayers:
        """Return what computes a call of so many rows."""
        if self._native is not None and 0 < num_rows <= self.native_rows:
            return self._native
        return self._layers

    def _check_positions(self, positions: Tensor) -> None:
        """Refuse positions past the model's limit. Raises ValueError."""
        limit = self.config.position_limit
        if limit is None or not positions.numel():
            return
        if positions.is_cuda and torch.cuda.is_current_stream_capturing():
            return  # a captured step cannot ask the host; who replays it does
        last = int(positions.max())
        if last >= limit:
            raise ValueError(
                f"positions must be below {limit}, where model type {self.config.model_type!r} "
                f"ends, got {last}"
            )


def _chosen(backend: Backend | None, device: torch.device) -> Backend:
    """Return the backend to use. Raises ValueError for one that cannot be."""
    if backend is None:
        return "native" if device.type == "cpu" else "torch"
    _one_of("backend", backend, ("torch", "native"))
    if backend == "native" and device.type != "cpu":
        raise ValueError(f"backend 'native' must be used on a CPU, got device {str(device)!r}")
    return backend


def _checked(dtype: str, weights: str, num_threads: int | None) -> torch.dtype:
    """Check what is common to loaded and random models, set the threads; return the dtype."""
    _one_of("dtype", dtype, tuple(_DTYPES))
    _one_of("weights", weights, WEIGHT_FORMS)
    if num_threads is not None:
        if num_threads < 1:
            raise ValueError(f"num_threads must be at least 1, got {num_threads!r}")
        torch.set_num_threads(num_threads)
    return _DTYPES[dtype]


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise ValueError unless a value is one of the known."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
