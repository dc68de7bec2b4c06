"""kvmmu.load: a shipped model, a local folder or a hub name, checked before it is read."""

from __future__ import annotations

import math
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kvmmu.budgets.base import Budget
from kvmmu.codecs.base import Codec
from kvmmu.hf.cache import SlotCache
from kvmmu.hf.lm import LM
from kvmmu.hf.support import describe
from kvmmu.kernels.dispatch import usable_device
from kvmmu.policies.base import POLICIES, Policy
from kvmmu.slots.settings import CacheOptions, Granularity, Positions

__all__ = ["list_models", "load", "load_tokenizer", "model_path"]

_SHIPPED = Path(str(files("kvmmu") / "models"))
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def list_models() -> list[str]:
    """List the names of the models that are shipped in the package."""
    return sorted(p.parent.name for p in _SHIPPED.glob("*/config.json"))


def model_path(name: str | os.PathLike[str], *, is_local: bool = False) -> str:
    """Return the folder of a shipped model or a local one, else the hub name unchanged.

    Raises ValueError for what can be neither, or for a hub name if it must be local: it names the
    shipped models.
    """
    text = os.fspath(name)
    if text in list_models():
        return str(_SHIPPED / text)
    if (Path(text) / "config.json").is_file():
        return text
    if Path(text).exists():
        raise ValueError(f"model folder must hold a config.json, got {text!r} without one")
    if text.count("/") != 1 or is_local:
        known = ", ".join(list_models())
        kinds = "or a local folder" if is_local else "a local folder or a hub name 'owner/name'"
        raise ValueError(f"model must be a shipped one ({known}), {kinds}, got {text!r}")
    return text


def load_tokenizer(name: str | os.PathLike[str]) -> Any:
    """Return the tokenizer of a shipped model, a local folder or a hub name."""
    return AutoTokenizer.from_pretrained(model_path(name))


def load(
    name: str | os.PathLike[str],
    num_slots: int | None = None,
    *,
    compression: float | None = None,
    policy: str | Policy = "rce",
    budget: str | Budget = "uniform",
    codec: str | Codec = "plain",
    num_sinks: int | None = None,
    window: int | None = None,
    granularity: Granularity = "head",
    positions: Positions = "original",
    chunk_size: int | None = None,
    kernel: str | None = None,
    allow_extrapolation: bool = False,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
) -> LM:
    """Load a model and its tokenizer; safetensors only, no remote code.

    Each generation gets a cache of `num_slots` slots, or of ceil((prompt + new tokens) /
    compression), or, with neither, a full one, which takes no option of a SlotCache but
    `allow_extrapolation`. Raises ValueError, TypeError or UnsupportedModelError.
    """
    parts: dict[str, Any] = {
        "policy": policy,
        "budget": budget,
        "codec": codec,
        "num_sinks": num_sinks,
        "window": window,
        "granularity": granularity,
        "positions": positions,
        "chunk_size": chunk_size,
        "kernel": kernel,
        "allow_extrapolation": allow_extrapolation,
    }
    _check_options(num_slots, compression, parts)
    kind, place = _dtype(dtype), usable_device(device)
    path = model_path(name)
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=kind, use_safetensors=True)
    tokenizer = load_tokenizer(path)
    model = model.to(place).eval()
    if num_slots is not None:
        SlotCache.for_model(model, num_slots, **parts)  # refuse now, not later
    elif compression is not None:
        describe(model)
    return LM(model, tokenizer, num_slots, compression, parts)


def _check_options(num_slots: int | None, compression: float | None, parts: dict[str, Any]) -> None:
    """Refuse wrong options before the model is read. Raises ValueError or TypeError."""
    if num_slots is not None and compression is not None:
        raise ValueError(
            f"at most one of num_slots and compression may be given, got {num_slots!r} and "
            f"{compression!r}"
        )
    is_number = isinstance(compression, int | float) and not isinstance(compression, bool)
    if compression is not None and not (is_number and 1 <= compression < math.inf):
        raise ValueError(f"compression must be at least 1, got {compression!r}")
    any_slots = 2**40 if num_slots is None else num_slots  # not known yet: none is too large
    CacheOptions.make(any_slots, None, merger=None, **parts)
    if num_slots is not None or compression is not None:
        return
    default = {"policy": POLICIES.make("rce"), "budget": "uniform", "codec": "plain"}
    default |= {"granularity": "head", "positions": "original"}
    asked = parts | {"policy": POLICIES.make(parts["policy"])}
    given = [
        key
        for key, value in asked.items()
        if key != "allow_extrapolation" and value != default.get(key)
    ]
    if given:
        raise ValueError(
            f"{' and '.join(given)} must go with num_slots or compression, got neither: a full "
            "cache evicts nothing"
        )


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return the dtype of a name or itself. Raises ValueError for another one."""
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    if not isinstance(name, str) or name not in _DTYPES:
        raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}")
    return _DTYPES[name]
