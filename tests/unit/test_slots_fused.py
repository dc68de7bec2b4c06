"""Does a library user's decode give the same with a fused kernel?"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_models import make

import kvmmu
from kvmmu import RCE, SlotCache
from kvmmu.kernels import dispatch
from kvmmu.slots import fused as fused_steps

POLICIES = ["rce", RCE(decay=1.0, statistic="mass"), "h2o", "tova", "streaming_llm"]


@pytest.fixture(scope="module")
def model() -> Any:
    return make("llama")


def run(model: Any, kernel: str, *, steps: int = 20, **options: Any) -> tuple[list[Any], Any]:
    """Feed a padded batch, decode, and return logits and the cache."""
    torch.manual_seed(5)
    tokens = torch.randint(3, 90, (3, 24))
    mask = torch.ones_like(tokens)
    mask[1, :5] = mask[2, :17] = 0
    cache = SlotCache.for_model(model, 12, num_sinks=2, window=3, kernel=kernel, **options)
    made = []
    with torch.inference_mode(), kvmmu.enabled(model):
        out = model(tokens, attention_mask=mask, past_key_values=cache)
        for _ in range(steps):
            token = out.logits[:, -1:].argmax(-1)
            mask = torch.cat([mask, torch.ones_like(token)], 1)
            out = model(token, attention_mask=mask, past_key_values=cache)
            made.append(out.logits)
    return made, cache


@pytest.mark.parametrize("granularity", ["head", "layer"])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_fused_decode_is_the_decode(model: Any, policy: Any, granularity: str) -> None:
    calls = count_steps()
    with calls as seen:
        ours, fused = run(model, "native", policy=policy, granularity=granularity)
    assert seen[0] == 20 * model.config.num_hidden_layers
    plain, cache = run(model, "cpu", policy=policy, granularity=granularity)
    for a, b in zip(ours, plain):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    for layer in range(model.config.num_hidden_layers):
        assert torch.equal(fused.positions(layer), cache.positions(layer))
    assert torch.equal(fused.num_evicted, cache.num_evicted)


class count_steps:
    """Count the fused steps within a with statement."""

    def __enter__(self) -> list[int]:
        self.before, seen = fused_steps.fused_decode, [0]

        def counted(*args: Any) -> Any:
            seen[0] += 1
            return self.before(*args)

        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("kvmmu.slots.decode.fused_decode", counted)
        return seen

    def __exit__(self, *error: object) -> None:
        self.patch.undo()


def test_policies_without_a_fused_rule_decode_as_ever(model: Any) -> None:
    with count_steps() as seen:
        ours, _ = run(model, "native", policy="keydiff")
    plain, _ = run(model, "cpu", policy="keydiff")
    assert seen[0] == 0
    for a, b in zip(ours, plain):  # chunks of the prompt are weighed by other kernels
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_a_reset_and_a_copy_are_seen_by_the_next_step(model: Any) -> None:
    first, cache = run(model, "native")
    twin = copy.deepcopy(cache)
    with torch.inference_mode(), kvmmu.enabled(model):
        token = torch.full((3, 1), 7)
        a = model(token, past_key_values=cache).logits
        b = model(token, past_key_values=twin).logits
    assert torch.equal(a, b)
    cache.reset()
    assert int(cache.positions(0).max()) == -1
    again, _ = run(model, "native")
    assert all(torch.equal(a, b) for a, b in zip(first, again))


def test_native_slots_must_lie_on_a_cpu(model: Any) -> None:
    assert dispatch.resolve("native").fused is not None
    meta = copy.deepcopy(model).to("meta")
    with pytest.raises(ValueError, match="device must be cpu with kernel 'native', got 'meta'"):
        SlotCache.for_model(meta, 12, num_sinks=2, window=3, kernel="native")
