"""A safetensors folder, read one tensor at a time."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

__all__ = ["Checkpoint"]

_ONE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Checkpoint:
    """The tensors of model.safetensors, or of the shards that its index names.

    Each read opens its file anew, so that no file stays mapped whole. Raises ValueError in one
    line for a folder or a file that cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.folder = Path(path)
        self._file_of = self._names()

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        return frozenset(self._file_of)

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Read one tensor. Raises ValueError if it is missing, misshapen or not plain floats."""
        if name not in self._file_of:
            raise ValueError(f"checkpoint must hold {name}, got {str(self.folder)!r} without it")
        file = self._file_of[name]
        try:
            with safe_open(file, framework="pt") as opened:
                tensor: Tensor = opened.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file} must be readable safetensors: {name}: {error}") from None
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"{name} must be float32, bfloat16 or float16, got {tensor.dtype}")
        return tensor

    def _names(self) -> dict[str, Path]:
        """Map each tensor's name to its file."""
        whole, index = self.folder / _ONE, self.folder / _INDEX
        if whole.is_file():
            return dict.fromkeys(_keys(whole), whole)
        if not index.is_file():
            raise ValueError(
                f"model folder must hold {_ONE} or {_INDEX}, got {str(self.folder)!r} without; "
                "other formats are not read"
            )
        try:
            weight_map = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{index} must hold a weight_map: {error!r}") from None
        found: dict[str, Path] = {}
        for shard in sorted(set(map(str, weight_map.values()))):
            file = self.folder / shard
            if Path(shard).name != shard or not file.is_file():
                raise ValueError(f"{index.name} names {shard!r}, which is no file of its folder")
            found |= dict.fromkeys(_keys(file), file)
        missing = sorted(set(weight_map) - set(found))
        if missing:
            raise ValueError(f"{index.name} names {missing[0]}, which no shard holds")
        return found


def _keys(file: Path) -> list[str]:
    """List the tensors of a file."""
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} must be readable safetensors: {error}") from None
