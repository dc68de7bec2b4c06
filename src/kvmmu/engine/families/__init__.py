"""One file a model type: how its config.json reads and what its tensors are called."""

from __future__ import annotations

from kvmmu.engine.families import gpt2, llama, mistral, olmo2, opt, phi3, qwen2, qwen3, smollm3
from kvmmu.engine.families.family import Family

__all__ = ["FAMILIES", "Family"]

FAMILIES: dict[str, Family] = {
    module.FAMILY.model_type: module.FAMILY
    for module in (gpt2, llama, mistral, olmo2, opt, phi3, qwen2, qwen3, smollm3)
}
"""Every model type that the engine computes itself."""
