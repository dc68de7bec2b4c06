"""Record what the KV-MMU did, read the file back, and say which tokens stayed."""

from __future__ import annotations

import lzma
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import kvmmu
from kvmmu import trace


def main(path: Path) -> None:
    """Generate after a long prompt, and print what the trace says of it."""
    with lzma.open(str(files("kvmmu") / "data" / "frankenstein.txt.xz"), "rt") as file:
        prompt = file.read()[20_000:26_000]
    lm = kvmmu.load("kvmmu-ref-1m", num_slots=128, policy="rce")
    lm.generate(prompt, max_new_tokens=100, trace=path)

    recording = trace.read(path)
    header, told = recording.header, trace.summary(recording)
    layers, slots = header.geometry.num_layers, header.geometry.slots[0]
    print(f"{told.policy}, {layers} layers x {header.num_tables} KV heads x {slots} slots")
    print(f"{told.prefill.tokens} tokens in {told.num_chunks} chunks, then {told.decode.tokens}")
    print(f"evictions {told.evictions:,}, by layer {list(told.evictions_per_layer)}")
    print(f"half of the evicted stayed for at most {told.residence_median} tokens")
    print(f"{told.num_never_written:,} new tokens lost within their own chunk")
    print(f"K and V read {told.bytes_read_per_token:,.0f} bytes a token")
    print(f"K and V written {told.bytes_written_per_token:,.0f} bytes a token")
    held = sum(count for _, _, count in told.survivors_by_age)
    print("age of the tokens held at the end:")
    for low, high, count in told.survivors_by_age:
        share = count / held
        print(f"  {low:>4} to {high - 1:<4} {share:6.1%} {'#' * round(60 * share)}".rstrip())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder) / "run.kvtrace")
