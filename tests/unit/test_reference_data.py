"""The retrieval tasks and what a reference model may have seen: held-out keys, held-out text."""

from __future__ import annotations

import importlib
import lzma
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tokenizers import Tokenizer

from kvmmu.evals.filler import encode_filler
from kvmmu.evals.keys import KEY_WORDS, key_words, split_of
from kvmmu.evals.source import Source
from kvmmu.evals.tasks.base import Instance, Mode, Task
from kvmmu.evals.tasks.hot_set import HotSet
from kvmmu.evals.tasks.niah_multikey import MultiKey
from kvmmu.evals.tasks.passkey import Passkey
from kvmmu.evals.tasks.variable_tracking import VariableTracking

REPO = Path(__file__).resolve().parents[2]
MODEL = REPO / "src" / "kvmmu" / "models" / "kvmmu-ref-1m"
BOOK = REPO / "src" / "kvmmu" / "data" / "frankenstein.txt.xz"
TEXT = REPO.parent / "shared" / "data" / "text"
KEYS = key_words("held_out")


def encode(text: str) -> list[int]:
    """One token a byte: no word is whole, so every cut shows."""
    return list(text.encode())


def read_book() -> str:
    return lzma.decompress(BOOK.read_bytes()).decode()


def decode(ids: list[int] | tuple[int, ...]) -> str:
    return bytes(ids).decode()


@pytest.fixture(scope="module")
def source() -> Source:
    return Source(encode_filler(read_book()[:60_000], encode), encode, KEYS)


Make = Callable[[Source, np.random.Generator], Instance]


def maker(task: Task, mode: Mode) -> Make:
    return lambda source, rng: task.draw(source, num_tokens=2048, mode=mode, rng=rng)


MAKERS: dict[str, Make] = {
    "late_query": maker(MultiKey(num_records=12, num_queries=4), "late"),
    "question_seen": maker(MultiKey(num_records=12), "seen"),
    "question_seen_first": maker(MultiKey(num_records=12, is_first=True), "seen"),
    "hot_set": maker(HotSet(num_records=8, num_queries=20), "online"),
    "passkey": maker(Passkey(), "late"),
    "variable_tracking": maker(VariableTracking(num_chains=6, num_queries=4), "late"),
}
every_task = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
retrieval_task = pytest.mark.parametrize("name", ["late_query", "question_seen", "hot_set"])


def test_key_splits_are_disjoint_and_cover_all_keys() -> None:
    train, held_out = set(key_words("train")), set(KEYS)
    assert not train & held_out
    assert train | held_out == set(KEY_WORDS)
    assert len(held_out) >= 64
    assert len(set(KEY_WORDS)) == len(KEY_WORDS)


def test_split_of_a_key_never_changes() -> None:
    pinned = {"window": "train", "sword": "train", "bottle": "held_out", "cannon": "held_out"}
    assert {word: split_of(word) for word in pinned} == pinned


def test_unknown_split_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="split must be 'train' or 'held_out', got 'test'"):
        key_words("test")  # type: ignore[arg-type]


@every_task
def test_stream_has_the_length_asked_for(
    make: Make, source: Source, rng: np.random.Generator
) -> None:
    task = make(source, rng)
    assert len(task.stream()[0]) == 2048


@every_task
def test_same_seed_gives_the_same_task(make: Make, source: Source, seed: int) -> None:
    first, second, other = (make(source, np.random.default_rng(s)) for s in (seed, seed, seed + 1))
    assert first == second
    assert first != other


@every_task
def test_answers_stand_in_the_stream_where_said(
    make: Make, source: Source, rng: np.random.Generator
) -> None:
    task = make(source, rng)
    ids, starts = task.stream()
    for start, query in zip(starts, task.queries, strict=True):
        assert tuple(ids[start : start + len(query.answer_ids)]) == query.answer_ids
        assert tuple(ids[start - len(query.prompt_ids) : start]) == query.prompt_ids


@retrieval_task
def test_answer_is_recoverable_from_its_record(
    name: str, source: Source, rng: np.random.Generator
) -> None:
    task = MAKERS[name](source, rng)
    for query in task.queries:
        record = encode(f" {query.key}{decode(query.answer_ids)}.")
        place = task.positions[query.key]
        assert list(task.context_ids[place : place + len(record)]) == record


def test_alias_leads_to_the_digits_by_way_of_its_key(
    source: Source, rng: np.random.Generator
) -> None:
    task = MAKERS["variable_tracking"](source, rng)
    context = decode(task.context_ids)
    for query in task.queries:
        key, digits = decode(query.answer_ids).split()
        assert f" {query.key} {key}." in context
        assert f" {key} {digits}." in context


def test_pass_key_stands_once_in_the_context(source: Source, rng: np.random.Generator) -> None:
    task = MAKERS["passkey"](source, rng)
    digits = decode(task.queries[0].answer_ids)
    assert len(digits) == 6  # a space and five digits
    assert decode(task.context_ids).count(f" The pass key is{digits}.") == 1


def test_late_question_is_not_in_the_context(source: Source, rng: np.random.Generator) -> None:
    task = MAKERS["late_query"](source, rng)
    assert all(decode(q.prompt_ids) not in decode(task.context_ids) for q in task.queries)


@pytest.mark.parametrize("is_first", [False, True])
def test_seen_question_is_in_the_context_and_asked_again(
    is_first: bool, source: Source, rng: np.random.Generator
) -> None:
    task = MAKERS["question_seen_first" if is_first else "question_seen"](source, rng)
    question = task.queries[0].prompt_ids
    where = slice(None, len(question)) if is_first else slice(-len(question), None)
    assert task.context_ids[where] == question
    assert not task.queries[0].lead_ids


def test_filler_keeps_words_whole(source: Source, rng: np.random.Generator) -> None:
    task = MAKERS["late_query"](source, rng)
    known = set(read_book()[:60_000].split())
    known |= set(task.positions)
    words = decode(task.context_ids).split()
    strange = [word for word in words if word not in known and not word[:-1].isdigit()]
    assert len(strange) <= 1  # the filler ends where its tokens end, perhaps inside a word


def test_hot_set_asks_some_records_far_more_often(source: Source, rng: np.random.Generator) -> None:
    hot = HotSet(num_records=8, num_queries=200)
    task = hot.draw(source, num_tokens=8192, mode="online", rng=rng)
    asked = [query.key for query in task.queries]
    counts = [asked.count(key) for key in task.positions]
    assert max(counts) > 3 * min(counts)


def test_too_many_records_are_refused_with_the_cure(
    source: Source, rng: np.random.Generator
) -> None:
    with pytest.raises(ValueError, match="raise num_tokens or ask for fewer records"):
        MultiKey(num_records=12).draw(source, num_tokens=64, mode="late", rng=rng)


def test_shipped_book_is_the_whole_novel() -> None:
    text = read_book()
    assert 400_000 < len(text) < 450_000
    assert "gutenberg" not in text.lower()


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The recipe's data module, which lives outside the package."""
    monkeypatch.syspath_prepend(str(REPO / "recipes"))
    before = set(sys.modules)
    yield importlib.import_module("data")
    for name in set(sys.modules) - before:
        if str(REPO / "recipes") in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_copied_span_is_found_by_name(data: ModuleType) -> None:
    text = read_book()
    clean = {"clean": "A line of its own. " * 100}
    data.check_held_out(clean, {"frankenstein": text}, encode)
    with pytest.raises(ValueError, match=r"text copy must not hold .* of frankenstein"):
        data.check_held_out(
            {"copy": text[20_000:20_100].replace("\n", " ")}, {"frankenstein": text}, encode
        )


@pytest.mark.skipif(not TEXT.is_dir(), reason="the training text is not shipped")
def test_no_held_out_span_is_in_the_training_mix(data: ModuleType) -> None:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    held_out = {name: data.read_text(TEXT / f"{name}.txt.xz") for name in data.HELD_OUT}
    data.check_held_out(data.training_texts(TEXT), held_out, lambda t: tokenizer.encode(t).ids)
