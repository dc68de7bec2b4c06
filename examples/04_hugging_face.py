"""Plain transformers: a left-padded batch of prompts of different lengths, one cache for all.

Replace `path` by your own model's folder or hub name; nothing else changes.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import kvmmu
from kvmmu.hf.load import model_path

path = model_path("kvmmu-ref-1m")
tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
# In bfloat16 two equal logits may fall either way; in float32 the tokens must be equal.
model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

prompts = [
    "The ship left the harbour. " * 120,
    "It was a dark and stormy night. " * 60,
    "The old man sat by the fire and said",
]
inputs = tokenizer(prompts, return_tensors="pt", padding=True)
settings = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False}

full = DynamicCache(config=model.config)
expected = model.generate(**inputs, **settings, past_key_values=full)
full_nbytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in full.layers)

for num_slots in (64, expected.shape[1]):
    cache = kvmmu.SlotCache.for_model(model, num_slots, batch_size=len(prompts), policy="rce")
    before = [mmu.keys.read().data_ptr() for mmu in cache.mmus]
    with kvmmu.enabled(model):
        ids = model.generate(**inputs, **settings, past_key_values=cache)
    moved = before != [mmu.keys.read().data_ptr() for mmu in cache.mmus]
    print(f"{num_slots} slots: {cache.nbytes:,} bytes (full cache: {full_nbytes:,})")
    print(f"  storage moved: {moved}; evicted per row: {cache.num_evicted[0].tolist()}")
    print(f"  same tokens as the full cache: {torch.equal(ids, expected)}")
