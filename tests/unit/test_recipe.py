"""The training recipe: its first step, its optimiser, its checkpoints. No training text needed."""

from __future__ import annotations

import importlib
import lzma
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from kvmmu.evals.filler import encode_filler
from kvmmu.evals.keys import key_words
from kvmmu.evals.source import Source
from kvmmu.evals.tasks.niah_multikey import MultiKey

REPO = Path(__file__).resolve().parents[2]
RECIPES = REPO / "recipes"
PACKAGE = REPO / "src" / "kvmmu"
TEXT = lzma.decompress((PACKAGE / "data" / "frankenstein.txt.xz").read_bytes()).decode()[:100_000]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The recipe's main module, which lives outside the package."""
    monkeypatch.syspath_prepend(str(RECIPES))
    before = set(sys.modules)
    yield importlib.import_module("train_reference")
    for name in set(sys.modules) - before:
        if str(RECIPES) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(PACKAGE / "models" / "kvmmu-ref-1m" / "tokenizer.json"))


def make_source(tokenizer: Tokenizer) -> Source:
    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text).ids
        return ids

    return Source(encode_filler(TEXT, encode), encode, key_words("train"))


def make_run(recipe: ModuleType, tokenizer: Tokenizer) -> Any:
    return recipe.Run(recipe.RECIPES["1m"], tokenizer, {"text": TEXT})


def test_resumed_run_equals_an_unbroken_one(
    recipe: ModuleType, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    whole, first, second = (make_run(recipe, tokenizer) for _ in range(3))
    for _ in range(4):
        whole.train_step()
    for _ in range(2):
        first.train_step()
    recipe.save_checkpoint(tmp_path, first.model, first.optimizers, first.progress())
    second.restore(recipe.load_checkpoint(tmp_path, second.model, second.optimizers))
    for _ in range(2):
        second.train_step()
    assert second.step == whole.step
    assert second.num_seen == whole.num_seen
    for name, value in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value), name


def test_first_layers_find_the_record_before_any_training(
    recipe: ModuleType, tokenizer: Tokenizer
) -> None:
    model = make_run(recipe, tokenizer).model
    rotate, rotary = (getattr(sys.modules["model"], name) for name in ("rotate", "rotary"))
    task = MultiKey(num_queries=4).draw(
        make_source(tokenizer), num_tokens=256, mode="late", rng=np.random.default_rng(0)
    )
    ids, starts = task.stream()
    cos, sin = rotary(model.config, len(ids))
    with torch.no_grad():
        hidden = model.layers[0](model.embed_tokens(torch.tensor([ids])), cos, sin)
        hidden = model.layers[1].input_layernorm(hidden)
        attention = model.layers[1].self_attn
        q = rotate(attention.q_proj(hidden)[:, :, :64], cos, sin)[0]
        k = rotate(attention.k_proj(hidden)[:, :, :64], cos, sin)[0]
        scores = q @ k.T / 8
        mask = torch.ones_like(scores, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(mask, -torch.inf).softmax(-1)
    for start, query in zip(starts, task.queries, strict=True):
        assert weights[start - 1, task.positions[query.key] + 1] > 0.5


@pytest.mark.parametrize("shape", [(16, 32), (48, 16), (16, 16)])
def test_muon_takes_the_step_of_torch(recipe: ModuleType, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for _ in range(3)]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    options = {"lr": 0.02, "weight_decay": 0.01, "momentum": 0.95}
    pair = (recipe.Muon(ours, **options), torch.optim.Muon(theirs, **options))
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(shape, generator=generator)
            q.grad = p.grad.clone()
        for optimizer in pair:
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, atol=1e-3, rtol=0)  # bfloat16 iterations, batched


def test_rate_warms_up_holds_and_decays(recipe: ModuleType) -> None:
    plan = recipe.RECIPES["1m"]
    total = plan.num_tokens
    assert recipe.rate_factor(0, 0, plan) == pytest.approx(1 / plan.warmup_steps)
    assert recipe.rate_factor(1000, total // 2, plan) == 1.0
    assert recipe.rate_factor(9000, int(0.85 * total), plan) == pytest.approx(0.5, abs=0.01)
    assert recipe.rate_factor(9999, total, plan) == 0.02
