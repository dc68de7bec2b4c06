"""The bridge to Hugging Face transformers, and the only room that imports it.

    support.py    what a model needs: its layers' shapes, or why it is refused
    families.py   which families tests have shown to be right, and which are refused
    options.py    what a cache was asked for, checked once
    cache.py      SlotCache, a transformers Cache whose layers (layer.py) are KV-MMUs
    enable.py     kvmmu.enabled(model): attention and mask functions through the public registries
    forward.py    what is checked and settled on the host, once per forward
    handoff.py    the forward in flight, per thread
    rotary.py     positions="in_cache": keys turned back and re-turned
    snapshot.py   save and load of a cache (safetensors)
    record.py     write what a cache does to a trace
    load.py       kvmmu.load: shipped models, local folders, hub names
    lm.py         LM: generate and stream (stream.py) text, a cache for each generation

A forward walks so: a hook before the decoder checks the call and settles which new tokens are
real (`forward.prepare`); each layer's `update` leaves its new K and V in the forward's hand-off;
the attention function, called next in the same module, takes them, verifies that they are its
own, and lets that layer's KV-MMU do the rest. No mask and no C x Q matrix is ever built.
"""

from __future__ import annotations
