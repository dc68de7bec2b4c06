"""What the engine does not compute exactly is refused, in one line that names it."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny_models

from kvmmu.engine.model import Transformer
from kvmmu.errors import UnsupportedModelError
from kvmmu.hf.load import model_path


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama", {"model_type": "mixtral"}, "model type 'mixtral' is not supported by the engine"),
        ("llama", {"quantization_config": {"bits": 4}}, "its checkpoint is quantised"),
        ("llama", {"final_logit_softcapping": 30.0}, "it soft-caps its logits"),
        ("llama", {"num_experts": 8}, "it is a mixture of experts"),
        ("llama", {"logit_scale": 0.5}, "logit_scale = 0.5, which the engine does not know"),
        ("llama", {"sliding_window": 16}, "sliding_window = 16, which the engine does not know"),
        ("llama", {"hidden_act": "tanh"}, "its hidden_act is 'tanh'"),
        ("llama", {"is_causal": False}, "its is_causal is False, the engine knows True"),
        ("llama", {"num_key_value_heads": 3}, "4 heads cannot share 3 KV heads evenly"),
        ("llama", {"vocab_size": None}, "its vocab_size must be an integer of at least 1"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "its RoPE is 'dynamic'"),
        ("llama", {"rope_scaling": {"type": "spiral"}}, "its RoPE is 'spiral'"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "names no factor"),
        ("llama", {"partial_rotary_factor": 0.5}, "its partial_rotary_factor is 0.5"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "default", "mrope_section": [4, 4]}},
            "names mrope_section",
        ),
        ("qwen2", {"layer_types": ["full_attention", "conv"]}, "it has layers of kind 'conv'"),
        ("opt", {"word_embed_proj_dim": 32}, "its word_embed_proj_dim is 32"),
        ("opt", {"do_layer_norm_before": False}, "its do_layer_norm_before is False"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"add_cross_attention": True}, "its add_cross_attention is True"),
    ],
)
def test_what_is_not_known_is_refused_by_name(tmp_path, name, change, message):
    tiny_models.make(name).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        Transformer.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int4"}, "dtype must be one of float32, bfloat16, float16, got 'int4'"),
        ({"weights": "int3"}, "weights must be one of plain, int8"),
        ({"positions": "none"}, "positions must be one of original, in_cache, got 'none'"),
        ({"backend": "onnx"}, "backend must be one of torch, native, got 'onnx'"),
        ({"num_threads": 0}, "num_threads must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, message):
    shutil.copytree(model_path("kvmmu-ref-1m"), tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        Transformer.load(tmp_path / "model", **options)
