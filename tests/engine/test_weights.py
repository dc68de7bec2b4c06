"""Loading: one clear line for a folder that is wrong, the right bytes for one that is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models
import torch
from plain_attention import run
from safetensors.torch import load_file, save_file

from kvmmu.engine.config import ModelConfig
from kvmmu.engine.linear import Int8Linear, quantise_int8
from kvmmu.engine.model import Transformer


@pytest.fixture
def folder(tmp_path):
    """A tiny Llama's folder."""
    tiny_models.make("llama").save_pretrained(tmp_path)
    return tmp_path


def edit(folder: Path, change) -> None:
    """Change the tensors of model.safetensors."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "name", ["model.layers.1.self_attn.k_proj.weight", "model.norm.weight", "lm_head.weight"]
)
def test_missing_tensor_is_named(folder, name):
    edit(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(ValueError, match=f"^checkpoint must hold {name}, got"):
        Transformer.load(folder)


def test_surplus_tensor_is_named(folder):
    name = "model.layers.0.self_attn.q_proj.bias"
    edit(folder, lambda tensors: tensors.update({name: torch.zeros(64)}))
    with pytest.raises(ValueError, match=rf"alone, got {name} \(1 in all\) besides$"):
        Transformer.load(folder)


def test_layer_too_many_is_named(folder):
    file = folder / "config.json"
    config = json.loads(file.read_text()) | {"num_hidden_layers": 1}
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"got model.layers.1.input_layernorm.weight"):
        Transformer.load(folder)


def test_misshapen_tensor_is_named(folder):
    name = "model.layers.0.mlp.up_proj.weight"
    edit(folder, lambda tensors: tensors.update({name: torch.zeros(64, 64)}))
    with pytest.raises(ValueError, match=rf"^{name} must have shape \[96, 64\], got \[64, 64\]$"):
        Transformer.load(folder)


def test_integers_are_no_weights(folder):
    name = "model.layers.0.mlp.up_proj.weight"
    edit(folder, lambda tensors: tensors.update({name: torch.zeros(96, 64, dtype=torch.int8)}))
    with pytest.raises(ValueError, match=f"{name} must be float32, bfloat16 or float16, got"):
        Transformer.load(folder)


def test_old_buffers_are_left_out(folder):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit(folder, lambda tensors: tensors.update({name: torch.zeros(8)}))
    Transformer.load(folder)


def test_tied_head_that_differs_is_refused(folder):
    file = folder / "config.json"
    config = json.loads(file.read_text()) | {"tie_word_embeddings": True}
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"^lm_head.weight must equal the embedding"):
        Transformer.load(folder)
    edit(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    loaded = Transformer.load(folder).weights
    assert loaded.head.weight.data_ptr() == loaded.embed.data_ptr()


def test_folder_without_weights_is_named(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"model folder must hold model.safetensors or"):
        Transformer.load(folder)


def test_folder_without_config_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"model folder must hold a config.json, got"):
        Transformer.load(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", ""])
def test_broken_config_is_named(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json must "):
        Transformer.load(folder)


def test_broken_file_is_named(folder):
    (folder / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00nothing")
    with pytest.raises(ValueError, match=r"model.safetensors must be readable safetensors"):
        Transformer.load(folder)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"lm_head.weight": "../other.safetensors"}, "which is no file of its folder"),
        ({"lm_head.weight": "gone.safetensors"}, "which is no file of its folder"),
        ({"other.weight": "shard.safetensors"}, "names other.weight, which no shard holds"),
    ],
)
def test_broken_index_is_named(folder, weight_map, message):
    (folder / "model.safetensors").rename(folder / "shard.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=message):
        Transformer.load(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_file_of_another_dtype_is_converted(tmp_path, dtype):
    model = tiny_models.make("qwen2").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    weights = Transformer.load(tmp_path, dtype=dtype).weights
    kind = getattr(torch, dtype)
    wanted = torch.cat(
        [getattr(model.model.layers[1].self_attn, f"{x}_proj").weight for x in "qkv"]
    )
    assert weights.embed.dtype == kind
    assert torch.equal(weights.layers[1].qkv.weight, wanted.to(kind))
    assert weights.layers[1].attn_norm.dtype == torch.float32


# --------------------------------------------------------------------------------------- int8
def test_int8_rounds_each_row_by_its_own_scale():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 40, generator=generator) * torch.tensor([1e-6, 1, 30, 0, 2, 1])[:, None]
    codes, scales = torch.empty(6, 40, dtype=torch.int8), torch.empty(6)
    quantise_int8(weight, codes, scales)
    assert codes.abs().max() == 127
    assert not codes[3].any()
    error = (Int8Linear(codes, scales, None).dense() - weight).abs()
    assert (error <= scales[:, None] * 0.5001).all()


@pytest.mark.parametrize("num_rows", [1, 3, 16, 17, 40])
@pytest.mark.parametrize("has_bias", [True, False])
def test_int8_product_is_within_its_bound(num_rows, has_bias):
    """Each of the K weights is off by at most half a scale: |error| <= scale / 2 * sum |x|."""
    generator = torch.Generator().manual_seed(1)
    weight, x = (torch.randn(n, 64, generator=generator) for n in (48, num_rows))
    bias = torch.randn(48, generator=generator) if has_bias else None
    codes, scales = torch.empty(48, 64, dtype=torch.int8), torch.empty(48)
    quantise_int8(weight, codes, scales)
    exact = torch.nn.functional.linear(x, weight, bias)
    got = Int8Linear(codes, scales, bias)(x)
    bound = scales * 0.5 * x.abs().sum(1, keepdim=True)
    assert ((got - exact).abs() <= bound * 1.001 + 1e-5).all()


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "phi3"])
def test_int8_model_is_near_the_plain_one(tmp_path, name):
    tiny_models.make(name, sharp=1.0).save_pretrained(tmp_path)
    ids = tiny_models.prompt(24, (0,))[0][0]
    plain, small = Transformer.load(tmp_path), Transformer.load(tmp_path, weights="int8")
    wanted, got = run(plain, ids), run(small, ids)
    # a row's largest of 64 normal weights is ~2.5 sigma: error 2.5/127/sqrt(12) = 0.6 % a matrix
    assert (got - wanted).norm() <= 0.05 * wanted.norm()
    assert not torch.equal(got, wanted)
    assert small.weight_nbytes < 0.4 * plain.weight_nbytes


def test_random_model_is_the_same_for_a_seed(folder):
    config = ModelConfig.from_folder(folder)
    ids = tiny_models.prompt(8, (0,))[0][0]
    one, two, other = (run(Transformer.random(config, seed), ids) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert 0.1 < one.std() < 10
