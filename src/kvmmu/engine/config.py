"""ModelConfig: what a checkpoint's config.json says, checked and in one family's words."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kvmmu.errors import UnsupportedModelError

__all__ = ["ModelConfig", "RopeSpec"]

RopeKind = Literal["default", "linear", "llama3", "yarn", "longrope"]


@dataclass(frozen=True)
class RopeSpec:
    """How angles grow with the position; fields that a kind does not use keep their default.

    rotary_dim dimensions of a head turn, the rest stay. attention_factor multiplies the rotated
    queries and keys. original_length is the length in tokens that was trained before scaling.
    """

    kind: RopeKind
    theta: float
    rotary_dim: int
    factor: float = 1.0
    attention_factor: float = 1.0
    original_length: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    is_truncated: bool = True
    short_factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class ModelConfig:
    """Shape and rules of a decoder. horizons[l] is layer l's sliding window, None for all.

    rope is None for models with learned positions, whose table has max_positions +
    position_offset rows; rotary_layers[l] tells whether layer l turns its queries and keys.
    norm_place "pre" norms what enters attention and MLP, "post" what leaves them; qk_norm tells
    over what queries and keys are normed: a "head", the whole "width" or not at all.
    max_positions is the trained length in tokens; position_limit, if there is one, is a length
    past which no answer is right, and positions from there on are refused.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    horizons: tuple[int | None, ...]
    scale: float
    eos_ids: tuple[int, ...]
    rope: RopeSpec | None
    rotary_layers: tuple[bool, ...]
    norm_eps: float
    norm: Literal["rms", "layer"] = "rms"
    norm_place: Literal["pre", "post"] = "pre"
    qk_norm: Literal["head", "width"] | None = None
    activation: Literal["silu", "relu", "gelu", "gelu_tanh"] = "silu"
    is_gated: bool = True
    has_qkv_bias: bool = False
    has_out_bias: bool = False
    has_mlp_bias: bool = False
    is_tied: bool = False
    position_offset: int = 0
    position_limit: int | None = None

    @classmethod
    def from_folder(cls, path: str | os.PathLike[str]) -> ModelConfig:
        """Read config.json and generation_config.json of a checkpoint's folder.

        Raises ValueError if there is no readable one, UnsupportedModelError with the reason for
        a model that the engine would not compute exactly.
        """
        from kvmmu.engine.families import FAMILIES  # the families make a ModelConfig
        from kvmmu.engine.families.settings import Settings

        folder = Path(path)
        given = _read_json(folder / "config.json")
        kind = given.get("model_type")
        if kind not in FAMILIES:
            known = ", ".join(sorted(FAMILIES))
            raise UnsupportedModelError(
                f"model type {kind!r} is not supported by the engine: it knows {known}"
            )
        generation = folder / "generation_config.json"
        given |= {  # what stops a generation is the generation's business first
            key: value
            for key, value in (_read_json(generation) if generation.is_file() else {}).items()
            if key == "eos_token_id" and value is not None
        }
        settings = Settings(kind, given)
        config = FAMILIES[kind].read(settings)
        settings.finish()
        return config

    @property
    def num_positions(self) -> int:
        """Positions of a text that needs no extrapolation: trained ones, within the limit."""
        limit = self.position_limit
        return self.max_positions if limit is None else min(self.max_positions, limit)

    @property
    def is_rotary(self) -> bool:
        """Whether positions enter by rotation."""
        return self.rope is not None

    @property
    def group_size(self) -> int:
        """Query heads of a KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def qkv_rows(self) -> tuple[int, int, int]:
        """Rows of the query, key and value parts of the fused projection."""
        kv = self.num_kv_heads * self.head_dim
        return self.num_heads * self.head_dim, kv, kv


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ValueError in one line if it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"model folder must hold a {path.name}, got {str(path.parent)!r}"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} must be readable JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value
