"""How long does a simulation take, warm and cold? LLaMA-7B, batch 16, 2,048 + 2,048, C = 512.

Regime: Python and compiled kernels on one core; no bound is claimed. Warm: a second run inside one
process. Cold: a new process with an empty cache of DRAM patterns, compiled code cached (run once
before), import included. Targets: 1 s and 10 s on two cores.

    python benchmarks/bench_simulate.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

RUN = """
import time
begin = time.perf_counter()
from kvmmu.accel.simulate import Request, simulate
request = Request(model="llama_7b", batch=16, prompt=2048, generate=2048, num_slots=512)
simulate(request)
first = time.perf_counter() - begin
rounds = []
for _ in range({rounds}):
    begin = time.perf_counter()
    simulate(request)
    rounds.append(time.perf_counter() - begin)
import json
print(json.dumps({{"first_s": first, "warm_s": rounds}}))
"""


def run(cache: str, rounds: int) -> dict:
    """Simulate in a new process with the given folder for DRAM patterns."""
    code = RUN.format(rounds=rounds)
    begin = time.perf_counter()
    made = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"KVMMU_CACHE_DIR": cache},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(made.stdout) | {"process_s": time.perf_counter() - begin}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        run(os.path.join(folder, "compile"), 1)  # compiles the kernels where they are not yet
    cold, warm = [], []
    for _ in range(max(3, rounds // 2)):
        with tempfile.TemporaryDirectory() as folder:
            made = run(folder, rounds)
        cold.append(made["process_s"] - sum(made["warm_s"]))
        warm += made["warm_s"]
    quartiles = statistics.quantiles(warm, n=4)
    print(f"warm  {statistics.median(warm):.2f} s ({quartiles[0]:.2f}..{quartiles[2]:.2f})")
    print(
        f"cold  {statistics.median(cold):.2f} s ({min(cold):.2f}..{max(cold):.2f}), process and all"
    )
    print(
        json.dumps(
            {"warm_s": statistics.median(warm), "cold_s": statistics.median(cold), "rounds": rounds}
        )
    )


if __name__ == "__main__":
    main()
