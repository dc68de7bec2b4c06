"""kvmmu: a KV cache of constant size. See the README; names load on first use (PEP 562)."""

from __future__ import annotations

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
    from kvmmu.accel.api import list_accelerators, simulate
    from kvmmu.engine.engine import Engine
    from kvmmu.engine.lane_class import LaneClass
    from kvmmu.engine.request import SamplingParams
    from kvmmu.errors import (
        CapacityError,
        IntegrityError,
        KVMMUError,
        SpecError,
        TraceError,
        UnsupportedModelError,
    )
    from kvmmu.hf.cache import SlotCache
    from kvmmu.hf.enable import enabled
    from kvmmu.hf.lm import LM
    from kvmmu.hf.load import list_models, load
    from kvmmu.policies.base import list_policies, register
    from kvmmu.policies.h2o import H2O
    from kvmmu.policies.keydiff import KeyDiff
    from kvmmu.policies.novelty import Novelty
    from kvmmu.policies.random import Random
    from kvmmu.policies.rce import RCE
    from kvmmu.policies.snapkv import SnapKV
    from kvmmu.policies.streaming_llm import StreamingLLM
    from kvmmu.policies.tova import TOVA

__version__ = "0.1.0"

_HOMES = {
    "CapacityError": "errors",
    "Engine": "engine.engine",
    "H2O": "policies.h2o",
    "IntegrityError": "errors",
    "KVMMUError": "errors",
    "KeyDiff": "policies.keydiff",
    "LM": "hf.lm",
    "LaneClass": "engine.lane_class",
    "Novelty": "policies.novelty",
    "RCE": "policies.rce",
    "Random": "policies.random",
    "SamplingParams": "engine.request",
    "SlotCache": "hf.cache",
    "SnapKV": "policies.snapkv",
    "SpecError": "errors",
    "StreamingLLM": "policies.streaming_llm",
    "TOVA": "policies.tova",
    "TraceError": "errors",
    "UnsupportedModelError": "errors",
    "enabled": "hf.enable",
    "list_accelerators": "accel.api",
    "list_models": "hf.load",
    "list_policies": "policies.base",
    "load": "hf.load",
    "register": "policies.base",
    "simulate": "accel.api",
}

__all__ = [
    "CapacityError",
    "Engine",
    "H2O",
    "IntegrityError",
    "KVMMUError",
    "KeyDiff",
    "LM",
    "LaneClass",
    "Novelty",
    "RCE",
    "Random",
    "SamplingParams",
    "SlotCache",
    "SnapKV",
    "SpecError",
    "StreamingLLM",
    "TOVA",
    "TraceError",
    "UnsupportedModelError",
    "enabled",
    "list_accelerators",
    "list_models",
    "list_policies",
    "load",
    "register",
    "simulate",
]


def __getattr__(name: str) -> _typing.Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
