"""Random models: their shape, their files, their tokens."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from kvmmu.evals.bench.model import BenchModel
from kvmmu.evals.bench.shapes import SHAPES, Shape, make_model, parse_shape

TINY = SHAPES["tiny"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(TINY, tmp_path_factory.mktemp("model") / "hf")


def test_the_88m_model_is_the_one_of_the_published_conditions():
    shape = parse_shape("random:88m")
    assert (shape.layers, shape.hidden, shape.intermediate) == (12, 768, 2048)
    assert (shape.heads, shape.kv_heads, shape.head_dim, shape.vocab) == (12, 4, 64, 16384)
    assert shape.num_parameters == 88_099_584


def test_a_shape_is_read_by_its_numbers():
    assert parse_shape("random:layers=3,vocab=999") == Shape(layers=3, vocab=999)
    assert parse_shape("some/folder") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("random:99m", "random model must be one of 88m"),
        ("random:depth=3", "names: layers, hidden"),
        ("random:layers=-1", "random model"),
        ("random:layers=0", "layers must be at least 1, got 0"),
        ("random:heads=12,kv_heads=5", "multiple of kv_heads"),
        ("random:hidden=100", "multiples of 32"),
        ("random:vocab=257", "vocab must be at least 258"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_shape(text)


def test_transformers_reads_the_folder(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.num_parameters() == TINY.num_parameters
    assert model.config.tie_word_embeddings


def test_the_tokenizer_reads_and_writes_any_text(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "the Höhe, 42 & more\n"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert max(ids) < TINY.vocab == len(tokenizer)
    assert tokenizer.eos_token_id == TINY.vocab - 1


def test_a_folder_is_made_once_and_again_for_another_shape(folder):
    before = (folder / "model.safetensors").stat().st_mtime_ns
    make_model(TINY, folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_an_interrupted_folder_is_made_again(tmp_path):
    folder = make_model(TINY, tmp_path)
    (folder / "shape.json").unlink()
    (folder / "model.safetensors").write_bytes(b"half")
    make_model(TINY, folder)
    assert (folder / "model.safetensors").stat().st_size > TINY.num_parameters * 4


def test_a_bench_model_knows_its_bytes(tmp_path):
    model = BenchModel.open("random:tiny", tmp_path)
    assert model.kv_elements_per_token == 2 * 2 * 2 * 16
    assert abs(model.weight_bytes - 4 * TINY.num_parameters) < 10_000
    again = BenchModel.open(str(model.folder), tmp_path)
    assert again.fingerprint == model.fingerprint


def test_another_models_fingerprint_differs(tmp_path):
    one = BenchModel.open("random:tiny", tmp_path)
    other = BenchModel.open("random:layers=1,hidden=64,intermediate=64,vocab=300", tmp_path)
    assert one.fingerprint != other.fingerprint


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="MODEL must be random:88m"):
        BenchModel.open(str(tmp_path), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="safetensors"):
        BenchModel.open(str(tmp_path), tmp_path)
