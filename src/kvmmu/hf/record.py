"""Record a SlotCache's events to a trace file."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

from kvmmu import __version__, trace
from kvmmu.errors import IntegrityError
from kvmmu.hf.cache import SlotCache
from kvmmu.policies.base import Policy
from kvmmu.policies.rce import RCE
from kvmmu.slots.recorder import Recorder
from kvmmu.trace import TraceHeader, TraceWriter

__all__ = ["masses_nbytes", "record", "trace_header"]


@contextmanager
def record(
    cache: SlotCache,
    path: str | os.PathLike[str],
    *,
    model_name: str | None = None,
    masses: bool = False,
) -> Iterator[Recorder]:
    """Write what `cache` does within the with statement to a trace file.

    The cache must be bound for the batch that will run and hold no token yet; what it did before
    is not in the trace. `masses` adds the attention mass per slot (RCE(fixed_point=True) only);
    `kvmmu.trace.masses_nbytes` says how large that gets. Raises IntegrityError or ValueError.
    """
    if not cache.is_bound or cache.get_seq_length() != 0:
        raise IntegrityError(
            "a SlotCache must be bound and empty when recording begins, got "
            f"{cache.get_seq_length()} columns; use SlotCache.for_model(model, ..., batch_size=B)"
        )
    if cache.recorder is not None:
        raise IntegrityError("a SlotCache can be recorded to one file at a time, got a second")
    header = trace_header(cache, model_name=model_name)
    with TraceWriter(os.fspath(path), header, masses=masses) as writer:
        recorder = Recorder(cache.mmus, writer, masses=masses)
        cache.recorder = recorder
        try:
            yield recorder
            recorder.flush()
        finally:
            cache.recorder = None
            for mmu in cache.mmus:
                mmu.observer = None


def masses_nbytes(cache: SlotCache, num_prompt: int, *, max_new_tokens: int) -> int:
    """Bytes that the masses of one generation take at most, before compression."""
    size = min(num_prompt, cache.options.chunk_size)
    return trace.masses_nbytes(
        cache.geometry,
        max_new_tokens,
        granularity=cache.options.granularity,
        num_chunks=math.ceil(num_prompt / size),
        chunk_size=size,
    )


def trace_header(cache: SlotCache, *, model_name: str | None = None) -> TraceHeader:
    """Describe a bound cache as a trace does."""
    policy: Policy = cache.policy
    shape = cache.shape
    assert shape is not None
    kinds = ["full_attention" if h is None else "sliding_attention" for h in shape.horizons]
    return TraceHeader(
        geometry=cache.geometry,
        policy=policy.name,
        granularity=cache.options.granularity,
        num_sinks=cache.options.num_sinks,
        window=cache.options.window,
        chunk_size=cache.options.chunk_size,
        kvmmu_version=__version__,
        created_by="kvmmu.hf",
        policy_parameters=policy.params(),
        positions=cache.options.positions,
        layer_types=tuple(kinds),
        model=model_name,
        decay_shift=policy.decay_shift if isinstance(policy, RCE) and policy.fixed_point else None,
    )
