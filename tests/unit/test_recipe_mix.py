"""The mix of tasks a model is trained on: every kind at every length, and no held-out key."""

from __future__ import annotations

import importlib
import lzma
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from kvmmu.evals.keys import key_words

REPO = Path(__file__).resolve().parents[2]
RECIPES = REPO / "recipes"
PACKAGE = REPO / "src" / "kvmmu"
BOOK = PACKAGE / "data" / "frankenstein.txt.xz"
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
FROM_128 = ("qa2", "qa3", "mixed")  # a sequence of 64 tokens is too short
PARTLY = {("qa1", 64), ("frequent", 64), ("key_value", 64), ("key_value", 128)}


@pytest.fixture(scope="module")
def mix() -> Iterator[Any]:
    """The recipe's module, which lives outside the package."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RECIPES))
        yield importlib.import_module("mix")
    for name in set(sys.modules) - before:
        if str(RECIPES) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(PACKAGE / "models" / "kvmmu-ref-1m" / "tokenizer.json"))


@pytest.fixture(scope="module")
def made(mix: Any, tokenizer: Tokenizer) -> Any:
    text = lzma.decompress(BOOK.read_bytes()).decode()[:80_000]
    return mix.Mix({"text": text}, tokenizer, seed=0)


def kinds(module: Any) -> list[str]:
    every = {kind: None for shares in module.SHARES.values() for kind in shares}
    return [kind for kind in every if kind != "text"]


def samples(made: Any, kind: str, *, num_tokens: int = 512, num: int = 12) -> Iterator[Any]:
    """Draw training sequences of one kind, disturbed and not, from one random state each."""
    for seed in range(num):
        pair = []
        for share in (0.0, 1.0):
            rng = np.random.default_rng(seed)
            module = sys.modules[type(made).__module__]
            name, instance = module._draw(kind, made.sources[0], num_tokens, rng)
            made.DISTURBED_SHARE = share
            pair.append(made._weigh(name, instance, rng))
            del made.DISTURBED_SHARE
        yield (*pair, instance)


@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_every_kind_is_drawn_at_every_length(mix: Any, made: Any, num_tokens: int) -> None:
    for kind in kinds(mix):
        drawn = Counter()
        for seed in range(12):
            rng = np.random.default_rng((seed, num_tokens))
            name, instance = mix._draw(kind, made.sources[0], num_tokens, rng)
            assert len(instance.stream()[0]) == num_tokens
            drawn[name] += 1
        assert set(drawn) <= {kind, "late"}
        if kind in FROM_128 and num_tokens == 64:
            continue
        assert drawn[kind] == 12 or (drawn[kind] and (kind, num_tokens) in PARTLY), kind


@pytest.mark.parametrize("breadth", ["basic", "broad"])
def test_kinds_come_as_often_as_their_shares_say(mix: Any, made: Any, breadth: str) -> None:
    shares = mix.SHARES[breadth]
    assert sum(shares.values()) == pytest.approx(1)
    num = 400
    drawn = Counter(made.sample(0, row, 256, breadth=breadth).kind for row in range(num))
    assert set(drawn) <= set(shares)
    for kind, share in shares.items():
        error = 4 * (share * (1 - share) / num) ** 0.5
        assert abs(drawn[kind] / num - share) <= error, kind


def test_held_out_keys_name_no_training_record(mix: Any, made: Any, tokenizer: Tokenizer) -> None:
    held_out = set(key_words("held_out"))
    assert not held_out & set(made.sources[0].keys)
    ids = {tokenizer.encode(f" {word}").ids[0] for word in (*held_out, *key_words("train"))}
    assert not ids & set(made.donors.tolist())
    for kind in kinds(mix):
        for plain, disturbed, instance in samples(made, kind, num=4):
            assert not held_out & set(instance.keys)
            assert not held_out & {query.key for query in instance.queries}
            assert not {tokenizer.decode([i]).strip() for i in disturbed.key_ids} & held_out
            new = set(disturbed.ids.tolist()) - set(plain.ids.tolist())
            assert not {tokenizer.decode([i]).strip() for i in new} & held_out


def test_donors_take_a_keys_place_wherever_it_stands(mix: Any, made: Any) -> None:
    for kind in kinds(mix):
        for plain, disturbed, instance in samples(made, kind):
            keys = {made.encode(f" {key}")[0] for key in instance.keys}
            if kind in mix.FIXED or kind in mix.NAMED:
                assert np.array_equal(plain.ids, disturbed.ids)
                assert set(disturbed.key_ids) == (keys if kind in mix.NAMED else set())
                continue
            pairs = set(zip(plain.ids.tolist(), disturbed.ids.tolist(), strict=True))
            table = dict(pairs)
            assert len(table) == len(pairs), "one donor for a key, in questions and answers too"
            moved = {old: new for old, new in table.items() if old != new}
            assert set(moved) == keys & set(plain.ids.tolist())
            assert len(set(moved.values())) == len(moved)
            assert set(moved.values()) <= set(made.donors.tolist())
            assert disturbed.key_ids == ()


def test_answers_are_weighed_and_keys_are_not_guessed(mix: Any, made: Any) -> None:
    for kind in kinds(mix):
        for plain, _, instance in samples(made, kind, num=3):
            ids, starts = instance.stream()
            assert plain.ids.tolist() == ids
            spans = list(zip(starts, instance.queries, strict=True))
            assert plain.answers == tuple((s, s + len(q.answer_ids)) for s, q in spans)
            is_answer = np.zeros(len(ids), dtype=bool)
            for start, stop in plain.answers:
                is_answer[start:stop] = True
            assert plain.weights[is_answer].sum() == pytest.approx(made.ANSWER_WEIGHT)
            assert (plain.weights[is_answer] > 0).all()
            keys = [made.encode(f" {key}")[0] for key in instance.keys]
            assert not plain.weights[~is_answer & np.isin(plain.ids, keys)].any()


def test_sequence_depends_on_its_place_alone(made: Any, mix: Any, tokenizer: Tokenizer) -> None:
    text = lzma.decompress(BOOK.read_bytes()).decode()[:80_000]
    other = mix.Mix({"text": text}, tokenizer, seed=0)
    for row in (5, 0, 3):
        one, two = (m.sample(7, row, 256, breadth="broad") for m in (made, other))
        assert one.kind == two.kind
        assert np.array_equal(one.ids, two.ids)
        assert np.array_equal(one.weights, two.weights)
    assert not np.array_equal(made.sample(7, 0, 256).ids, made.sample(8, 0, 256).ids)


def test_every_task_of_the_card_can_be_scored(mix: Any, tokenizer: Tokenizer) -> None:
    scoring = importlib.import_module("scoring")
    text = lzma.decompress(BOOK.read_bytes()).decode()[:200_000]
    validation = scoring.Validation(text, tokenizer)
    assert set(validation.source.keys) == set(key_words("held_out"))
    for name in ("late_query", "question_seen", *scoring.TASKS.names()):
        instance = next(validation.instances(name, 512, seed=0))
        ids, _ = instance.stream()
        assert len(ids) == 512

        def echo(rows: Any, ids: list[int] = ids) -> Any:
            following = [*ids[1:], 0]
            return scoring.F.one_hot(scoring.torch.tensor(following), 4096).float()

        assert all(scoring.exact_answers(echo, instance))


def test_held_out_keys_are_never_an_answer_and_leave_the_softmax(mix: Any, made: Any) -> None:
    held_out = {made.encode(f" {key}")[0] for key in key_words("held_out")}
    assert set(made.held_out) == held_out
    for kind in kinds(mix):
        is_key = kind in mix.WRITTEN
        for plain, disturbed, instance in samples(made, kind, num=4):
            keys = {made.encode(f" {key}")[0] for key in instance.keys}
            for sample in (plain, disturbed):
                assert sample.is_written == is_key
                told = {t for a, b in sample.answers for t in sample.ids[a:b].tolist()}
                assert not told & held_out
            written = {t for a, b in plain.answers for t in plain.ids[a:b].tolist()}
            assert bool(written & keys) == is_key


@pytest.mark.parametrize("num_tokens", [1, 64, 2048])
def test_marked_text_keeps_its_length_and_its_order(mix: Any, num_tokens: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        ids = np.arange(10_000, 10_000 + num_tokens)
        marked = mix._marked(ids, 2048, rng)
        own = marked[marked >= 10_000]
        assert marked.size == num_tokens
        assert np.array_equal(own, ids[: own.size])
        if num_tokens == 2048:
            assert 0 < num_tokens - own.size < num_tokens * 0.3


def test_folded_numbers_keep_their_places_and_have_few_digits(made: Any, tokenizer: Any) -> None:
    ids = np.array(tokenizer.encode(" The pass key is 92831. It rains. The pass key is 92831").ids)
    for seed in range(20):
        folded = made._folded(ids, np.random.default_rng(seed))
        numbers = tokenizer.decode(folded.tolist()).replace(".", "").split()
        first, second = (word for word in numbers if word.isdigit())
        assert first == second
        assert len(first) == 5
        assert len(set(first)) <= 4
        is_digit = np.isin(ids, made.digits)
        assert np.array_equal(folded[~is_digit], ids[~is_digit])
