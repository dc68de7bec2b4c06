"""Models: published parameter counts, shapes, any Hugging Face config.json, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvmmu.accel.spec.hf_config import list_model_types, model_of_config
from kvmmu.accel.spec.load import list_models_specs, load_model
from kvmmu.accel.spec.model import ModelSpec
from kvmmu.errors import SpecError

# Counted by transformers 5.23 of the same configurations; the model cards round to these.
PARAMETERS = {
    "gpt2": 124_439_808,
    "opt_125m": 125_239_296,
    "opt_350m": 331_196_416,
    "opt_1.3b": 1_315_758_080,
    "opt_6.7b": 6_658_473_984,
    "llama_7b": 6_738_415_616,
    "llama_13b": 13_015_864_320,
    "llama_3_8b": 8_030_261_248,
    "llama_3_70b": 70_553_706_496,
    "qwen3_8b": 8_190_735_360,
    "mistral_7b": 7_241_732_096,
    "kvmmu-ref-1m": 1_148_032,
    "kvmmu-ref-1m-mha": 1_279_104,
    "kvmmu-ref-4m": 4_951_296,
}
SMALL: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def read(**values: Any) -> ModelSpec:
    return model_of_config(values, name="small", title="small", source="a test", file="f.json")


def test_every_model_known_by_name_is_listed() -> None:
    assert set(PARAMETERS) <= set(list_models_specs())


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_count(name: str) -> None:
    assert load_model(name).num_parameters == PARAMETERS[name]


# Counts of transformers 5.23 for configurations of these sizes.
@pytest.mark.parametrize(
    ("kind", "count"),
    [("qwen2", 202_304), ("phi3", 202_048), ("olmo2", 202_240), ("smollm3", 138_048)],
)
def test_parameters_of_other_families_are_the_framework_s(kind: str, count: int) -> None:
    assert read(model_type=kind, **SMALL).num_parameters == count


def test_parameters_of_gpt_neox_and_gpt2_are_the_framework_s() -> None:
    neox = SMALL | {"num_key_value_heads": None}
    assert read(model_type="gpt_neox", **neox).num_parameters == 195_072
    gpt2 = read(model_type="gpt2", vocab_size=1000, n_embd=64, n_layer=2, n_head=4, n_positions=96)
    assert gpt2.num_parameters == 170_240
    assert gpt2.has_learned_positions


def test_weights_of_a_layer_are_split_by_matrix() -> None:
    model = load_model("LLaMA-7B")
    mlp = 4096 * 11008
    assert model.num_weights_per_layer == {
        "qkv": 3 * 4096**2,
        "o": 4096**2,
        "mlp_up": 2 * mlp,
        "mlp_down": mlp,
    }
    assert model.num_weights_per_step == 32 * (4 * 4096**2 + 3 * mlp) + 32000 * 4096
    assert model.num_kv_per_token == 2 * 32 * 4096


def test_grouped_heads_narrow_keys_and_values_alone() -> None:
    model = load_model("llama-3-8b")
    assert (model.q_size, model.kv_size) == (4096, 1024)
    assert model.num_weights_per_layer["qkv"] == 4096 * (4096 + 2 * 1024)


def test_opt_350m_projects_its_narrow_embedding_both_ways() -> None:
    model = load_model("OPT-350M")
    assert (model.embedding_size, model.num_projection_weights) == (512, 512 * 1024)
    assert model.num_lm_head_weights == 50272 * 512 + 512 * 1024
    assert not model.has_final_norm
    assert load_model("OPT-125M").num_projection_weights == 0


@pytest.mark.parametrize("name", ["LLaMA-7B", "llama-7b", "llama_7b", "Llama_7B"])
def test_names_are_taken_in_any_case_with_either_dash(name: str) -> None:
    assert load_model(name).name == "llama_7b"


def test_a_folder_and_a_file_of_hugging_face_are_read_alike(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    file = folder / "config.json"
    file.write_text(json.dumps(SMALL | {"model_type": "llama", "dtype": "bfloat16"}))
    assert load_model(folder) == load_model(file) == load_model(str(folder) + "/")
    assert load_model(folder).name == "mine"
    assert load_model(folder).head_dim == 16


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "mixtral"}, "unknown model_type 'mixtral'"),
        ({"model_type": "lama"}, "unknown model_type 'lama'; did you mean 'llama'?"),
        ({"model_type": None}, "f.json: model_type must be given"),
        ({"num_local_experts": 8}, "num_local_experts must be absent (dense MLPs only), got 8"),
        (
            {"model_type": "mistral", "sliding_window": 256},
            "sliding_window must be null or at least max_positions = 512",
        ),
        (
            {"model_type": "qwen2", "sliding_window": 256, "use_sliding_window": True},
            "sliding_window must be null or at least",
        ),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types must be 'full_attention' throughout, got 'sliding_attention'",
        ),
        ({"hidden_size": None}, "hidden_size must be given for llama"),
        ({"model_type": "mistral", "num_key_value_heads": None}, "num_key_value_heads must be"),
        ({"model_type": "qwen3"}, "head_dim must be given for qwen3"),
        ({"num_key_value_heads": 3}, "num_heads must be a multiple of num_kv_heads = 3, got 4"),
        ({"num_hidden_layers": 0}, "num_layers must be greater than 0, got 0"),
        ({"num_hidden_layers": 2.5}, "num_layers must be a valid integer, got 2.5"),
        ({"num_attention_heads": 0}, "sizes must be positive whole numbers"),
        ({"hidden_size": "64"}, "sizes must be positive whole numbers"),
    ],
)
def test_what_cannot_be_held_exactly_is_refused_by_name(change: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError) as error:
        read(**({"model_type": "llama"} | SMALL | change))
    assert told in str(error.value)
    assert "f.json" in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "mistral", "sliding_window": 512},
        {"model_type": "qwen2", "sliding_window": 256, "use_sliding_window": False},
        {"model_type": "qwen2", "sliding_window": 256},
        {"model_type": "llama", "layer_types": ["full_attention"]},
    ],
)
def test_a_window_without_effect_is_taken(change: dict[str, Any]) -> None:
    assert read(**(SMALL | change)).num_layers == 2


def test_unknown_models_and_unreadable_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"unknown model 'lama-7b'; did you mean 'llama_7b'"):
        load_model("lama-7b")
    with pytest.raises(SpecError, match=r"must be a readable config.json"):
        load_model(tmp_path / "none")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SpecError, match=r"must be JSON"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(SpecError, match=r"must hold a JSON object, got list"):
        load_model(tmp_path)


def test_a_preset_whose_count_is_wrong_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    shape = "model_type: llama, hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1"
    path.write_text(
        f"name: m\ntitle: m\nnum_parameters: 7\nsource: a test\nconfig: {{{shape}, "
        "num_attention_heads: 1, max_position_embeddings: 8, vocab_size: 8, source: a test}\n"
    )
    with pytest.raises(
        SpecError, match=r"num_parameters must be 600, what its config gives, got 7"
    ):
        load_model(path)


def test_the_families_of_the_documentation_are_read() -> None:
    assert set(list_model_types()) >= {
        *("llama", "mistral", "qwen2", "qwen3", "phi3"),
        *("smollm3", "olmo2", "gpt2", "opt", "gpt_neox"),
    }
