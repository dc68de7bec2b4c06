"""The shipped models: plain files, as their cards say, that find held-out keys."""

from __future__ import annotations

import hashlib
import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from kvmmu.evals.filler import encode_filler
from kvmmu.evals.keys import KEY_WORDS, key_words
from kvmmu.evals.source import Source
from kvmmu.evals.tasks.base import Instance, Mode, Task
from kvmmu.evals.tasks.hot_set import HotSet
from kvmmu.evals.tasks.niah_multikey import MultiKey

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "kvmmu"
MODELS = {path.name: path for path in sorted((PACKAGE / "models").glob("kvmmu-ref-*"))}
BOOK = PACKAGE / "data" / "frankenstein.txt.xz"
TOKENIZER = AutoTokenizer.from_pretrained(MODELS["kvmmu-ref-1m"])


def encode(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def model(folder: Path) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def source() -> Source:
    text = lzma.decompress(BOOK.read_bytes()).decode()
    return Source(encode_filler(text, encode), encode, key_words("held_out"))


def count_exact(model: LlamaForCausalLM, task: Instance) -> tuple[int, int]:
    ids, starts = task.stream()
    with torch.no_grad():
        best = model(torch.tensor([ids]), use_cache=False).logits[0].argmax(-1).tolist()
    exact = [
        tuple(best[start - 1 : start - 1 + len(query.answer_ids)]) == query.answer_ids
        for start, query in zip(starts, task.queries, strict=True)
    ]
    return sum(exact), len(exact)


@pytest.mark.parametrize(
    ("task", "mode"),
    [(MultiKey(), "late"), (MultiKey(), "seen"), (HotSet(), "online")],
    ids=["late_query", "question_seen", "hot_set"],
)
def test_held_out_keys_are_found_with_a_full_cache(
    task: Task, mode: Mode, model: LlamaForCausalLM, source: Source
) -> None:
    rng = np.random.default_rng(3)
    exact = total = 0
    while total < 24:
        instance = task.draw(source, num_tokens=512, mode=mode, rng=rng)
        right, asked = count_exact(model, instance)
        exact, total = exact + right, total + asked
    assert exact >= 0.9 * total


def test_every_key_is_one_token() -> None:
    assert [word for word in KEY_WORDS if len(encode(f" {word}")) != 1] == []


def test_record_is_five_tokens_and_its_question_two() -> None:
    assert len(encode(" window 472.")) == 5
    assert len(encode(" ? window")) == 2


def test_text_survives_the_tokenizer() -> None:
    text = "The window, 472.\n\n  He said: \u201cna\u00efve\u201d ? x = 0.5\t#end\n"
    assert TOKENIZER.decode(encode(text)) == text


def test_all_models_share_one_tokenizer(folder: Path) -> None:
    first = (MODELS["kvmmu-ref-1m"] / "tokenizer.json").read_bytes()
    assert (folder / "tokenizer.json").read_bytes() == first


def test_folder_holds_plain_files_only(folder: Path) -> None:
    allowed = {".json", ".jsonl", ".md", ".safetensors"}
    assert {path.suffix for path in folder.iterdir()} <= allowed


def test_card_names_the_hash_of_the_weights(folder: Path) -> None:
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest in (folder / "README.md").read_text()


def test_training_log_is_one_object_a_line_and_ends_at_the_last_step(
    folder: Path,
) -> None:
    rows = [json.loads(row) for row in (folder / "training_log.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))
    assert f"{steps[-1]:,} steps" in (folder / "README.md").read_text()
