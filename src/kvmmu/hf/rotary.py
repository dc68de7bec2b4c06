"""positions="in_cache": turn a rotated key back, and give it its rank in the cache instead.

Keys reach a transformers cache already rotated, so the rotation is undone by the same angles
with the sign changed and done again for another place. cos and sin come from the model's own
rotary embedding and are applied by the function of the model's own file, so interleaved and
partial layouts come out right; that R(a) R(b) = R(a + b) is checked on the spot, and a model
for which it does not hold (angles that change with length, or per layer) is refused.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kvmmu.errors import UnsupportedModelError
from kvmmu.hf.support import decoder_of
from kvmmu.slots.spec import Rotary

__all__ = ["rotations"]

_FIXED_ANGLES = frozenset({"default", "linear", "llama3", "yarn"})
"""RoPE types whose angle per position does not depend on the length of the text."""


def rotations(model: PreTrainedModel) -> list[Rotary | None]:
    """Return each layer's rotation. Raises UnsupportedModelError if there is no exact one."""
    decoder = decoder_of(model)
    kind = model.config.model_type
    rotary: Any = getattr(decoder, "rotary_emb", None)
    apply = getattr(sys.modules[type(decoder).__module__], "apply_rotary_pos_emb", None)
    if rotary is None or apply is None:
        raise _refused(kind, "has no rotary embedding shared by its layers")
    if "layer_type" in inspect.signature(rotary.forward).parameters:
        raise _refused(kind, "has other angles in its sliding-window layers")
    if getattr(rotary, "rope_type", None) not in _FIXED_ANGLES:
        raise _refused(kind, f"has RoPE of type {getattr(rotary, 'rope_type', None)!r}")
    turn = _rotation(rotary, apply)
    config: Any = model.config.get_text_config(decoder=True)
    _check_group(turn, config, rotary.inv_freq.device, kind)
    skips = getattr(config, "no_rope_layers", None) or [1] * config.num_hidden_layers
    return [turn if uses else _leave for uses in skips[: config.num_hidden_layers]]


def _rotation(rotary: nn.Module, apply: Callable[..., tuple[Tensor, Tensor]]) -> Rotary:
    """Make a rotation of x [B,H,N,D] by index [B,H,N], the same for its scaling factor."""
    scaling = float(getattr(rotary, "attention_scaling", 1.0))

    def turn(x: Tensor, index: Tensor) -> Tensor:
        B, H, N, D = x.shape
        flat = x.reshape(B * H, 1, N, D)
        index = index.expand(B, H, N).reshape(B * H, N)
        # A negative place is the positive one with the sine's sign changed: the model's
        # function never sees a negative position.
        cos, sin = rotary(x.float(), index.abs())  # [B*H,N,D']
        cos, sin = cos / scaling, sin / scaling * index.sign()[..., None]
        turned, _ = apply(flat.float(), flat.float(), cos, sin)
        return turned.to(x.dtype).view(B, H, N, D)

    return turn


def _leave(x: Tensor, index: Tensor) -> Tensor:
    """Do nothing: a layer without position embedding."""
    return x


def _check_group(turn: Rotary, config: Any, device: torch.device, kind: str) -> None:
    """Check R(a) R(b) = R(a + b) and R(a) R(-a) = 1 on made-up keys."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    x = torch.linspace(-1, 1, 3 * head_dim, device=device).view(1, 1, 3, head_dim)
    a = torch.tensor([[[1, 5, 40]]], device=device)
    b = torch.tensor([[[3, 2, 7]]], device=device)
    again = turn(turn(turn(x, a), b), -(a + b))
    moved = (turn(x, a) - x).abs().max()
    if not torch.allclose(again, x, atol=1e-4) or moved < 1e-3:
        raise _refused(kind, "has rotations that do not add up")


def _refused(kind: str, why: str) -> UnsupportedModelError:
    """Word a refusal."""
    return UnsupportedModelError(
        f"positions='in_cache' is not supported for model type {kind!r}: it {why}"
    )
