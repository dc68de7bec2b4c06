"""The engine: an own forward and continuous batching over lanes of constant size.

    config.py     ModelConfig: what a config.json says, in one family's words, or a refusal
    families/     one file a model type: names of its weights, what is special about it
    checkpoint.py a safetensors folder, read one tensor at a time
    tensors.py    shapes of a model's tensors, and the records that hold them
    weights.py    checkpoint -> fused, stacked tensors in float32, bfloat16, float16 or int8
    rope.py       angles by the configuration: default, linear, llama3, yarn, longrope
    linear.py     one weight matrix in one of its forms (plain, int8)
    layers.py     a decoder layer in two halves around the attention; native.py: few rows, on numba
    model.py      Transformer: tokens in, logits out; attention is handed in
    request.py    SamplingParams, Request, what comes back
    sampler.py    logits -> tokens, each row by its own request's parameters and generator
    text.py       token ids -> text pieces: incremental, stop strings across token borders
    lane_class.py LaneClass: C, policy and number of lanes of one class, declared at start
    scheduler.py  which lane decodes, which prompt's chunk runs, within a token budget
    step.py       one engine step: rows of decode and of prefill through one forward
    admission.py  prompts -> requests, or what is wrong with them
    loop.py       requests in lanes, step by step; faults and ends
    engine.py     Engine: add, step, stream, cancel, generate

How data walks. A request waits in its class's queue until a lane is free; it can then never run
out of memory, because the lane's C slots in every layer are its own until it ends. Its prompt
enters in chunks whose borders are multiples of T counted from its first token; the scheduler may
delay a chunk, never resize it. A step is a list of parts: all decoding rows of a class (one token
each), and prompt chunks (one lane, up to T tokens each). The rows of all parts go through the
linear layers together; in the attention each part goes to its own lanes:

    tokens [N], positions [N] -> embed -> for each layer:
        q [N,Hq,D], k, v [N,Hkv,D] = layers.project(l, x, positions)
        out [N,Hq*D]               = attend(l, q, k, v)     parts -> slots.LanePool
        x                          = layers.finish(l, x, out)
    -> logits [R,V] of the R rows that ask for them -> sampler -> text -> the request's stream

Contract of a step. In reference mode decode runs at the full lane count of its class and every
chunk in a call of its own, so that a request's output is the same bits whoever shares its batch
(same threads, same machine); in fast mode rows are packed, and logits agree within 1e-4. Nothing
is compacted, paged or moved; cancelling a request frees its lane at once; a request that fails
(NaN logits) ends alone.
"""

from __future__ import annotations
