"""Many requests, few lanes: continuous batching in memory that is settled at the start."""

from __future__ import annotations

import kvmmu

engine = kvmmu.Engine.load("kvmmu-ref-1m", num_slots=128, num_lanes=4, policy="rce")
params = kvmmu.SamplingParams(max_new_tokens=24, stop="\n")
names = {
    engine.add("The sea was calm and the wind was low. " * n, params): n for n in range(1, 40, 4)
}
while engine.has_work:
    for output in engine.step():
        if output.finish:
            print(f"prompt of {names[output.request_id]:2} sentences: {output.finish}")
stats = engine.stats()
print(f"{len(names)} requests on 4 lanes: {stats.num_prompt_tokens:,} tokens in, ", end="")
print(f"{stats.num_new_tokens} out, in {stats.num_steps} steps")
print(f"{stats.kv_nbytes:,} bytes of K and V, before the first request and after the last")

free = kvmmu.SamplingParams(temperature=0.8, top_p=0.9, seed=1, max_new_tokens=30)
for output in engine.stream("The old man sat by the fire and said", free):
    print(output.text, end="", flush=True)
print()
