"""What a cache costs in a run: the peak of allocated memory and the time of a decode step."""

from __future__ import annotations

import gc
import os
import statistics
import time
from contextlib import ExitStack
from typing import Any

import torch

from kvmmu.evals.answers import Tick, read_context
from kvmmu.evals.settings import Setting
from kvmmu.evals.streams import Stream

__all__ = ["decode_rates", "peak_nbytes", "step_times"]

_MEMORY = "[memory]"
"""The name of an allocation or release in torch's profile."""


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


@torch.inference_mode()
def step_times(
    model: Any,
    stream: Stream,
    settings: tuple[Setting, ...],
    *,
    num_rounds: int = 7,
    num_steps: int = 6,
    tick: Tick | None = None,
) -> list[list[float]]:
    """Time num_steps decode steps, num_rounds times. Returns each setting's wall times in s.

    The settings take turns, after their context and a warm-up round.
    """
    B, first = stream.ids.shape[0], stream.num_context
    if first + (num_rounds + 1) * num_steps > stream.num_tokens:
        raise ValueError(
            f"the stream must hold {(num_rounds + 1) * num_steps} tokens after its context, got "
            f"{stream.num_tokens - first}"
        )
    caches = []
    for setting in settings:
        cache = setting.make(model, batch_size=B, num_tokens=stream.num_tokens)
        chunk = setting.call_size(stream.num_tokens)
        with setting.enabled(model):
            read_context(model, cache, stream.ids[:, :first], chunk=chunk, tick=tick)
        caches.append(cache)
    times: list[list[float]] = [[] for _ in settings]
    for n in range(num_rounds + 1):
        begin = first + n * num_steps
        for setting, cache, taken in zip(settings, caches, times, strict=True):
            with setting.enabled(model):
                start = time.perf_counter()
                for t in range(begin, begin + num_steps):
                    model(stream.ids[:, t : t + 1], past_key_values=cache, use_cache=True)
                taken.append(time.perf_counter() - start)
            if tick:
                tick(num_steps)
    return [taken[1:] for taken in times]


def decode_rates(
    model: Any,
    stream: Stream,
    settings: tuple[Setting, ...],
    *,
    num_rounds: int = 7,
    num_steps: int = 6,
    tick: Tick | None = None,
) -> list[float]:
    """Return each setting's tokens per second of all rows, the median of step_times' rounds."""
    times = step_times(
        model, stream, settings, num_rounds=num_rounds, num_steps=num_steps, tick=tick
    )
    B = stream.ids.shape[0]
    return [B * num_steps / statistics.median(taken) for taken in times]
