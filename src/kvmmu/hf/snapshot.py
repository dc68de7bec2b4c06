"""Save and load of a SlotCache: one safetensors file, tensors by layer, the rest as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kvmmu.budgets.base import BUDGETS
from kvmmu.codecs.base import CODECS
from kvmmu.errors import IntegrityError
from kvmmu.hf.support import ModelShape
from kvmmu.policies.base import POLICIES, Policy

if TYPE_CHECKING:
    from kvmmu.hf.cache import SlotCache

__all__ = ["load", "save"]

_KEY = "kvmmu_slot_cache"
_VERSION = 1


def save(cache: SlotCache, path: str | os.PathLike[str]) -> None:
    """Write a bound cache. Raises IntegrityError if it is unbound or a forward has failed.

    Raises ValueError for a folder.
    """
    if os.path.isdir(path):
        raise ValueError(f"path must be a file, got the folder {os.fspath(path)!r}")
    if not cache.is_bound or cache.shape is None or cache.is_in_forward:
        raise IntegrityError("a SlotCache must be bound and between two forwards to be saved")
    options = {
        f.name: getattr(cache.options, f.name) for f in dataclasses.fields(cache.options)
    } | {
        "policy": {"name": cache.policy.name} | cache.policy.params(),
        "budget": {"name": cache.options.budget.name} | cache.options.budget.params(),
        "codec": {"name": cache.options.codec.name} | cache.options.codec.params(),
    }
    shape = dataclasses.asdict(cache.shape)
    shape |= {"dtype": _dtype_name(cache.shape.dtype), "device": str(cache.shape.device)}
    note = {
        "version": _VERSION,
        "batch": cache.batch,
        "eos_ids": None if cache.eos_ids is None else cache.eos_ids.tolist(),
        "pad_id": cache.pad_id,
        "options": options,
        "shape": shape,
    }
    tensors = {name: tensor.contiguous() for name, tensor in cache.named_tensors().items()}
    save_file(tensors, os.fspath(path), metadata={_KEY: json.dumps(note)})


def load(path: str | os.PathLike[str]) -> SlotCache:
    """Read a cache. Raises IntegrityError with the reason if the file is not a whole one.

    Keys "in_cache" need the model's rotation: it is taken from the model of the next forward.
    """
    note, tensors = _read(path)
    try:
        cache = _made(note)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(
            f"{os.fspath(path)} must have a note of its settings, got a damaged one: "
            f"{type(error).__name__}: {error}"
        ) from error
    own = cache.named_tensors()
    if own.keys() != tensors.keys():
        raise IntegrityError(f"{os.fspath(path)} must hold a SlotCache's tensors, got others")
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape or tensor.dtype != tensors[name].dtype:
            raise IntegrityError(
                f"{os.fspath(path)}: {name} must be {list(tensor.shape)} in {tensor.dtype}, got "
                f"{list(tensors[name].shape)} in {tensors[name].dtype}"
            )
        tensor.copy_(tensors[name])
    return cache


def _made(note: dict[str, Any]) -> SlotCache:
    """Make the bound, empty cache that a note describes."""
    from kvmmu.hf.cache import SlotCache

    options: dict[str, Any] = note["options"]
    shape = dict(note["shape"])
    shape |= {
        "dtype": getattr(torch, shape["dtype"]),
        "device": torch.device(shape["device"]),
        "horizons": tuple(shape["horizons"]),
    }
    cache = SlotCache(
        options["num_slots"],
        policy=_policy(options["policy"]),
        budget=_part(BUDGETS, options["budget"]),
        codec=_part(CODECS, options["codec"]),
        num_sinks=options["num_sinks"],
        window=options["window_or_none"],
        granularity=options["granularity"],
        positions=options["positions"],
        chunk_size=options["chunk_or_none"],
        kernel=options["kernel"],
        allow_extrapolation=options["allow_extrapolation"],
    )
    cache.bind_shape(ModelShape(**shape), batch=note["batch"])
    if note["eos_ids"] is not None:
        cache.eos_ids = torch.tensor(note["eos_ids"], device=cache.columns.device)
    cache.pad_id = note["pad_id"]
    return cache


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the note and the tensors. Raises IntegrityError for a foreign or cut file."""
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise IntegrityError(
            f"{os.fspath(path)} must be a whole safetensors file: {error}"
        ) from None
    if _KEY not in metadata:
        raise IntegrityError(f"{os.fspath(path)} must be a saved SlotCache, got other tensors")
    try:
        note: dict[str, Any] = json.loads(metadata[_KEY])
        version = note["version"]
    except (ValueError, TypeError, KeyError):
        raise IntegrityError(
            f"{os.fspath(path)} must have a note of its settings, got a damaged one"
        ) from None
    if version != _VERSION:
        raise IntegrityError(
            f"{os.fspath(path)} must be of version {_VERSION}, got version {version}"
        )
    return note, tensors


def _policy(saved: dict[str, Any]) -> Policy:
    """Make a policy again, the one inside a selector too."""
    params = {
        key: _policy(value) if isinstance(value, dict) else value
        for key, value in saved.items()
        if key != "name"
    }
    return POLICIES.get(saved["name"])(**params)


def _part(registry: Any, saved: dict[str, Any]) -> Any:
    """Make a budget or a codec again."""
    return registry.get(saved["name"])(**{k: v for k, v in saved.items() if k != "name"})


def _dtype_name(dtype: torch.dtype) -> str:
    """Name a dtype without its module."""
    return str(dtype).removeprefix("torch.")
