"""What the benchmarks share: a random model, caches filled at once, fair rounds, one report.

A round runs every candidate once, in turn, so that what the machine does besides falls on all
of them. Each turn is timed twice: by the wall and by the process's CPU time. N threads allow N
seconds of CPU time a second (idle ones of OpenMP spin); where a turn got less than 80 % of that,
something else was running, and the whole round is void.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

LEAST_SHARE = 0.8
"""Of the CPU time that the threads allow; below it a round is void (docs: timing)."""


def random_llama(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """Build a 28M-parameter Llama with random weights: 8 layers, 8 query and 2 KV heads."""
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1 << 20,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval().to(dtype)


def twin(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Make a second model around the same weights, with a configuration of its own."""
    with torch.device("meta"):
        other = LlamaForCausalLM(copy.deepcopy(model.config))
    other.load_state_dict(model.state_dict(), assign=True)
    other.tie_weights()
    other.model.rotary_emb = model.model.rotary_emb  # its buffers are not in the state
    return other.eval()


def weight_bytes(model: torch.nn.Module) -> int:
    """Count the bytes of weights that one decode step reads; the tied embedding counts once."""
    return sum(p.nbytes for p in model.parameters())


def host(threads: int) -> dict[str, Any]:
    """Describe the machine without naming it."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


@dataclass
class Turns:
    """The turns of one candidate: milliseconds a step by the wall and by CPU time."""

    steps: int = 1
    wall_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)

    def take(self, step: Callable[[], None], rewind: Callable[[], None]) -> None:
        """Run one turn of `steps` steps."""
        rewind()
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(self.steps):
            step()
        self.wall_ms.append((time.perf_counter() - wall) * 1e3 / self.steps)
        self.cpu_ms.append((time.process_time() - cpu) * 1e3 / self.steps)

    def shares(self) -> list[float]:
        """Return CPU time over wall time, turn by turn."""
        return [c / w for c, w in zip(self.cpu_ms, self.wall_ms)]


@dataclass(frozen=True)
class Candidate:
    """Something to be timed: one step, and what brings it back to its start before a turn."""

    name: str
    step: Callable[[], None]
    rewind: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Rounds:
    """The turns of all candidates, and which rounds count.

    is_void: no round was fair, so all are counted; such figures are worth nothing.
    """

    turns: dict[str, Turns]
    valid: list[int]
    num_rounds: int
    is_void: bool = False

    def wall_ms(self, name: str) -> float:
        """Return the median wall time of a step."""
        return statistics.median(self.turns[name].wall_ms[i] for i in self.valid)

    def cpu_ms(self, name: str) -> float:
        """Return the median CPU time of a step."""
        return statistics.median(self.turns[name].cpu_ms[i] for i in self.valid)

    def spread_ms(self, name: str) -> tuple[float, float]:
        """Return the quartiles of the wall time of a step."""
        return quartiles([self.turns[name].wall_ms[i] for i in self.valid])

    def speedup(self, name: str, baseline: str, *, clock: str = "wall_ms") -> float:
        """Return the median over rounds of baseline time / candidate time."""
        mine, other = getattr(self.turns[name], clock), getattr(self.turns[baseline], clock)
        return statistics.median(other[i] / mine[i] for i in self.valid)

    def speedup_spread(self, name: str, baseline: str) -> tuple[float, float]:
        """Return the quartiles over rounds of the speed-up by the wall."""
        mine, other = self.turns[name].wall_ms, self.turns[baseline].wall_ms
        return quartiles([other[i] / mine[i] for i in self.valid])


def alternate(
    candidates: Sequence[Candidate], *, rounds: int, turn_s: float, max_steps: int = 200
) -> Rounds:
    """Time candidates in turn until `rounds` rounds count, in at most twice as many.

    A turn has as many steps as take `turn_s` seconds, at least 2. The order alternates.
    """
    turns = {c.name: Turns() for c in candidates}
    for c in candidates:  # warm-up, and how long a step takes
        trial = Turns(steps=2)
        trial.take(c.step, c.rewind)
        trial.take(c.step, c.rewind)
        turns[c.name].steps = max(2, min(max_steps, int(turn_s * 1e3 / trial.wall_ms[-1])))
    done, valid = 0, []
    while done < 2 * rounds and len(valid) < rounds:
        for c in candidates if done % 2 == 0 else reversed(candidates):
            turns[c.name].take(c.step, c.rewind)
        done += 1
        valid = _valid_rounds(turns, done)
    if not valid:
        return Rounds(turns, list(range(done)), done, is_void=True)
    return Rounds(turns, valid, done)


def _valid_rounds(turns: dict[str, Turns], done: int) -> list[int]:
    """List the rounds in which every turn got the CPU time that the threads allow."""
    least = LEAST_SHARE * torch.get_num_threads()
    shares = [t.shares() for t in turns.values()]
    return [i for i in range(done) if all(share[i] >= least for share in shares)]


def quartiles(values: list[float]) -> tuple[float, float]:
    """Return the first and third quartile; the value itself if there is one only."""
    if len(values) < 2:
        return values[0], values[0]
    cut = statistics.quantiles(values, n=4, method="inclusive")
    return cut[0], cut[2]


def resident_bytes() -> int:
    """Return the bytes of this process in memory now (Linux; elsewhere the peak so far)."""
    status = Path("/proc/self/status")
    return _status_bytes("VmRSS") if status.exists() else _maxrss_bytes()


def restart_peak() -> None:
    """Give freed memory back and let `peak_bytes` count from now on, where that can be done."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux
        return


def peak_bytes() -> int:
    """Return the most bytes of this process in memory since `restart_peak`."""
    return _status_bytes("VmHWM") if Path("/proc/self/status").exists() else _maxrss_bytes()


def _status_bytes(key: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if key in x)
    return int(line.split()[1]) * 1024


def _maxrss_bytes() -> int:
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def kv_bytes(cache: Any) -> int:
    """Measure the K and V that a cache holds, from its tensors."""
    if hasattr(cache, "kv_nbytes"):
        return int(cache.kv_nbytes)
    return sum(x.untyped_storage().nbytes() for y in cache.layers for x in (y.keys, y.values))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column to the left, figures to the right."""
    widths = [max(len(r[i]) for r in [columns, *rows]) for i in range(len(columns))]
    print(f"\n{title}")
    for row in [columns, ["-" * w for w in widths], *rows]:
        first = row[0].ljust(widths[0])
        print("  ".join([first, *(x.rjust(w) for x, w in zip(row[1:], widths[1:]))]))


def print_json(result: dict[str, Any]) -> None:
    """Print the result as one JSON line, which must be the last."""
    print()
    print(json.dumps(result), flush=True)
