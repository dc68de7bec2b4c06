"""A prompt far longer than the cache, and a cache that does not grow."""

from __future__ import annotations

import kvmmu

lm = kvmmu.load("kvmmu-ref-1m")  # shipped; your own transformers model works the same way
inputs = lm.encode("The sea was calm, the wind was low, and the watch was long. " * 200)
cache = kvmmu.SlotCache.for_model(lm.model, num_slots=256, policy="rce")
with kvmmu.enabled(lm.model):
    lm.model.generate(**inputs, past_key_values=cache, max_new_tokens=100, prefill_chunk_size=256)
seen = cache.get_seq_length()
print(f"{seen:,} tokens went through {cache.num_slots} slots per layer and KV head")
print(f"{cache.nbytes:,} bytes; a full cache: {cache.geometry.full_kv_bytes(seen):,} bytes")
