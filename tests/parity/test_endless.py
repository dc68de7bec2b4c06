"""positions="in_cache": a text far past the trained length reads like the tokens that are held."""

from __future__ import annotations

import pytest
import torch
from tiny_models import make

from kvmmu import SlotCache, enabled


@pytest.mark.parametrize("prefill", [0, 50])
@pytest.mark.parametrize("policy", ["streaming_llm", "rce"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3", "gpt_neox", "smollm3", "olmo2"])
def test_held_tokens_are_numbered_as_if_they_were_the_text(
    name: str, policy: str, prefill: int
) -> None:
    """With one layer a key depends on its token alone: a fresh run over the held ones decides."""
    model = make(name, num_hidden_layers=1, max_position_embeddings=64)
    ids = torch.randint(3, 90, (2, 160), generator=torch.Generator().manual_seed(5))
    cache = SlotCache(24, policy=policy, positions="in_cache", granularity="layer", num_sinks=2)
    with enabled(model), torch.no_grad():
        if prefill:
            model(ids[:, :prefill], past_key_values=cache)
        for t in range(prefill, ids.shape[1]):
            logits = model(ids[:, t : t + 1], past_key_values=cache).logits[:, -1]
        for row in range(2):
            held = cache.positions(0)[row, 0].sort().values.long()
            fresh = model(ids[row : row + 1, held]).logits[0, -1]
            assert torch.allclose(logits[row], fresh, atol=1e-5)
