"""kvmmu.enabled: only the model named, only SlotCaches, only inside; all as it was on exit."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from tiny_models import full, generate, make, ours, prompt, shared
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

from kvmmu import SlotCache, enabled


def _hooks(model: PreTrainedModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def _logits(model: PreTrainedModel, ids: Tensor, **call: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(ids, **call).logits
    return logits


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["none", "dynamic", "static"])
@pytest.mark.parametrize("name", ["llama", "qwen2_window"])
def test_other_caches_run_the_original_attention(name: str, kind: str, implementation: str) -> None:
    model = make(name)
    model.set_attn_implementation(implementation)
    ids, mask = prompt()

    def run() -> Any:
        cache: Any = None
        if kind == "dynamic":
            cache = DynamicCache(config=model.config)
        elif kind == "static":
            cache = StaticCache(config=model.config, max_cache_len=64)
        use_cache = kind != "none"
        return generate(
            model,
            ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=use_cache,
            max_new_tokens=8,
        )

    outside = run()
    with enabled(model):
        generate(model, ids, attention_mask=mask, past_key_values=SlotCache(12), max_new_tokens=4)
        inside = run()
    assert torch.equal(inside.sequences, outside.sequences)
    for a, b in zip(inside.logits, outside.logits):
        assert torch.equal(a, b)


def test_attention_weights_of_other_caches_still_come() -> None:
    model = shared("llama")
    ids, _ = prompt(8, pads=(0,))
    with enabled(model), torch.no_grad():
        weights = model(ids, output_attentions=True).attentions
    assert [w.shape for w in weights] == [(1, 4, 8, 8)] * 2


def test_gradients_still_flow_without_a_slot_cache() -> None:
    model = make("llama")
    with enabled(model):
        model(prompt(8, pads=(0,))[0]).logits.sum().backward()
    assert model.lm_head.weight.grad is not None


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_model_is_as_it_was_on_exit(implementation: str) -> None:
    model = make("llama")
    model.set_attn_implementation(implementation)
    ids, mask = prompt()
    hooks, before = _hooks(model), _logits(model, ids, attention_mask=mask)
    with enabled(model) as same:
        assert same is model
        assert model.config._attn_implementation == f"kvmmu_{implementation}"
        generate(model, ids, attention_mask=mask, past_key_values=SlotCache(12), max_new_tokens=4)
    assert model.config._attn_implementation == implementation
    assert _hooks(model) == hooks
    assert torch.equal(_logits(model, ids, attention_mask=mask), before)


def test_nested_uses_end_with_the_outermost() -> None:
    model = make("llama")
    ids, _ = prompt(20, pads=(0,))
    hooks = _hooks(model)
    with enabled(model):
        with enabled(model):
            inner = generate(model, ids, past_key_values=SlotCache(12), max_new_tokens=4)
        outer = generate(model, ids, past_key_values=SlotCache(12), max_new_tokens=4)
    assert torch.equal(inner.sequences, outer.sequences)
    assert model.config._attn_implementation == "eager"
    assert _hooks(model) == hooks


def test_the_model_is_restored_after_an_exception() -> None:
    model = make("llama")
    hooks = _hooks(model)
    with pytest.raises(RuntimeError, match="out of luck"), enabled(model):
        raise RuntimeError("out of luck")
    ids, mask = prompt(8, pads=(0, 3))
    with pytest.raises(ValueError, match="attention_mask"), enabled(model), torch.no_grad():
        model(ids, attention_mask=mask.flip(1), past_key_values=SlotCache(12))
    assert model.config._attn_implementation == "eager"
    assert _hooks(model) == hooks
    ours(model, SlotCache(12), prompt(8, pads=(0,))[0], max_new_tokens=2)


def test_one_use_can_be_entered_again() -> None:
    model, ids = make("llama"), prompt(20, pads=(0,))[0]
    use = enabled(model)
    for _ in range(2):
        with use:
            generate(model, ids, past_key_values=SlotCache(12), max_new_tokens=2)
        assert model.config._attn_implementation == "eager"


def test_a_refused_call_changes_nothing() -> None:
    """Wrong masks, positions and batches are refused before anything is written."""
    model = shared("llama")
    ids, mask = prompt(8, pads=(0, 3))
    longer = torch.cat([mask, torch.ones(2, 1, dtype=mask.dtype)], dim=1)
    cache, twin = SlotCache(16), SlotCache(16)
    with enabled(model), torch.no_grad():
        for one in (cache, twin):
            model(ids, attention_mask=mask, past_key_values=one)
        wrong: list[dict[str, Any]] = [
            {"attention_mask": longer.flip(1)},
            {"attention_mask": longer[:, 1:]},
            {"attention_mask": longer, "position_ids": torch.tensor([[3], [3]])},
            {"input_ids": torch.full((3, 1), 5)},
        ]
        for call in wrong:
            with pytest.raises(ValueError, match="must"):
                model(**({"input_ids": ids[:, :1], "past_key_values": cache} | call))
        for one in (cache, twin):
            model(ids[:, :1], attention_mask=longer, past_key_values=one)
    for name, tensor in cache.named_tensors().items():
        assert torch.equal(tensor, twin.named_tensors()[name]), name


@pytest.mark.parametrize("names", [("llama", "gpt2"), ("gemma2", "gpt_oss"), ("llama", "llama")])
def test_two_models_in_one_process_do_not_mix(names: tuple[str, str]) -> None:
    """Their forwards are interleaved token by token, eager beside sdpa where both can."""
    models = [make(name, seed=i) for i, name in enumerate(names)]
    if names == ("llama", "gpt2"):
        models[0].set_attn_implementation("sdpa")
    ids = [prompt(24, pads=(0, 0), seed=i)[0] for i in range(2)]
    alone = []
    for model, x in zip(models, ids):
        cache = SlotCache(12)
        with enabled(model):
            steps = [_logits(model, x[:, :10], past_key_values=cache)]
            steps += [_logits(model, x[:, i : i + 1], past_key_values=cache) for i in range(10, 24)]
        alone.append((cache, steps))
    caches: list[SlotCache] = [SlotCache(12), SlotCache(12)]
    mixed: list[list[Tensor]] = [[], []]
    with enabled(models[0]), enabled(models[1]):
        for a, b in [(0, 10), *((i, i + 1) for i in range(10, 24))]:
            for i in range(2):
                mixed[i].append(_logits(models[i], ids[i][:, a:b], past_key_values=caches[i]))
    for i, (cache, steps) in enumerate(alone):
        for want, got in zip(steps, mixed[i]):
            assert torch.equal(want, got)
        for name, tensor in cache.named_tensors().items():
            assert torch.equal(tensor, caches[i].named_tensors()[name])


def test_two_caches_on_one_model_do_not_mix() -> None:
    model = shared("llama")
    ids = [prompt(20, pads=(0,), seed=i)[0] for i in range(2)]
    alone = [ours(model, SlotCache(12), x, max_new_tokens=6).sequences for x in ids]
    caches = [SlotCache(12), SlotCache(12)]
    for cache, x, want in zip(caches, ids, alone):
        got = ours(model, cache, x, max_new_tokens=3).sequences
        assert torch.equal(got, want[:, :23])
    for cache, want in zip(caches, alone):
        got = ours(model, cache, want[:, :23], max_new_tokens=3).sequences
        assert torch.equal(got, want)


def test_two_threads_do_not_mix() -> None:
    models = [make("llama", seed=i) for i in range(2)]
    ids = [prompt(20, pads=(0,), seed=i)[0] for i in range(2)]
    alone = [ours(m, SlotCache(12), x, max_new_tokens=20).sequences for m, x in zip(models, ids)]
    found: dict[int, Tensor] = {}

    def run(i: int) -> None:
        found[i] = ours(models[i], SlotCache(12), ids[i], max_new_tokens=20).sequences

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        assert torch.equal(found[i], alone[i])


def test_sdpa_models_equal_their_eager_selves() -> None:
    model = make("llama")
    ids, mask = prompt()
    want = full(model, ids, attention_mask=mask)
    model.set_attn_implementation("sdpa")
    got = ours(model, SlotCache(80), ids, attention_mask=mask)
    assert torch.equal(got.sequences, want.sequences)


def test_a_bare_decoder_is_enabled_too() -> None:
    model = make("llama").model
    ids, _ = prompt(20, pads=(0,))
    cache = SlotCache(12)
    with enabled(model), torch.no_grad():
        model(ids, past_key_values=cache)
    assert cache.get_seq_length() == 20


def test_a_call_by_position_is_understood() -> None:
    model = shared("llama")
    ids, mask = prompt(20, pads=(0, 4))
    a, b = SlotCache(12), SlotCache(12)
    with enabled(model), torch.no_grad():
        model.model(ids, mask, None, a)
        model.model(input_ids=ids, attention_mask=mask, past_key_values=b)
    assert torch.equal(a.positions(1), b.positions(1))


def test_one_object_may_be_entered_twice() -> None:
    model = make("llama")
    before = model.config._attn_implementation
    ids, _ = prompt(8, pads=(0,))
    both = enabled(model)
    with both:
        with both:
            pass
        with torch.no_grad():
            model(ids, past_key_values=SlotCache(16))
    assert model.config._attn_implementation == before


def test_the_last_to_leave_restores_the_model_whatever_the_order() -> None:
    model = make("llama")
    before = model.config._attn_implementation
    ids, _ = prompt(8, pads=(0,))
    first, second = enabled(model), enabled(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    with torch.no_grad():
        model(ids, past_key_values=SlotCache(16))
    second.__exit__(None, None, None)
    assert model.config._attn_implementation == before
    assert not model._forward_pre_hooks
    assert not model.model._forward_pre_hooks


def test_models_that_share_a_configuration_can_both_be_enabled() -> None:
    one = make("llama")
    two, before = type(one)(one.config).eval(), one.config._attn_implementation
    ids, _ = prompt(8, pads=(0,))
    with enabled(one), enabled(two), torch.no_grad():
        one(ids, past_key_values=SlotCache(16))
        two(ids, past_key_values=SlotCache(16))
    assert one.config._attn_implementation == before
