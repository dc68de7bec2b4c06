"""What a cache costs in a run: the peak of allocated memory and the time of a decode step."""

from __future__ import annotations

import gc
import os
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from kvmmu.evals.answers import Tick, read_context
from kvmmu.evals.settings import Setting
from kvmmu.evals.streams import Stream

__all__ = ["Taken", "decode_rates", "peak_nbytes", "quiet_pairs", "step_times"]

_MEMORY = "[memory]"
"""The name of an allocation or release in torch's profile."""
_MOST_APART = 0.2
"""Share of its wall time by which a quiet round's CPU time may differ from it."""


@torch.inference_mode()
def peak_nbytes(model: Any, stream: Stream, setting: Setting, *, num_steps: int = 2) -> int:
    """Return the most bytes that tensors held beside the model, from no cache to a few steps.

    Every allocation and release of torch's CPU allocator is counted (torch.profiler), those
    inside operators included; the process's own figure would depend on what ran before it.
    """
    gc.collect()  # or an earlier run's cache, released late, would be counted as given back
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it announces itself on stderr
    B, first = stream.ids.shape[0], stream.num_context
    with ExitStack() as stack:
        stack.enter_context(setting.enabled(model))
        profile = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        )
        stack.enter_context(profile)
        cache = setting.make(model, batch_size=B, num_tokens=stream.num_tokens)
        chunk = setting.call_size(stream.num_tokens)
        read_context(model, cache, stream.ids[:, :first], chunk=chunk)
        for t in range(first, first + num_steps):
            model(stream.ids[:, t : t + 1], past_key_values=cache, use_cache=True)
    held = most = 0
    results: Any = profile.profiler
    events = [e for e in results.kineto_results.events() if e.name() == _MEMORY]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@dataclass(frozen=True)
class Taken:
    """What some decode steps took: wall time, and the thread's CPU time, None on a GPU."""

    wall_s: float
    cpu_s: float | None = None

    @property
    def is_quiet(self) -> bool:
        """Tell whether nothing else took the CPU meanwhile."""
        return self.cpu_s is None or abs(self.wall_s - self.cpu_s) <= _MOST_APART * self.wall_s


def step_times(
    model: Any,
    stream: Stream,
    settings: tuple[Setting, ...],
    *,
    num_rounds: int = 7,
    num_steps: int = 6,
    max_passes: int = 3,
    tick: Tick | None = None,
) -> list[list[Taken]]:
    """Time num_steps decode steps, num_rounds times. Returns each setting's rounds.

    The settings take turns, after their context and a warm-up round. As long as one of them has
    fewer than num_rounds quiet rounds in which the first setting's were quiet too, all are run
    again with new caches, max_passes times at most.
    """
    room = stream.num_tokens - stream.num_context
    if (num_rounds + 1) * num_steps > room:
        raise ValueError(
            f"the stream must hold {(num_rounds + 1) * num_steps} tokens after its context, got "
            f"{room}"
        )
    times: list[list[Taken]] = [[] for _ in settings]
    for _ in range(max_passes):
        made = _time(model, stream, settings, num_rounds, num_steps, tick)
        for taken, more in zip(times, made, strict=True):
            taken += more
        if all(len(quiet_pairs(times[0], taken)) >= num_rounds for taken in times):
            break
    return times


def quiet_pairs(one: list[Taken], two: list[Taken]) -> list[tuple[float, float]]:
    """Return the wall times in s of the rounds that were quiet for both settings."""
    pairs = zip(one, two, strict=True)
    return [(a.wall_s, b.wall_s) for a, b in pairs if a.is_quiet and b.is_quiet]


@torch.inference_mode()
def _time(
    model: Any,
    stream: Stream,
    settings: tuple[Setting, ...],
    num_rounds: int,
    num_steps: int,
    tick: Tick | None,
) -> list[list[Taken]]:
    """Run every setting's context, a warm-up round and num_rounds rounds."""
    B, first = stream.ids.shape[0], stream.num_context
    caches = []
    for setting in settings:
        cache = setting.make(model, batch_size=B, num_tokens=stream.num_tokens)
        chunk = setting.call_size(stream.num_tokens)
        with setting.enabled(model):
            read_context(model, cache, stream.ids[:, :first], chunk=chunk, tick=tick)
        caches.append(cache)
    times: list[list[Taken]] = [[] for _ in settings]
    for n in range(num_rounds + 1):
        begin = first + n * num_steps
        for setting, cache, taken in zip(settings, caches, times, strict=True):
            with setting.enabled(model):
                before = _clocks(model.device)
                for t in range(begin, begin + num_steps):
                    model(stream.ids[:, t : t + 1], past_key_values=cache, use_cache=True)
                taken.append(_since(before, _clocks(model.device)))
            if tick:
                tick(num_steps)
    return [taken[1:] for taken in times]


def _clocks(device: torch.device) -> Taken:
    """Read the wall clock and this thread's, the wall clock alone where a GPU works."""
    if device.type == "cpu":
        return Taken(time.perf_counter(), time.thread_time())
    torch.accelerator.synchronize(device)
    return Taken(time.perf_counter())


def _since(before: Taken, now: Taken) -> Taken:
    cpu_s = None if before.cpu_s is None or now.cpu_s is None else now.cpu_s - before.cpu_s
    return Taken(now.wall_s - before.wall_s, cpu_s)


def decode_rates(
    model: Any,
    stream: Stream,
    settings: tuple[Setting, ...],
    *,
    num_rounds: int = 7,
    num_steps: int = 6,
    tick: Tick | None = None,
) -> list[float]:
    """Return each setting's tokens per second of all rows, the median of step_times' rounds.

    They are the quiet rounds, or all of them where none was quiet.
    """
    times = step_times(
        model, stream, settings, num_rounds=num_rounds, num_steps=num_steps, max_passes=1, tick=tick
    )
    rates = []
    for taken in times:
        rounds = [t for t in taken if t.is_quiet] or taken
        middle = statistics.median(t.wall_s for t in rounds)
        rates.append(stream.ids.shape[0] * num_steps / middle)
    return rates
