"""What cannot be done right is refused in one clear line: the rule, what came, what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny_models import make, ours, prompt, shared
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kvmmu import (
    RCE,
    CapacityError,
    IntegrityError,
    KVMMUError,
    SlotCache,
    UnsupportedModelError,
    enabled,
)


@contextmanager
def _refusal(kind: type[Exception], words: str) -> Iterator[None]:
    """Expect an error of exactly one line that says `words`."""
    with pytest.raises(kind, match=re.escape(words)) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300


def _llama(**changes: Any) -> PreTrainedModel:
    return make("llama", **changes)


# Models -------------------------------------------------------------------------------------------


def _small(kind: str, **settings: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).eval()


def _t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )


_HYBRID: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
MODELS: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "bloom": (
        lambda: _small("bloom", vocab_size=32, hidden_size=16, n_layer=1, n_head=2),
        "model type 'bloom' is not supported: it does not use transformers' attention interface",
    ),
    "falcon": (
        lambda: _small(
            "falcon",
            vocab_size=32,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        ),
        "model type 'falcon' is not supported: it does not use transformers' attention interface",
    ),
    "mpt": (
        lambda: _small("mpt", vocab_size=32, d_model=16, n_layers=1, n_heads=2),
        "model type 'mpt' is not supported: it does not use transformers' attention interface",
    ),
    "deepseek_v3": (
        lambda: _small(
            "deepseek_v3",
            vocab_size=32,
            hidden_size=32,
            intermediate_size=32,
            moe_intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
            kv_lora_rank=16,
            q_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=16,
        ),
        "model type 'deepseek_v3' is not supported: it uses multi-head latent attention (MLA)",
    ),
    "t5": (_t5, "model type 't5' is not supported: it is an encoder-decoder"),
    "qwen3_next": (
        lambda: _small(
            "qwen3_next",
            **_HYBRID,
            num_experts=2,
            num_experts_per_tok=1,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
            linear_num_key_heads=2,
            linear_num_value_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        ),
        "model type 'qwen3_next' is not supported:",
    ),
    "lfm2": (
        lambda: _small("lfm2", **_HYBRID, layer_types=["conv", "full_attention"]),
        "model type 'lfm2' is not supported:",
    ),
    "llama4_text": (
        lambda: _small(
            "llama4_text",
            **_HYBRID,
            intermediate_size_mlp=32,
            num_local_experts=1,
            layer_types=["chunked_attention", "full_attention"],
        ),
        "model type 'llama4_text' is not supported: it has layers of kind 'chunked_attention'",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_that_cannot_be_exact_are_refused_by_name(name: str) -> None:
    build, words = MODELS[name]
    model = build()
    with _refusal(UnsupportedModelError, words):
        enabled(model)
    with _refusal(UnsupportedModelError, words):
        SlotCache.for_model(model, 16)


def test_what_is_not_a_model_is_refused() -> None:
    with _refusal(TypeError, "model must be a transformers PreTrainedModel, got Linear"):
        enabled(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_a_model_spread_over_devices_is_refused() -> None:
    model = _llama()
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.to("meta"))
    with _refusal(UnsupportedModelError, "it is spread over devices (cpu, meta); load it on one"):
        SlotCache.for_model(model, 16)


def test_a_bidirectional_model_is_refused() -> None:
    model = make("gemma3", use_bidirectional_attention=True)
    with _refusal(UnsupportedModelError, "attends in both directions"):
        SlotCache.for_model(model, 16)


def test_other_attention_implementations_are_refused() -> None:
    model = _llama()
    model.config._attn_implementation = "flex_attention"
    with _refusal(UnsupportedModelError, "must be one of 'sdpa', 'eager', got 'flex_attention'"):
        enabled(model).__enter__()


# Attention arguments ------------------------------------------------------------------------------


def _told(model: PreTrainedModel, **more: Any) -> None:
    """Let layer 1 of a model give its attention function further arguments."""
    attention = model.model.layers[1].self_attn
    forward = attention.forward
    attention.forward = lambda *args, **kwargs: forward(*args, **kwargs | more)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("position_bias", torch.zeros(1)),
        ("alibi_slopes", torch.ones(4)),
        ("shiny_new_rule", 0),
        ("cu_seq_lens_q", torch.tensor([0, 3])),
    ],
)
def test_unknown_attention_arguments_are_refused_not_ignored(argument: str, value: Any) -> None:
    model = _llama()
    _told(model, **{argument: value})
    with _refusal(UnsupportedModelError, f"attention argument '{argument}' of LlamaAttention"):
        ours(model, SlotCache(16), prompt(8, pads=(0,))[0])


def test_unknown_attention_arguments_that_are_none_change_nothing() -> None:
    model = _llama()
    _told(model, shiny_new_rule=None)
    ours(model, SlotCache(16), prompt(8, pads=(0,))[0])


def test_a_sliding_window_that_the_configuration_does_not_name_is_refused() -> None:
    model = _llama()
    _told(model, sliding_window=8)
    with _refusal(
        UnsupportedModelError,
        "sliding_window of layer 1 must be what the configuration says (None), got 8",
    ):
        ours(model, SlotCache(16), prompt(8, pads=(0,))[0])


def test_attention_that_is_not_causal_is_refused() -> None:
    model = _llama()
    _told(model, is_causal=False)
    with _refusal(UnsupportedModelError, "is_causal must not be False"):
        ours(model, SlotCache(16), prompt(8, pads=(0,))[0])


@pytest.mark.parametrize("which", ["keys", "values"])
def test_keys_and_values_that_are_not_the_layer_s_own_are_refused(which: str) -> None:
    """A module that changes its keys after it has given them to the cache."""
    model = _llama()
    with enabled(model) as ready:
        name = ready.config._attn_implementation
        given = ALL_ATTENTION_FUNCTIONS[name]

        def changing(module: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
            k, v = (k * 1.0, v) if which == "keys" else (k, v * 1.0)
            return given(module, q, k, v, *args, **kwargs)

        ALL_ATTENTION_FUNCTIONS[name] = changing
        try:
            with _refusal(
                UnsupportedModelError, "layer 0 must attend to the keys that it has just given"
            ):
                model.generate(
                    prompt(8, pads=(0,))[0], past_key_values=SlotCache(16), max_new_tokens=2
                )
        finally:
            ALL_ATTENTION_FUNCTIONS[name] = given


def test_a_layer_that_attends_to_another_layer_s_keys_is_refused() -> None:
    model = _llama()
    model.model.layers[1].self_attn.layer_idx = 0
    layer = model.model.layers[1].self_attn
    with (
        enabled(model),
        _refusal(
            UnsupportedModelError,
            "layer 7 must attend to the keys that it has just given",
        ),
    ):
        cache = SlotCache(16)
        update = cache.update

        def other(k: Any, v: Any, layer_idx: int, *args: Any) -> Any:
            made = update(k, v, layer_idx)
            layer.layer_idx = 7
            return made

        cache.update = other  # type: ignore[method-assign]
        model.model.layers[0].self_attn = layer
        model.generate(prompt(8, pads=(0,))[0], past_key_values=cache, max_new_tokens=2)


def test_dropout_in_training_mode_is_refused() -> None:
    model = _llama(attention_dropout=0.1).train()
    with enabled(model), torch.no_grad(), _refusal(UnsupportedModelError, "call model.eval()"):
        model(prompt(8, pads=(0,))[0], past_key_values=SlotCache(16))


def test_gradients_are_refused() -> None:
    model = _llama()
    with enabled(model), _refusal(UnsupportedModelError, "run the model under torch.no_grad()"):
        model(prompt(8, pads=(0,))[0], past_key_values=SlotCache(16))


def test_attention_weights_are_refused() -> None:
    model = _llama()
    with (
        enabled(model),
        torch.no_grad(),
        _refusal(UnsupportedModelError, "output_attentions must be off with a SlotCache, got True"),
    ):
        model(prompt(8, pads=(0,))[0], past_key_values=SlotCache(16), output_attentions=True)


def test_attention_weights_asked_for_in_the_configuration_are_refused() -> None:
    model = _llama()
    model.config.output_attentions = True
    with (
        enabled(model),
        torch.no_grad(),
        _refusal(UnsupportedModelError, "output_attentions must be off with a SlotCache, got True"),
    ):
        model(prompt(8, pads=(0,))[0], past_key_values=SlotCache(16))


# Where a cache is used ----------------------------------------------------------------------------


@pytest.mark.parametrize("is_bound", [True, False])
def test_a_cache_outside_enabled_is_refused(is_bound: bool) -> None:
    model = _llama()
    cache = SlotCache.for_model(model, 16) if is_bound else SlotCache(16)
    words = "a SlotCache must be used inside `with kvmmu.enabled(model):`"
    ids = prompt(8, pads=(0,))[0]
    with torch.no_grad(), _refusal(IntegrityError, words):
        model(ids, past_key_values=cache)
    with _refusal(IntegrityError, words):
        model.generate(ids, past_key_values=cache, max_new_tokens=2)
    with enabled(model):
        model.generate(ids, past_key_values=SlotCache(16), max_new_tokens=2)
    with torch.no_grad(), _refusal(IntegrityError, words):
        model(ids, past_key_values=cache)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_cache_on_a_model_that_is_not_enabled_is_refused(num_layers: int) -> None:
    a, b = (_llama(num_hidden_layers=num_layers) for _ in range(2))
    ids, cache = prompt(8, pads=(0,))[0], SlotCache(16)
    words = "a SlotCache must be used inside `with kvmmu.enabled(model):`"
    with enabled(a), torch.no_grad():
        with _refusal(IntegrityError, words):
            b(ids, past_key_values=cache)
        a(ids, past_key_values=cache)
        with _refusal(IntegrityError, words):
            b(ids[:, :1], past_key_values=cache)


def test_a_cache_on_another_model_is_refused_after_a_failure_too() -> None:
    """A forward that failed leaves nothing behind that lets another model's forward pass."""
    a, b = (_llama(num_hidden_layers=1) for _ in range(2))
    ids, cache = prompt(8, pads=(0,))[0], SlotCache(16)

    def fail(*args: Any) -> None:
        raise RuntimeError("out of luck")

    with enabled(a), torch.no_grad():
        handle = a.model.norm.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="out of luck"):
            a(ids, past_key_values=cache)
        handle.remove()
        with pytest.raises(KVMMUError):
            b(ids, past_key_values=cache)


def test_a_cache_of_another_shape_of_model_is_refused() -> None:
    a, b = _llama(), _llama(num_key_value_heads=4)
    ids, cache = prompt(8, pads=(0,))[0], SlotCache(16)
    ours(a, cache, ids, max_new_tokens=2)
    with enabled(b), torch.no_grad(), pytest.raises(KVMMUError, match="keys of layer 0 must be"):
        b(ids, past_key_values=cache)


def test_a_forward_that_failed_part_way_spoils_its_cache_until_reset() -> None:
    model = _llama()
    ids, cache = prompt(8, pads=(0,))[0], SlotCache(16)

    def fail(*args: Any) -> None:
        raise RuntimeError("out of luck")

    with enabled(model), torch.no_grad():
        handle = model.model.layers[1].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of luck"):
            model(ids, past_key_values=cache)
        handle.remove()
        with _refusal(IntegrityError, "got one that failed part-way; call cache.reset()"):
            model(ids, past_key_values=cache)
        with pytest.raises(IntegrityError, match="between two forwards"):
            cache.save("never-written.safetensors")
        cache.reset()
        model(ids, past_key_values=cache)
    assert cache.get_seq_length() == 8


def test_an_unbound_cache_has_nothing_to_read() -> None:
    with _refusal(IntegrityError, "a SlotCache must be bound before it is read, got an unbound"):
        SlotCache(16).positions(0)


# Masks and positions ------------------------------------------------------------------------------


def _mask_refused(mask: Any, words: str) -> None:
    model = shared("llama")
    ids, _ = prompt(8, pads=(0, 0))
    with enabled(model), torch.no_grad(), _refusal(ValueError, words):
        model(ids, attention_mask=torch.tensor(mask), past_key_values=SlotCache(16))


def test_padding_on_the_right_is_refused() -> None:
    _mask_refused([[1] * 8, [1] * 6 + [0] * 2], "set tokenizer.padding_side = 'left'")


def test_holes_are_refused() -> None:
    _mask_refused([[1] * 8, [0, 1, 1, 0, 1, 1, 1, 1]], "must have padding on the left only")


def test_a_mask_of_another_length_is_refused() -> None:
    _mask_refused([[1] * 7] * 2, "attention_mask must cover all columns so far, [2, 8], got [2, 7]")


def test_a_mask_of_four_dimensions_is_refused() -> None:
    _mask_refused([[[[1] * 8] * 8]] * 2, "must be None or [batch, columns], got [2, 1, 8, 8]")


def test_a_hole_in_a_later_call_is_refused() -> None:
    model = shared("llama")
    ids, _ = prompt(8, pads=(0, 0))
    cache, late = SlotCache(16), torch.ones(2, 9, dtype=torch.long)
    late[1, 8] = 0
    with enabled(model), torch.no_grad():
        model(ids, past_key_values=cache, attention_mask=torch.ones(2, 8, dtype=torch.long))
        with _refusal(ValueError, "must have padding on the left only"):
            model(ids[:, :1], past_key_values=cache, attention_mask=late)


@pytest.mark.parametrize("first_has_mask", [True, False])
def test_a_mask_that_changes_the_past_is_refused(first_has_mask: bool) -> None:
    model = shared("llama")
    ids, _ = prompt(8, pads=(0, 0))
    cache, mask = SlotCache(16), torch.ones(2, 8, dtype=torch.long)
    changed = torch.ones(2, 9, dtype=torch.long)
    changed[1, :3] = 0
    with enabled(model), torch.no_grad():
        model(ids, past_key_values=cache, attention_mask=mask if first_has_mask else None)
        with _refusal(ValueError, "attention_mask must repeat what it said of earlier columns"):
            model(ids[:, :1], past_key_values=cache, attention_mask=changed)


def test_a_mask_that_moves_the_past_s_padding_is_refused() -> None:
    """The same number of real tokens, but at other columns."""
    model = shared("llama")
    ids, mask = prompt(8, pads=(0, 3))
    cache, changed = SlotCache(16), torch.ones(2, 9, dtype=torch.long)
    changed[1] = torch.tensor([1, 1, 1, 1, 1, 0, 0, 0, 1])
    with enabled(model), torch.no_grad():
        model(ids, past_key_values=cache, attention_mask=mask)
        with _refusal(ValueError, "attention_mask must repeat what it said of earlier columns"):
            model(ids[:, :1], past_key_values=cache, attention_mask=changed)


def test_a_mask_after_calls_without_one_is_accepted_when_it_agrees() -> None:
    model = shared("llama")
    ids, _ = prompt(8, pads=(0, 0))
    cache = SlotCache(16)
    with enabled(model), torch.no_grad():
        model(ids, past_key_values=cache)
        model(ids[:, :1], past_key_values=cache)
        model(
            ids[:, :1],
            past_key_values=cache,
            attention_mask=torch.ones(2, 10, dtype=torch.long),
        )
    assert cache.mmus[0].table.num_seen.tolist() == [10, 10]


@pytest.mark.parametrize("place", [7, 9, 0, 100])
def test_positions_that_do_not_continue_are_refused(place: int) -> None:
    model = shared("llama")
    ids, cache = prompt(8, pads=(0,))[0], SlotCache(16)
    with enabled(model), torch.no_grad():
        model(ids, past_key_values=cache)
        words = f"position_ids must continue row 0 at 8, got {place}"
        with _refusal(ValueError, words):
            model(ids[:, :1], past_key_values=cache, position_ids=torch.tensor([[place]]))


@pytest.mark.parametrize("start", [1, 5])
def test_positions_of_a_prompt_that_do_not_start_at_0_are_refused(start: int) -> None:
    model = shared("llama")
    ids = prompt(8, pads=(0,))[0]
    with enabled(model), torch.no_grad(), _refusal(ValueError, "position_ids must continue row 0"):
        places = torch.arange(start, start + 8)[None]
        model(ids, past_key_values=SlotCache(16), position_ids=places)


def test_positions_with_a_jump_are_refused() -> None:
    model = shared("llama")
    ids = prompt(8, pads=(0,))[0]
    places = torch.tensor([[0, 1, 2, 3, 3, 4, 5, 6]])
    with enabled(model), torch.no_grad(), _refusal(ValueError, "position_ids must continue row 0"):
        model(ids, past_key_values=SlotCache(16), position_ids=places)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama", "trained 32 positions, got 33; use positions='in_cache', or allow_extrapolation"),
        ("gpt2", "trained 32 positions, got 33; shorten the text"),
    ],
)
def test_a_text_past_the_trained_length_is_refused(name: str, words: str) -> None:
    model = make(name, max_position_embeddings=32)
    ids = prompt(30, pads=(0,))[0]
    ours(model, SlotCache(16), ids, max_new_tokens=3)  # feeds 32 tokens: the last is never fed
    with _refusal(CapacityError, words):
        ours(model, SlotCache(16), ids, max_new_tokens=4)


def test_extrapolation_must_be_asked_for() -> None:
    model = make("llama", max_position_embeddings=32)
    cache = SlotCache(16, allow_extrapolation=True)
    ours(model, cache, prompt(30, pads=(0,))[0], max_new_tokens=10)
    assert cache.get_seq_length() == 39


# What must not change -----------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3])
def test_a_batch_that_changes_its_size_is_refused(rows: int) -> None:
    model = shared("llama")
    ids, cache = prompt(8, pads=(0, 0))[0], SlotCache(16)
    with enabled(model), torch.no_grad():
        model(ids, past_key_values=cache)
        with _refusal(ValueError, f"batch size must stay 2, got {rows}; make a new cache, or use"):
            model(torch.full((rows, 1), 5), past_key_values=cache)


def test_a_batch_other_than_the_one_asked_for_is_refused() -> None:
    cache = SlotCache.for_model(shared("llama"), 16, batch_size=2)
    with (
        enabled(shared("llama")),
        torch.no_grad(),
        _refusal(ValueError, "batch size must stay 2, got 3"),
    ):
        shared("llama")(torch.full((3, 4), 5), past_key_values=cache)


def test_a_dtype_that_changes_is_refused() -> None:
    model = _llama()
    ids, cache = prompt(8, pads=(0,))[0], SlotCache.for_model(model, 16)
    model.to(torch.bfloat16)
    with (
        enabled(model),
        torch.no_grad(),
        _refusal(ValueError, "dtype must stay torch.float32, got torch.bfloat16; make a new cache"),
    ):
        model(ids, past_key_values=cache)


def test_a_device_that_changes_is_refused() -> None:
    model = _llama()
    cache = SlotCache.for_model(model, 16)
    model.to("meta")
    with (
        enabled(model),
        torch.no_grad(),
        _refusal(ValueError, "device must stay cpu, got meta; make a new cache"),
    ):
        model(torch.full((1, 4), 5, device="meta"), past_key_values=cache)


# Crop ---------------------------------------------------------------------------------------------


def test_crop_is_refused() -> None:
    cache = SlotCache.for_model(shared("llama"), 16)
    with _refusal(IntegrityError, "a SlotCache cannot be cropped"):
        cache.crop(-1)
    assert not cache.is_croppable


@pytest.mark.parametrize("how", ["assistant_model", "prompt_lookup_num_tokens"])
def test_assisted_decoding_is_refused(how: str) -> None:
    model = _llama()
    ids, _ = prompt(24, pads=(0,))
    with enabled(model), pytest.raises(KVMMUError, match="assisted decoding") as caught:
        model.generate(
            ids,
            past_key_values=SlotCache(16),
            max_new_tokens=8,
            do_sample=False,
            **{how: _llama(seed=1) if how == "assistant_model" else 3},
        )
    assert "\n" not in str(caught.value)


# Arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"num_slots": 12, "num_sinks": 6, "window": 6},
            "num_slots must exceed num_sinks + window = 12, got 12; raise num_slots or lower",
        ),
        ({"num_slots": 5}, "num_slots must exceed num_sinks + window = 5, got 5"),
        ({"num_slots": 0}, "num_slots must be an integer of at least 1, got 0"),
        ({"num_slots": 16.0}, "num_slots must be an integer of at least 1, got 16.0"),
        ({"num_slots": 16, "num_sinks": -1}, "num_sinks must be an integer of at least 0, got -1"),
        ({"num_slots": 16, "window": True}, "window must be an integer of at least 0, got True"),
        ({"num_slots": 16, "chunk_size": 0}, "chunk_size must be an integer of at least 1, got 0"),
        ({}, "exactly one of num_slots and max_bytes must be given"),
        ({"num_slots": 16, "max_bytes": 4096}, "exactly one of num_slots and max_bytes must be"),
        ({"num_slots": 16, "granularity": "page"}, "granularity must be one of 'head', 'layer'"),
        ({"num_slots": 16, "positions": "none"}, "positions must be one of 'original', 'in_cache'"),
        ({"num_slots": 16, "policy": "rec"}, "unknown policy 'rec'; did you mean 'rce'? (known: "),
        ({"num_slots": 16, "budget": "unform"}, "unknown budget 'unform'; did you mean 'uniform'?"),
        ({"num_slots": 16, "codec": "plane"}, "unknown codec 'plane'; did you mean 'plain'?"),
        ({"num_slots": 16, "merger": "mean"}, "merger must be None"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_hold_are_refused(settings: dict[str, Any], words: str) -> None:
    with _refusal(ValueError, words):
        SlotCache(**settings)


def test_the_smallest_cache_with_defaults_has_6_slots() -> None:
    assert SlotCache(6).num_slots == 6


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel"):
        SlotCache(16, kernel="gpu9000")


def test_a_policy_must_be_a_policy() -> None:
    with pytest.raises(TypeError, match="policy must be a name or a registered Policy, got 3"):
        SlotCache(16, policy=3)  # type: ignore[arg-type]


def test_max_bytes_too_small_for_a_slot_is_refused() -> None:
    with _refusal(CapacityError, "max_bytes must hold one slot of 512 bytes in each of 1 rows"):
        SlotCache.for_model(shared("llama"), max_bytes=511)


def test_max_bytes_too_small_for_sinks_and_window_is_refused() -> None:
    with _refusal(ValueError, "num_slots must exceed num_sinks + window"):
        SlotCache.for_model(shared("llama"), max_bytes=512 * 5)


def test_slots_that_pass_the_trained_length_in_cache_are_refused() -> None:
    model = make("llama", max_position_embeddings=32)
    with _refusal(CapacityError, "num_slots + chunk_size must be at most the model's trained 32"):
        SlotCache.for_model(model, 24, positions="in_cache")


def test_a_window_must_fit_into_a_sliding_layer_s_slots() -> None:
    """A sliding-window layer holds min(C, W) slots; what the KV-MMU protects must fit there too."""
    model = make("mistral", sliding_window=8)
    ids, mask = prompt(40)
    cache = SlotCache(64, num_sinks=4, window=16)
    ours(model, cache, ids, attention_mask=mask)
    cache.check_integrity()


def test_integers_refuse_a_chunk_that_their_accumulator_cannot_hold():
    policy = RCE(fixed_point=True, normalize="none")
    words = "chunk_size must be at most 256 with policy 'rce' in integers, got 300"
    with _refusal(ValueError, words):
        SlotCache.for_model(make("llama"), 400, policy=policy, chunk_size=300)


def test_generation_without_a_cache_is_refused_by_its_name():
    model = make("llama")
    with enabled(model), _refusal(ValueError, "use_cache must be True with a SlotCache, got False"):
        model.generate(
            prompt(8, pads=(0,))[0],
            past_key_values=SlotCache(16),
            use_cache=False,
            max_new_tokens=2,
        )


def test_a_selector_says_that_one_call_is_too_long_for_in_cache():
    model = make("llama")
    most = model.config.max_position_embeddings
    cache = SlotCache(16, policy="snapkv", positions="in_cache")
    ids = torch.full((1, most + 8), 5)
    words = "give the prompt in shorter calls"
    with enabled(model), torch.no_grad(), pytest.raises(CapacityError, match=words):
        model(ids, past_key_values=cache)
