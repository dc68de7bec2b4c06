"""Streams and answers: what is fed, to which cache, one token at a time, and what counts."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import kvmmu
from kvmmu.evals.answers import feed, judge, read_context, score
from kvmmu.evals.keys import KEY_WORDS
from kvmmu.evals.settings import Setting
from kvmmu.evals.source import Source, shipped_book
from kvmmu.evals.streams import DRAWN, GIVEN, OWN, Answer, Stream, draw, pages
from kvmmu.evals.tasks.base import TASKS, Query

SHARED = ("niah_multikey", "niah_multivalue", "niah_multiquery", "variable_tracking")
CASES = [(name, mode) for name in TASKS.names() for mode in TASKS.get(name).modes]
CASES += [(name, "shared") for name in SHARED]
every_case = pytest.mark.parametrize(("name", "mode"), CASES, ids=[f"{n}-{m}" for n, m in CASES])
by_policy = pytest.mark.parametrize("policy", ["rce", "random", "snapkv"])


class Bytes:
    """One token a byte: rows of a task differ in where their questions stand."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(text.encode())


@pytest.fixture(scope="module")
def lm() -> Any:
    return kvmmu.load("kvmmu-ref-1m")


@pytest.fixture(scope="module")
def source(lm: Any) -> Source:
    return Source.make(shipped_book()[:200_000], lm.tokenizer)


@pytest.fixture(scope="module")
def letters() -> Source:
    return Source.make(shipped_book()[:200_000], Bytes(), keys=KEY_WORDS)


def rows_of(
    source: Source, name: str, mode: str, *, rows: int = 2, num_tokens: int = 256
) -> Stream:
    task = TASKS.make(name)
    return draw(task, [source], num_tokens=num_tokens, num_rows=rows, seed=3, mode=mode)


class Spy:
    """A model's calls: the ids that it was fed."""

    def __init__(self, model: Any) -> None:
        self.model, self.device, self.fed = model, model.device, []

    def __call__(self, ids: Tensor, **options: Any) -> Any:
        self.fed.append(ids.clone())
        return self.model(ids, **options)


class Fixed:
    """A model of a few tokens that expects the same whatever it reads, or the next number."""

    device = "cpu"

    def __init__(self, logits: Tensor | None = None, *, vocabulary: int = 0) -> None:
        self.logits, self.vocabulary = logits, vocabulary

    def __call__(self, ids: Tensor, **options: Any) -> Any:
        last = ids[:, -1:]
        if self.logits is not None:
            return SimpleNamespace(logits=self.logits.expand(*last.shape, -1))
        following = (last + 1) % self.vocabulary
        return SimpleNamespace(
            logits=100 * torch.nn.functional.one_hot(following, self.vocabulary).float()
        )


def run(model: Any, stream: Stream, setting: Setting, *, spy: Spy | None = None) -> Any:
    """Feed a stream to a real model. -> guesses, losses, the context's cache"""
    N = stream.num_tokens
    cache = setting.make(model, batch_size=len(stream.ids), num_tokens=N)
    with setting.enabled(model):
        guesses, losses = feed(spy or model, cache, stream, chunk=setting.call_size(N))
    return guesses, losses, cache


# ---------------------------------------------------------------------------- places and chunks
def numbered(stream: Stream) -> Stream:
    """Return the stream with each place's own number as its token."""
    B, N = stream.ids.shape
    ids = torch.arange(B * N).view(B, N)
    answers = tuple(
        replace(a, query=replace(a.query, answer_ids=tuple(ids[a.row, a.start : a.stop].tolist()),
                                 targets=()))
        for a in stream.answers
    )  # fmt: skip
    return replace(stream, ids=ids, answers=answers, task=None)


@every_case
@pytest.mark.parametrize("tokenizer", ["shipped", "bytes"])
def test_each_answer_is_read_where_it_stands(
    name: str, mode: str, tokenizer: str, source: Source, letters: Source
) -> None:
    where = source if tokenizer == "shipped" else letters
    num_tokens = 512 if tokenizer == "shipped" else 1536
    stream = numbered(rows_of(where, name, mode, num_tokens=num_tokens))
    B, N = stream.ids.shape
    guesses, losses = feed(Fixed(vocabulary=B * N + 1), None, stream, chunk=64)
    made = judge(stream, guesses, losses, N, 0)
    assert made.is_exact == (True,) * len(stream.answers)
    assert made.perplexity == pytest.approx(1)
    for answer in stream.answers:  # and where it stands alone
        wrong = guesses.clone()
        wrong[answer.row, answer.start - stream.num_context - 1] += 1
        missed = [not x for x in judge(stream, wrong, losses, N, 0).is_exact]
        assert [a for a, m in zip(stream.answers, missed, strict=True) if m] == [answer]


def test_rows_of_different_layout_share_the_shortest_context(letters: Source) -> None:
    stream = rows_of(letters, "babi_qa1", "late", rows=6, num_tokens=1536)
    assert len({a.start for a in stream.answers}) > 2
    first = {a.row: a.start for a in reversed(stream.answers)}
    questions = {a.row: len(a.query.prompt_ids) for a in reversed(stream.answers)}
    assert stream.num_context == min(first[row] - questions[row] for row in first)
    for answer in stream.answers:
        own = stream.ids[answer.row, answer.start : answer.stop]
        assert tuple(own.tolist()) == answer.query.answer_ids


def test_requests_of_different_length_are_refused(letters: Source) -> None:
    with pytest.raises(ValueError, match=r"requests on a shared context must be equally long"):
        rows_of(letters, "babi_qa1", "shared", rows=6, num_tokens=1536)


def test_mode_that_is_unknown_is_refused(source: Source) -> None:
    with pytest.raises(ValueError, match=r"mode of task niah_multikey must be one of .*'shard'"):
        rows_of(source, "niah_multikey", "shard")


SETTINGS = [Setting("static"), *(Setting("slots", "rce", c) for c in (1, 4, 16))]


@every_case
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.label)
def test_context_comes_in_small_chunks_and_the_rest_token_by_token(
    name: str, mode: str, setting: Setting, source: Source
) -> None:
    stream = rows_of(source, name, mode, num_tokens=512)
    spy = Spy(Fixed(torch.zeros(1, 1, 4096)))
    feed(spy, None, stream, chunk=setting.call_size(512))
    sizes = [ids.shape[1] for ids in spy.fed]
    num_calls = math.ceil(stream.num_context / setting.call_size(512))
    C = math.ceil(512 / setting.compression)
    assert max(sizes) <= max(16, C // 4)
    assert sum(sizes[:num_calls]) == stream.num_context
    assert set(sizes[num_calls:]) == {1}
    assert torch.equal(torch.cat(spy.fed[:num_calls], 1), stream.ids[:, : stream.num_context])


def test_selector_reads_the_whole_context_in_one_call(lm: Any, source: Source) -> None:
    stream = rows_of(source, "niah_multikey", "late")
    spy = Spy(lm.model)
    run(lm.model, stream, Setting("slots", "snapkv", 4), spy=spy)
    assert [ids.shape[1] for ids in spy.fed[:2]] == [stream.num_context, 1]


# ------------------------------------------------------------------------------- shared contexts
@by_policy
def test_a_request_sees_the_context_and_no_other_request(
    policy: str, lm: Any, source: Source
) -> None:
    stream = rows_of(source, "niah_multikey", "shared")
    setting = Setting("slots", policy, 4)
    guesses, losses, _ = run(lm.model, stream, setting)
    assert len(stream.segments) == 4
    for n in (0, 2, 3):
        start, stop = stream.segments[n]
        alone = run(lm.model, replace(stream, segments=stream.segments[n : n + 1]), setting)
        where = slice(start - stream.num_context, stop - 1 - stream.num_context)
        assert torch.equal(alone[0][:, where], guesses[:, where])
        assert torch.equal(alone[1][:, where], losses[:, where])
        assert (alone[0] >= 0).sum() == len(stream.ids) * (stop - 1 - start)


@by_policy
def test_requests_leave_the_contexts_cache_as_it_was(policy: str, lm: Any, source: Source) -> None:
    stream = rows_of(source, "niah_multikey", "shared")
    setting = Setting("slots", policy, 4)
    N = stream.num_tokens
    fresh = setting.make(lm.model, batch_size=2, num_tokens=N)
    with setting.enabled(lm.model), torch.inference_mode():
        read_context(
            lm.model, fresh, stream.ids[:, : stream.num_context], chunk=setting.call_size(N)
        )
        _, _, used = run(lm.model, stream, setting)
        for layer in range(len(fresh.layers)):
            assert torch.equal(fresh.positions(layer), used.positions(layer))
        logits = [lm.model(stream.ids[:, :9], past_key_values=c).logits for c in (fresh, used)]
    assert torch.equal(*logits)


def test_first_request_is_the_first_question_of_mode_late(lm: Any, source: Source) -> None:
    stream = rows_of(source, "niah_multikey", "shared")
    setting = Setting("slots", "rce", 4)
    shared, late = (run(lm.model, s, setting)[0] for s in (stream, replace(stream, segments=())))
    start, stop = stream.segments[0]
    assert torch.equal(shared[:, : stop - 1 - start], late[:, : stop - 1 - start])
    assert bool((shared == -1).any())  # the full stop between questions is not asked


# ------------------------------------------------------------------------------------- own words
def test_own_words_are_fed_and_the_true_ones_are_not(lm: Any, source: Source) -> None:
    stream = rows_of(source, "recite", "online")
    spy = Spy(lm.model)
    guesses, _, _ = run(lm.model, stream, Setting("static"), spy=spy)
    fed = torch.cat(spy.fed, 1)
    first = stream.num_context
    assert stream.fed is not None
    own = stream.fed[:, first + 1 : -1] == OWN
    assert torch.equal(fed[:, first + 1 :][own], guesses[:, :-1][own])
    assert int(own.sum()) == sum(a.stop - a.start - 1 for a in stream.answers)
    blind = stream.ids.clone()
    blind[stream.fed == OWN] = 7
    assert torch.equal(run(lm.model, replace(stream, ids=blind), Setting("static"))[0], guesses)


def test_drawn_text_is_the_models_from_its_first_token_on(lm: Any, source: Source) -> None:
    stream = rows_of(source, "hold", "online")
    assert stream.fed is not None
    assert set(stream.fed.unique().tolist()) == {GIVEN, DRAWN}
    spies = [Spy(lm.model), Spy(lm.model)]
    blind = stream.ids.clone()
    blind[stream.fed == DRAWN] = 7
    for spy, ids in zip(spies, (stream.ids, blind), strict=True):
        run(lm.model, replace(stream, ids=ids), Setting("static"), spy=spy)
    one, two = (torch.cat(spy.fed, 1) for spy in spies)
    assert torch.equal(one, two)
    is_given = stream.fed[:, :-1] == GIVEN
    assert torch.equal(one[is_given], stream.ids[:, :-1][is_given])


def sampling(rows: int, seed: int) -> Stream:
    """Make rows whose tokens from 4 on are drawn, all but the last answer."""
    ids = torch.ones(rows, 60, dtype=torch.long)
    fed = torch.zeros(rows, 60, dtype=torch.int8)
    fed[:, 4:54] = DRAWN
    answers = tuple(Answer(b, 58, 60, Query((1,), (1, 1))) for b in range(rows))
    return Stream("s", ids, 4, answers, fed=fed, seed=seed)


def drawn(stream: Stream, logits: Tensor) -> Tensor:
    """Return what is drawn from fixed logits. -> [B,50]"""
    spy = Spy(Fixed(logits))
    feed(spy, None, stream, chunk=4)
    return torch.cat(spy.fed, 1)[:, 4:54]


LOGITS = torch.tensor([0.5, 0.25, 0.15, 0.1]).log().view(1, 1, 4)


def test_drawing_follows_the_models_probabilities() -> None:
    text = drawn(sampling(200, 0), LOGITS)
    shares = torch.bincount(text.flatten(), minlength=4) / text.numel()
    assert shares.tolist() == pytest.approx([0.5, 0.25, 0.15, 0.1], abs=0.015)  # 3 s.e.
    both = torch.bincount((text[:, :-1] * 4 + text[:, 1:]).flatten(), minlength=16) / (200 * 49)
    assert both[0].item() == pytest.approx(0.25, abs=0.015)  # independent from token to token


def test_drawing_repeats_with_the_seed_and_in_every_batch() -> None:
    stream = sampling(6, 5)
    text = drawn(stream, LOGITS)
    assert torch.equal(drawn(stream, LOGITS), text)
    assert not torch.equal(drawn(sampling(6, 6), LOGITS), text)
    assert len({tuple(row) for row in text.tolist()}) == 6
    parts = [drawn(stream.rows(a, b), LOGITS) for a, b in ((0, 1), (1, 4), (4, 6))]
    assert torch.equal(torch.cat(parts), text)


@pytest.mark.parametrize(
    ("name", "mode", "policy"),
    [
        ("niah_multikey", "shared", "rce"),
        ("niah_multikey", "shared", "random"),
        ("babi_qa2", "seen", "snapkv"),
        ("recite", "online", "rce"),
    ],
)
def test_slice_of_a_batch_scores_as_in_the_batch(
    name: str, mode: str, policy: str, lm: Any, source: Source
) -> None:
    stream = rows_of(source, name, mode, rows=3, num_tokens=96)
    setting = Setting("slots", policy, 3)
    whole = score(lm.model, stream, setting)
    parts = [score(lm.model, stream.rows(a, b), setting) for a, b in ((0, 2), (2, 3))]
    assert whole.scores == tuple(s for part in parts for s in part.scores)
    assert whole.is_exact == tuple(s for part in parts for s in part.is_exact)
    assert whole.counts == tuple(s for part in parts for s in part.counts)
    losses = [loss for part in parts for loss in part.losses]
    assert list(whole.losses) == pytest.approx(losses, rel=1e-4)  # sums over another batch


# ------------------------------------------------------------------------------------ perplexity
@every_case
def test_perplexity_counts_the_given_tokens_alone(name: str, mode: str, source: Source) -> None:
    stream = rows_of(source, name, mode)
    guesses, losses = feed(Fixed(torch.zeros(1, 1, 4096)), None, stream, chunk=64)
    made = judge(stream, guesses, losses, 0, 0)
    assert made.perplexity == pytest.approx(4096)
    if stream.fed is not None:
        is_own = stream.fed[:, stream.num_context + 1 :] != GIVEN
        assert is_own.any()
        assert not losses[is_own].any()
    N, first = stream.num_tokens, stream.num_context
    spans = [(a + 1, b) for a, b in stream.segments] or [(first + 1, N)]
    for row, count in enumerate(made.counts):
        fed = None if stream.fed is None else stream.fed[row]
        given = [t for a, b in spans for t in range(a, b) if fed is None or fed[t] == GIVEN]
        assert count == len(given)
    assert any(made.counts)


def test_pages_score_as_many_tokens_as_asked(source: Source) -> None:
    stream = pages(source, num_tokens=128, num_scored=32, num_rows=3, seed=0)
    guesses, losses = feed(Fixed(torch.zeros(1, 1, 4096)), None, stream, chunk=16)
    assert judge(stream, guesses, losses, 0, 0).counts == (32, 32, 32)


# ------------------------------------------------------------------------------------ full caches
SLOW = [(n, m) for n, m in CASES if m == "online" and n not in ("hot_set", "recite")]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(n, m, marks=[pytest.mark.slow] * ((n, m) in SLOW), id=f"{n}-{m}")
        for n, m in CASES
    ],
)
def test_slots_for_all_score_as_the_full_cache(
    name: str, mode: str, lm: Any, source: Source
) -> None:
    stream = rows_of(source, name, mode, num_tokens=144 if mode == "online" else 256)
    full, slots = (
        score(lm.model, stream, setting) for setting in (Setting("static"), Setting("slots"))
    )
    assert full.scores == slots.scores
    assert full.is_exact == slots.is_exact
    assert full.counts == slots.counts
    assert slots.perplexity == pytest.approx(full.perplexity, rel=1e-4)
    assert full.kv_bytes == slots.kv_bytes


def test_copy_of_a_cache_is_a_cache_of_its_own(lm: Any) -> None:
    setting = Setting("slots", "random", 4)
    cache = setting.make(lm.model, batch_size=1, num_tokens=128)
    ids = torch.arange(40).view(1, 40)
    with setting.enabled(lm.model), torch.inference_mode():
        read_context(lm.model, cache, ids, chunk=16)
        before = cache.positions(0).clone()
        twins = [copy.deepcopy(cache) for _ in range(2)]
        for twin in twins:
            read_context(lm.model, twin, ids + 50, chunk=16)
    assert torch.equal(cache.positions(0), before)
    assert torch.equal(twins[0].positions(0), twins[1].positions(0))
    assert not torch.equal(twins[0].positions(0), before)
