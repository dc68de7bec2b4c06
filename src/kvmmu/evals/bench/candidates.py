"""Who takes part: ours and the peers, each with its precision, model format and process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import kvmmu.evals.bench as here
from kvmmu.errors import KVMMUError
from kvmmu.registry import unknown_name

__all__ = ["BANDWIDTH", "CANDIDATES", "Candidate", "absent_reason", "pick", "python_of"]

_HERE = Path(here.__file__).parent
_HF = _HERE.parents[1] / "hf"
NO_SCORES = "streaming_llm"
"""The policy that keeps no scores: it ranks tokens by their age."""


@dataclass(frozen=True)
class Candidate:
    """One row of the table.

    holds: "full" keeps every token, "slots" C, "prompt" C in decode but all of the prompt before.
    source: "hf", "openvino-fp32", "openvino-int8", "gguf-f32", "gguf-f16", "gguf-q8_0".
    """

    name: str
    family: str
    holds: Literal["full", "slots", "prompt"]
    precision: str
    kv_element_bytes: float
    source: str
    file: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    has_serve: bool = False
    is_default: bool = True
    note: str = ""

    @property
    def is_ours(self) -> bool:
        """Say whether it is kvmmu."""
        return self.family == "kvmmu"

    @property
    def is_exact(self) -> bool:
        """Say whether it must give the greedy tokens of transformers' full cache."""
        return self.holds == "full" and self.precision == "fp32"


def _library(name: str, dtype: str = "float32", **more: Any) -> Candidate:
    precision, size = ("fp32", 4) if dtype == "float32" else ("bf16", 2)
    return Candidate(
        name, "kvmmu", "slots", precision, size, "hf", _HF / "baselines.py",
        {"cache": "slots", "dtype": dtype, **more}, has_serve=True,
    )  # fmt: skip


def _transformers(name: str, cache: str, dtype: str = "float32", **more: Any) -> Candidate:
    precision, size = ("fp32", 4) if dtype == "float32" else ("bf16", 2)
    return Candidate(
        name, "transformers", "full", precision, size, "hf", _HF / "baselines.py",
        {"cache": cache, "dtype": dtype}, has_serve=cache == "dynamic", **more,
    )  # fmt: skip


def _openvino(weights: str, *, is_evicting: bool) -> Candidate:
    is_fp32 = weights == "fp32"
    return Candidate(
        f"openvino-genai-{weights}" + ("-evict" if is_evicting else ""),
        "openvino-genai",
        "prompt" if is_evicting else "full",
        "fp32" if is_fp32 else "int8",
        4 if is_fp32 else 1.125,  # u8 with a scale and a zero point in float32 a head and token
        f"openvino-{weights}",
        _HERE / "peers" / "openvino_peer.py",
        {"dtype": "f32" if is_fp32 else "default", "is_evicting": is_evicting},
        ("openvino_genai", "openvino"),
        has_serve=True,
        note="" if is_fp32 else "weights int8, K and V u8, the rest by openvino's defaults",
    )


def _llama(weights: str, kv: str, kv_size: float) -> Candidate:
    precision = {"f32": "fp32", "f16": "fp16", "q8_0": "q8_0"}[weights]
    return Candidate(
        f"llama.cpp-{weights}", "llama.cpp", "full", precision, kv_size, f"gguf-{weights}",
        _HERE / "peers" / "llama_peer.py", {"kv_type": kv}, ("llama_cpp",),
        note=f"K and V in {kv}",
    )  # fmt: skip


def _kvpress(press: str, holds: Literal["slots", "prompt"], note: str) -> Candidate:
    return Candidate(
        f"kvpress-{press}", "kvpress", holds, "fp32", 4, "hf", _HF / "kvpress_peer.py",
        {"press": press}, ("kvpress",), note=note,
    )  # fmt: skip


def _engine(
    name: str, weights: str, size: float, *, is_default: bool = True, **more: Any
) -> Candidate:
    precision = {"float32": "fp32", "bfloat16": "bf16"}.get(weights, weights)
    return Candidate(
        name, "kvmmu", "slots", precision, size, "hf", _HERE / "engine_peer.py",
        {"weights": weights, **more}, has_serve=True, is_default=is_default,
    )  # fmt: skip


CANDIDATES: dict[str, Candidate] = {
    made.name: made
    for made in (
        _engine("engine", "float32", 4),
        _engine("engine-bf16", "bfloat16", 2, is_default=False),
        _engine("engine-int8", "int8", 4),
        _engine("engine-no-scores", "float32", 4, policy=NO_SCORES),
        _engine("engine-int8-no-scores", "int8", 4, policy=NO_SCORES),
        _library("library"),
        _library("library-native", kernel="native"),
        _library("library-no-scores", policy=NO_SCORES),
        _library("library-bf16", "bfloat16"),
        _transformers("transformers-dynamic", "dynamic"),
        _transformers("transformers-static", "static"),
        _transformers("transformers-static-compiled", "static-compiled", is_default=False),
        _transformers("transformers-dynamic-bf16", "dynamic", "bfloat16", is_default=False),
        _kvpress("snapkv", "prompt", "the prompt is cut to C once; then the cache grows"),
        _kvpress("decoding", "prompt", "KnormPress in prefill and every 16 steps"),
        _openvino("fp32", is_evicting=False),
        _openvino("fp32", is_evicting=True),
        _openvino("int8", is_evicting=False),
        _openvino("int8", is_evicting=True),
        _llama("f32", "f32", 4),
        _llama("f16", "f16", 2),
        _llama("q8_0", "f16", 2),
    )
}
BANDWIDTH = Candidate("read bandwidth", "kvmmu", "slots", "-", 0, "-", _HERE / "bandwidth_peer.py")


def pick(text: str | None, *, is_ours: bool) -> tuple[Candidate, ...]:
    """Choose candidates by names, or the default ones of families, with commas; None: of all.

    Raises ValueError for a name of neither kind.
    """
    side = [c for c in CANDIDATES.values() if c.is_ours == is_ours]
    if text is None:
        return tuple(c for c in side if c.is_default)
    found: dict[str, Candidate] = {}
    for part in (p.strip() for p in text.split(",") if p.strip()):
        same = [c for c in side if part == c.name or (part == c.family and c.is_default)]
        if not same and part != "none":
            known = sorted({c.name for c in side} | {c.family for c in side})
            raise ValueError(unknown_name("candidate", part, known))
        found |= {c.name: c for c in same}
    return tuple(found.values())


def python_of(candidate: Candidate, pythons: Mapping[str, str]) -> str:
    """Name the Python that runs it: the user's for its name or family, else this one."""
    return pythons.get(candidate.name) or pythons.get(candidate.family) or sys.executable


def absent_reason(candidate: Candidate, pythons: Mapping[str, str]) -> str | None:
    """Say what is not installed, or None.

    Raises KVMMUError where the Python named for it does not run.
    """
    python = python_of(candidate, pythons)
    code = (
        "import sys, importlib.util as u; "
        "print(' '.join(p for p in sys.argv[1:] if u.find_spec(p) is None))"
    )
    try:
        made = subprocess.run(
            [python, "-c", code, *candidate.packages],
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise KVMMUError(
            f"--peer-python {candidate.family}= must name a Python that runs, got {python!r} "
            f"({type(error).__name__})"
        ) from error
    missing = made.stdout.split()
    if not missing:
        return None
    return f"not installed ({', '.join(missing)}); --peer-python {candidate.family}=PATH names one"
