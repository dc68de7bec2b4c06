"""A recording goes on after a forward that failed part-way: what some layers missed is dropped."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from tiny_models import make

import kvmmu
from kvmmu import RCE, SlotCache, enabled
from kvmmu.hf.record import record
from kvmmu.trace import ChunkEvent, DecodeBlock, LaneEvent


@contextmanager
def failing(model, layer):
    """Let a layer's MLP raise: layers up to it have stepped, later ones have not."""

    def fail(module, args):
        raise RuntimeError("a fault")

    handle = model.model.layers[layer].mlp.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="a fault"):
            yield
    finally:
        handle.remove()


@pytest.mark.parametrize("masses", [False, True])
@pytest.mark.parametrize("num_new", [1, 13])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_trace_is_whole_after_a_forward_that_failed_in_a_layer(tmp_path, layer, num_new, masses):
    model = make("llama", num_hidden_layers=3)
    policy = RCE(normalize="none", fixed_point=True)
    cache = SlotCache.for_model(model, 8, policy=policy, batch_size=1, chunk_size=4)
    ids = torch.arange(3, 40)[None]

    def run(count):
        start = cache.get_seq_length()
        model(ids[:, start : start + count], past_key_values=cache)

    file = tmp_path / "run.trace"
    with enabled(model), record(cache, file, masses=masses), torch.no_grad():
        for count in (6, 1, 1):
            run(count)
        with failing(model, layer):
            run(num_new)
        cache.reset()
        for count in (9, 1, 1, 1):
            run(count)

    trace = kvmmu.trace.read(file)
    trace.verify()
    made = kvmmu.trace.summary(trace)
    assert made.residence_median is not None
    events = list(trace.events())
    reset = next(i for i, e in enumerate(events) if isinstance(e, LaneEvent))
    before, after = events[:reset], events[reset:]
    missed = layer < 2  # after the last layer's step none is ahead
    if missed:
        assert sum(len(e.steps) for e in before if isinstance(e, DecodeBlock)) == 2
    assert sum(len(e.steps) for e in after if isinstance(e, DecodeBlock)) == 4
    reached = [e.step for e in after if isinstance(e, ChunkEvent)]
    assert all(reached.count(step) == 3 for step in reached)


def test_failure_at_the_end_of_a_recording_leaves_a_whole_trace(tmp_path):
    model = make("llama", num_hidden_layers=3)
    cache = SlotCache.for_model(model, 8, batch_size=1)
    file = tmp_path / "run.trace"
    with enabled(model), record(cache, file), torch.no_grad():
        model(torch.tensor([[3, 4, 5]]), past_key_values=cache)
        with failing(model, 1):
            model(torch.tensor([[6]]), past_key_values=cache)
    trace = kvmmu.trace.read(file)
    trace.verify()
    assert kvmmu.trace.summary(trace).num_steps == 0
