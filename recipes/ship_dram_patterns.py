"""Simulate the DRAM patterns that the demo and the default simulation ask for, and ship them.

    python recipes/ship_dram_patterns.py       writes src/kvmmu/accel/configs/dram_patterns.json

On a new machine the first pattern would otherwise wait for the DRAM model to be compiled (half a
minute). An entry is used only under the key of the code and specification that made it; after a
change to either, run this again (tests/accel/test_shipped_patterns.py says when).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from kvmmu.accel.designs import baselines
from kvmmu.accel.dram import patterns
from kvmmu.accel.dram.cache import SHIPPED, pattern_key
from kvmmu.accel.dram.spec import DramSpec, load_dram
from kvmmu.accel.pipeline.machine import Machine
from kvmmu.accel.request import Request, our_design, settle
from kvmmu.accel.runner import Runner
from kvmmu.accel.spec.load import load_accelerator, load_model

DEMO_MODELS = ("kvmmu-ref-1m", "kvmmu-ref-1m-mha", "kvmmu-ref-4m")
DEMO_SLOTS = (64, 48)  # 512 and 384 tokens (--quick) at 1/8


def requests() -> Iterator[Request]:
    """Yield the runs whose patterns are shipped."""
    for model in DEMO_MODELS:
        for slots in DEMO_SLOTS:
            for granularity in ("head", "layer"):
                yield Request(
                    model=model,
                    batch=1,
                    prompt=7 * slots,
                    generate=slots,
                    num_slots=slots,
                    granularity=granularity,
                )
    for dram in ("lpddr4_3200_x64", "ddr4_3200_x64"):
        for granularity in ("layer", "head"):
            yield Request(num_slots=512, dram=dram, granularity=granularity)


def machines(request: Request) -> Iterator[Machine]:
    """Yield the machine of our design, of it without scores, and of every baseline."""
    spec, model = load_accelerator(request.accelerator), load_model(request.model)
    dram = load_dram(request.dram or spec.dram)
    workload, request = settle(request, model, spec)
    runner = Runner(request, spec, dram, model)
    ours = our_design(request, spec, workload)
    plain = replace(ours, has_scores=False, softmax_form="online")
    for design in (ours, plain, *baselines(ours, num_tokens=workload.longest_lane)):
        yield runner.machine(design, workload)


def wanted() -> dict[str, tuple[DramSpec, patterns.Pattern]]:
    """Return every pattern of those runs by its key."""
    made = {}
    for request in requests():
        for machine in machines(request):
            for pattern in machine.patterns():
                made[pattern_key(machine.dram, pattern)] = (machine.dram, pattern)
    return made


def main() -> None:
    """Simulate all anew and write the file."""
    stored = {}
    with TemporaryDirectory() as folder:
        for spec, pattern in wanted().values():
            patterns.pattern_cost(spec, pattern, cache_dir=Path(folder))
        for path in sorted((Path(folder) / "dram").glob("*.json")):
            stored[path.stem] = json.loads(path.read_text(encoding="utf-8"))
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(stored.items())]
    SHIPPED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{len(stored)} patterns, {SHIPPED.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
