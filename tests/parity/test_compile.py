"""torch.compile(fullgraph=True) of the decode step: same slots, same logits, one graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny_models import VOCAB, make, prompt
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import PreTrainedModel

import kvmmu

PREFILL, STEPS = 20, 12


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _check(
    model: PreTrainedModel,
    compiled: Callable[..., Any],
    cache: kvmmu.SlotCache,
    *,
    pads: tuple[int, ...] = (0, 0),
    atol: float = 1e-5,
) -> None:
    """Decode in parallel, compiled and not. `pads` pad the prompt on the left."""
    twin = copy.deepcopy(cache)
    ids, mask = prompt(PREFILL + STEPS, pads=pads)
    assert bool((ids < VOCAB).all())
    with kvmmu.enabled(model), torch.no_grad():
        for one in (cache, twin):
            model(ids[:, :PREFILL], attention_mask=mask[:, :PREFILL], past_key_values=one)
        for i in range(PREFILL, PREFILL + STEPS):
            want = model(ids[:, i : i + 1], past_key_values=twin).logits
            got = compiled(ids[:, i : i + 1], past_key_values=cache).logits
            assert torch.allclose(got, want, atol=atol)
    for name, tensor in cache.named_tensors().items():
        other = twin.named_tensors()[name]
        if tensor.is_floating_point():
            assert torch.allclose(tensor, other, atol=atol), name
        else:
            assert torch.equal(tensor, other), name
    cache.check_integrity()


def _compiled(model: PreTrainedModel, what: str, backend: Any) -> Callable[..., Any]:
    target = model.forward if what == "model.forward" else model
    return torch.compile(target, fullgraph=True, backend=backend)


@pytest.mark.parametrize("what", ["model", "model.forward"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_decode_gives_the_same_slots_in_one_graph(what: str, backend: str) -> None:
    model = make("llama")
    counter = CompileCounterWithBackend(backend)
    cache = kvmmu.SlotCache.for_model(model, 16, num_sinks=2, batch_size=2)
    _check(model, _compiled(model, what, counter), cache, pads=(0, 6))
    assert counter.frame_count == 1


@pytest.mark.parametrize("policy", kvmmu.list_policies())
def test_every_policy_compiles_whole(policy: str) -> None:
    model = make("llama", num_hidden_layers=1)
    counter = CompileCounterWithBackend("eager")
    cache = kvmmu.SlotCache.for_model(model, 16, num_sinks=2, batch_size=2, policy=policy)
    _check(model, _compiled(model, "model.forward", counter), cache)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {"positions": "in_cache"}),
        ("llama", {"granularity": "layer"}),
        ("gemma2", {}),
        ("gpt_oss", {}),
        ("gpt2", {}),
    ],
    ids=["in_cache", "per layer", "gemma2", "gpt_oss", "gpt2"],
)
def test_every_mode_compiles_whole(name: str, settings: dict[str, Any]) -> None:
    model = make(name)
    counter = CompileCounterWithBackend("eager")
    cache = kvmmu.SlotCache.for_model(model, 16, num_sinks=2, batch_size=2, **settings)
    _check(model, _compiled(model, "model.forward", counter), cache)
    assert counter.frame_count == 1


def test_a_growing_mask_costs_one_more_graph_and_no_more() -> None:
    model = make("llama", num_hidden_layers=1)
    counter = CompileCounterWithBackend("eager")
    compiled = _compiled(model, "model.forward", counter)
    cache = kvmmu.SlotCache.for_model(model, 16, num_sinks=2, batch_size=3)
    twin = copy.deepcopy(cache)
    ids, mask = prompt(PREFILL + STEPS)
    with kvmmu.enabled(model), torch.no_grad():
        for one, run in ((cache, compiled), (twin, model)):
            model(ids[:, :PREFILL], attention_mask=mask[:, :PREFILL], past_key_values=one)
            for i in range(PREFILL, PREFILL + STEPS):
                seen = mask[:, : i + 1].contiguous()  # as generate() makes it
                run(ids[:, i : i + 1], attention_mask=seen, past_key_values=one)
    assert torch.equal(cache.positions(0), twin.positions(0))
    assert counter.frame_count <= 2  # the first length, then any length


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # Inductor's own
@pytest.mark.parametrize("what", ["model", "model.forward"])
def test_inductor_gives_the_same_slots(what: str) -> None:
    model = make("llama")
    cache = kvmmu.SlotCache.for_model(model, 16, num_sinks=2, batch_size=2)
    _check(model, _compiled(model, what, "inductor"), cache, atol=1e-4)
