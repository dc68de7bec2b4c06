"""The engine: a request's output is the library's, whoever shares its batch."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from engine_models import (
    EOS,
    SHIPPED,
    VOCAB,
    by_the_library,
    shipped,
    shipped_in_transformers,
    shipped_native,
    tiny,
    tiny_config,
)

import kvmmu
from kvmmu.engine import loop
from kvmmu.engine.engine import Engine
from kvmmu.engine.lane_class import LaneClass
from kvmmu.engine.model import Transformer
from kvmmu.engine.request import Output, SamplingParams
from kvmmu.errors import CapacityError, IntegrityError
from kvmmu.hf.load import load_tokenizer
from kvmmu.policies.base import list_policies

ENDLESS = {"ignore_eos": True}
WORDS = "The sea was calm, the wind was low, and the watch was long. "


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(SHIPPED)


def engine(model=None, *, num_slots=12, num_lanes=3, classes=None, tokenizer=None, **options):
    parts = {name: options.pop(name) for name in list(options) if name in _PARTS}
    made = classes or LaneClass(num_slots=num_slots, num_lanes=num_lanes, **parts)
    return Engine(model or tiny(), made, tokenizer=tokenizer, **options)


_PARTS = {f.name for f in dataclasses.fields(LaneClass)}


def prompt_of(n, seed=0, size=VOCAB - 1):
    return torch.randint(size, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def params(n=8, **more):
    return SamplingParams(max_new_tokens=n, **(ENDLESS | more))


def run(made):
    """Step to the end, checking at each step. -> outputs by request"""
    found = {}
    while made.has_work:
        for output in made.step():
            found.setdefault(output.request_id, []).append(output)
        made.check_integrity()
    return found


def ids_of(outputs):
    return [i for output in outputs for i in output.token_ids]


@pytest.fixture
def logits_seen(monkeypatch):
    """Collect each request's logits rows, by the seed of its parameters."""
    seen, real = {}, loop.sample

    def spy(logits, rows):
        for row, state in zip(logits, rows):
            seen.setdefault(state.params.seed, []).append(row.clone())
        return real(logits, rows)

    monkeypatch.setattr(loop, "sample", spy)
    return seen


# ------------------------------------------------------------------------ the library's tokens
@pytest.mark.parametrize(
    ("policy", "mode"),
    [*((name, "fast") for name in list_policies()), ("rce", "reference"), ("novelty", "reference")],
)
def test_tokens_are_those_of_the_library(policy, mode, tokenizer):
    C = 24
    text = tokenizer(WORDS * 12)["input_ids"]
    prompts = [text[:n] for n in (1, C - 1, C, C + 1, 2 * C + 1, 130)]  # 130: more than all lanes
    made = engine(shipped(), num_slots=C, num_lanes=3, policy=policy, mode=mode, chunk_size=16)
    done = made.generate(prompts, params(8))
    made.check_integrity()
    for prompt, one in zip(prompts, done):
        want = by_the_library(prompt, C, 8, policy=policy, chunk_size=16)
        assert list(one.token_ids) == want
        assert one.finish == "length"


@pytest.mark.parametrize("parts", [{"granularity": "layer"}, {"positions": "in_cache"}])
@pytest.mark.parametrize("policy", ["rce", "keydiff"])
def test_tokens_are_those_of_the_library_in_other_settings(policy, parts, tokenizer):
    prompt = tokenizer(WORDS * 12)["input_ids"]
    made = engine(shipped(), num_slots=32, policy=policy, num_sinks=2, window=8, **parts)
    (done,) = made.generate([prompt], params(12))
    want = by_the_library(prompt, 32, 12, policy=policy, num_sinks=2, window=8, **parts)
    assert list(done.token_ids) == want


@pytest.mark.parametrize("policy", ["rce", "keydiff", "snapkv"])
def test_enough_slots_equal_the_full_cache(policy, tokenizer):
    prompts = [tokenizer(WORDS * n)["input_ids"] for n in (1, 3)]
    made = engine(shipped(), num_slots=len(prompts[1]) + 20, policy=policy, chunk_size=16)
    for prompt, one in zip(prompts, made.generate(prompts, params(20))):
        assert list(one.token_ids) == by_the_library(prompt, None, 20)


def test_text_without_end_where_keys_are_numbered_in_the_cache():
    made = engine(positions="in_cache")
    (done,) = made.generate([prompt_of(500)], params(30))
    assert len(done.token_ids) == 30


def test_in_cache_classes_share_a_model_with_others():
    both = [LaneClass("a", 12, 2), LaneClass("b", 12, 2, positions="in_cache")]
    made = engine(classes=both)
    prompt = prompt_of(40)
    names = [made.add(prompt, params(), lane_class=c) for c in "abab"]
    found = run(made)
    tokens = [ids_of(found[name]) for name in names]
    for i, one in enumerate(both):
        alone = engine(classes=[one]).generate([prompt], params())[0]
        assert tokens[i] == tokens[i + 2] == list(alone.token_ids)


# ------------------------------------------------------------------------ batch mates
def crowd(made, mine, num_others, *, late, cancelled):
    """Run one request among others that come, go and are cancelled. -> its outputs"""
    others = [
        (prompt_of(7 + 5 * i, seed=i), params(4 + 3 * i, temperature=1.0, seed=100 + i))
        for i in range(num_others)
    ]
    before = others[: num_others // 2] if late else []
    names = [made.add(*other) for other in before]
    for _ in range(3 if late else 0):
        made.step()
    name = made.add(*mine)
    names += [made.add(*other) for other in others[len(before) :]]
    found = []
    for i in range(200):
        found += [o for o in made.step() if o.request_id == name]
        made.check_integrity()
        if cancelled and i == 2:
            for other in names[::2]:
                made.cancel(other)
        if found and found[-1].finish:
            return found
    raise AssertionError("the request never ended")


@pytest.mark.parametrize(
    ("model", "policy"),
    [
        (tiny, "rce"),
        (tiny, "keydiff"),
        (tiny, "snapkv"),
        (shipped, "rce"),
        (shipped, "keydiff"),
        (shipped_native, "rce"),
        (shipped_native, "novelty"),
    ],
)
def test_reference_mode_is_bitwise_the_same_whoever_shares_the_batch(policy, model, logits_seen):
    mine = prompt_of(29, seed=9), params(12, temperature=0.9, seed=7)
    results = []
    for num_others, late, cancelled in [
        (0, False, False),
        (3, False, False),
        (3, True, True),
        (7, True, False),
        (7, False, True),
        (9, True, True),  # more than there are lanes
    ]:
        made = engine(model(), num_lanes=8, policy=policy, mode="reference", chunk_size=8)
        found = crowd(made, mine, num_others, late=late, cancelled=cancelled)
        results.append((ids_of(found), torch.stack(logits_seen.pop(7))))
    first_ids, first_logits = results[0]
    assert len(first_ids) == 12
    for ids, logits in results[1:]:
        assert ids == first_ids
        assert torch.equal(logits, first_logits)


def test_reference_mode_decodes_at_the_full_lane_count_and_runs_each_chunk_alone(monkeypatch):
    model, rows = tiny(), []
    real = model.forward
    monkeypatch.setattr(model, "forward", lambda t, *rest: rows.append(len(t)) or real(t, *rest))
    made = engine(model, num_lanes=5, mode="reference", chunk_size=4)
    made.add(prompt_of(6), params(3))
    made.add(prompt_of(4), params(3))
    for expected in ([4, 2, 4], [5], [5]):
        made.step()
        assert rows == expected
        rows.clear()
    assert not made.has_work


@pytest.mark.parametrize("mode", ["fast", "reference"])
def test_selector_takes_its_prompt_in_one_call(mode, monkeypatch):
    model, rows = tiny(), []
    real = model.forward
    monkeypatch.setattr(model, "forward", lambda t, *rest: rows.append(len(t)) or real(t, *rest))
    engine(model, policy="snapkv", mode=mode, chunk_size=4).generate([prompt_of(30)], params(1))
    assert rows == [30]


@pytest.mark.parametrize(
    ("model", "policy"),
    [(shipped, "rce"), (shipped, "keydiff"), (shipped_native, "rce"), (shipped_native, "tova")],
)
def test_fast_mode_gives_the_same_logits_within_rounding(model, policy, logits_seen):
    mine = prompt_of(29, seed=9), params(12, seed=7)
    made = engine(model(), num_lanes=8, policy=policy, mode="reference", chunk_size=8)
    want = ids_of(crowd(made, mine, 0, late=False, cancelled=False))
    exact = torch.stack(logits_seen.pop(7))
    for num_others, late in ((0, False), (7, True), (9, True)):
        made = engine(model(), num_lanes=8, policy=policy, chunk_size=8, token_budget=64)
        assert ids_of(crowd(made, mine, num_others, late=late, cancelled=True)) == want
        assert torch.allclose(torch.stack(logits_seen.pop(7)), exact, atol=1e-4, rtol=0)


def test_fast_mode_packs_all_rows_into_one_forward(monkeypatch):
    model, rows = tiny(), []
    real = model.forward
    monkeypatch.setattr(model, "forward", lambda t, *rest: rows.append(len(t)) or real(t, *rest))
    made = engine(model, num_lanes=5, chunk_size=4)
    made.add(prompt_of(3), params(9))
    made.step()
    made.add(prompt_of(10), params(9))
    made.add(prompt_of(4), params(9))
    for _ in range(3):
        made.step()
    assert rows == [3, 1 + 10 + 4, 3, 3]


def test_a_request_with_bad_logits_ends_alone(logits_seen):
    weights = tiny().weights
    embed = weights.embed.clone()
    embed[17] = torch.nan
    model = Transformer(tiny_config(), dataclasses.replace(weights, embed=embed), backend="torch")
    good, bad = prompt_of(9), [*prompt_of(20), 17]
    good = [i for i in good if i != 17]
    for mode in ("fast", "reference"):
        made = engine(model, mode=mode)
        want = made.generate([good], params(12, seed=1))[0].token_ids
        exact = torch.stack(logits_seen.pop(1))
        name, other = made.add(good, params(12, seed=1)), made.add(bad, params(12, seed=2))
        found = run(made)
        assert ids_of(found[name]) == list(want)
        assert torch.allclose(torch.stack(logits_seen.pop(1)), exact, atol=1e-5)
        last = found[other][-1]
        assert (last.finish, last.token_ids) == ("error", ())
        assert "logits must be finite" in last.error
        pool = made._loop.pools["default"]
        assert all(t.isfinite().all() for t in pool._tensors())
        assert made.generate([good] * 3, params(12, seed=1))[2].token_ids == want
        logits_seen.clear()


# ------------------------------------------------------------------------ ends
def test_cancel_frees_the_lane_at_once_and_leaves_nothing_behind():
    made, fresh = engine(num_lanes=1), engine(num_lanes=1)
    name = made.add(prompt_of(30), params(50))
    for _ in range(5):
        made.step()
    pool = made._loop.pools["default"]
    for tensor in pool._lane_tensors(0).values():
        tensor.fill_(torch.nan if tensor.is_floating_point() else 3)
    assert made.cancel(name)
    assert pool.num_free == 1
    clean = fresh._loop.pools["default"]
    assert all(torch.equal(a, b) for a, b in zip(pool._tensors(), clean._tensors()))
    assert made.step() == [Output(name, finish="cancelled")]
    assert not made.has_work
    want = fresh.generate([prompt_of(25, 3)], params())[0].token_ids
    assert made.generate([prompt_of(25, 3)], params())[0].token_ids == want


def test_check_of_the_engine_reaches_the_lanes():
    made = engine()
    made.add(prompt_of(30), params())
    made.step()
    made.check_integrity()
    made._loop.pools["default"].mmus[1].table.positions[0, 0, :2] = 7  # one token, twice
    with pytest.raises(IntegrityError):
        made.check_integrity()


def test_cancel_of_a_waiting_request_and_of_one_that_has_ended():
    made = engine(num_lanes=1)
    first, second = made.add(prompt_of(3), params(2)), made.add(prompt_of(3), params(2))
    assert made.cancel(second)
    assert not made.cancel(second)
    found = run(made)
    assert found[second] == [Output(second, finish="cancelled")]
    assert len(ids_of(found[first])) == 2
    assert not made.cancel(first)
    assert not made.cancel("never there")


def test_prompt_longer_than_the_whole_pool_is_served():
    made = engine(num_slots=8, num_lanes=2)
    (done,) = made.generate([prompt_of(150)], params(20))
    assert len(done.token_ids) == 20
    assert made.stats().kv_nbytes == 2 * 2 * 8 * 2 * 2 * 8 * 4


def test_ends_say_why():
    model = tiny()
    made = engine(model)
    prompt = prompt_of(20)
    (free,) = made.generate([prompt], params(20))
    stop = free.token_ids[4]
    at = free.token_ids.index(stop)
    (done,) = made.generate([prompt], params(20, stop_token_ids=[stop]))
    assert (done.finish, done.token_ids) == ("stop", free.token_ids[: at + 1])
    ends = Transformer(tiny_config(eos_ids=(stop,)), model.weights, backend="torch")
    for ignore, finish in ((False, "stop"), (True, "length")):
        (done,) = engine(ends).generate([prompt], params(20, ignore_eos=ignore))
        assert done.finish == finish
    assert EOS not in free.token_ids or free.finish == "length"


def test_text_streams_and_ends_before_a_stop_string(tokenizer):
    made = engine(shipped(), num_slots=64, tokenizer=tokenizer)
    outputs = list(made.stream(WORDS, params(40)))
    text = "".join(o.text for o in outputs)
    ids = ids_of(outputs)
    assert text == tokenizer.decode(ids, skip_special_tokens=True)
    assert sum(bool(o.text) for o in outputs) > 20
    for stop in (text[30:37], text[-3:], text[0]):
        pieces = list(made.stream(WORDS, params(40, stop=[stop, "\x00"])))
        assert "".join(o.text for o in pieces) == text[: text.index(stop)]
        assert pieces[-1].finish == "stop"
        assert len(pieces) <= len(outputs)
    begun = list(made.stream(WORDS, params(40, stop=text[-2:] + "\x00")))
    assert "".join(o.text for o in begun) == text  # what waits at the end is let out


def test_same_seed_same_text_and_logprobs_come_along(tokenizer):
    made = engine(shipped(), num_slots=64, tokenizer=tokenizer)
    hot = [params(12, temperature=1.5, seed=s, logprobs=2) for s in (1, 1, 2)]
    a, b, c = made.generate([WORDS] * 3, hot)
    assert a.token_ids == b.token_ids != c.token_ids
    assert [p.token_id for p in a.logprobs] == list(a.token_ids)
    assert all(len(p.top) == 2 and p.top[0][1] >= p.logprob for p in a.logprobs)


def test_penalty_counts_prompt_and_new_tokens():
    made = engine()
    (done,) = made.generate([prompt_of(20)], params(30, repetition_penalty=1e9))
    assert len(set(done.token_ids)) == 30
    assert not set(done.token_ids) & set(prompt_of(20))


# ------------------------------------------------------------------------ admission
@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ([], {}, ValueError, "at least one token"),
        ([VOCAB], {}, ValueError, r"integers in \[0, 61\), got 61"),
        ([-1], {}, ValueError, "got -1"),
        ([True], {}, ValueError, "got True"),
        ([1.5], {}, ValueError, "got 1.5"),
        ("text", {}, ValueError, "without a tokenizer"),
        (3, {}, TypeError, "text or a list of token ids, got int"),
        (b"text", {}, TypeError, "got bytes"),
        ([1], {"lane_class": "defalt"}, ValueError, "unknown lane class 'defalt'; did you mean"),
        ([1], {"request_id": ""}, ValueError, "request_id must be a text"),
        ([1], {"request_id": "here"}, ValueError, "no live request has, got 'here'"),
        ([1], {"params": {"temperature": 1}}, TypeError, "must be SamplingParams, got dict"),
        ([1], {"params": params(stop="a")}, ValueError, "stop must be empty"),
        ([1], {"params": params(stop_token_ids=[VOCAB])}, ValueError, "must be below 61"),
        ([1], {"params": params(logprobs=VOCAB + 1)}, ValueError, "at most 61"),
        ([1] * 101, {"params": params(101)}, CapacityError, "at most 201 .*, got 202.*in_cache"),
    ],
)
def test_what_cannot_be_is_refused_when_it_comes(prompt, options, error, message):
    made = engine()
    made.add([1], request_id="here")
    with pytest.raises(error, match=message):
        made.add(prompt, **options)
    assert made.stats().num_waiting == 1


def test_text_up_to_the_trained_length_is_served_and_beyond_if_allowed():
    (done,) = engine().generate([prompt_of(195)], params(6))
    assert len(done.token_ids) == 6
    (done,) = engine(allow_extrapolation=True).generate([prompt_of(230)], params(6))
    assert len(done.token_ids) == 6


def test_empty_text_is_refused(tokenizer):
    with pytest.raises(ValueError, match="at least one token"):
        engine(shipped(), num_slots=64, tokenizer=tokenizer).add("")


def test_too_many_waiting_is_a_clear_error_and_generate_waits_itself():
    made = engine(num_lanes=1, max_waiting=1)
    made.add([1], params())
    made.add([2], params())
    with pytest.raises(CapacityError, match="at most 1 requests may wait"):
        made.add([3], params())
    done = made.generate([[i] for i in range(4, 9)], params())
    assert [one.prompt_ids for one in done] == [(i,) for i in range(4, 9)]
    assert len(run(made)) == 2


def test_requests_go_to_the_class_they_name():
    classes = [LaneClass("small", 8, 1), LaneClass("large", 64, 2, policy="keydiff")]
    made = engine(classes=classes)
    names = [made.add(prompt_of(50), params(), lane_class=c) for c in (None, "large", "large")]
    first = made.step()
    assert made.stats().lanes == {"small": (1, 1), "large": (2, 2)}
    found = run(made)
    for output in first:
        found[output.request_id].insert(0, output)
    small = by_class(classes[0])
    large = by_class(classes[1])
    assert [ids_of(found[n]) for n in names] == [small, large, large]


def by_class(lane_class):
    return list(engine(classes=[lane_class]).generate([prompt_of(50)], params())[0].token_ids)


# ------------------------------------------------------------------------ streams and faults
def test_streams_and_steps_each_get_their_own():
    made = engine(num_lanes=3)
    plain = made.add(prompt_of(5), params(6))
    a = made.stream(prompt_of(6), params(6))
    b = made.stream(prompt_of(7), params(6))
    mixed = [ids_of([x]) + ids_of([y]) for x, y in zip(a, b)]
    assert len(mixed) == 6
    found = run(made)
    assert len(ids_of(found.pop(plain))) == 6
    assert not found
    lone = engine()
    want = [list(one.token_ids) for one in lone.generate([prompt_of(6), prompt_of(7)], params(6))]
    assert [list(ids) for ids in zip(*mixed)] == want


@pytest.mark.parametrize("is_started", [True, False])
def test_leaving_a_stream_cancels_its_request(is_started):
    made = engine(num_lanes=1)
    stream = made.stream(prompt_of(5), params(50))
    if is_started:
        next(stream)
    stream.close()
    assert made.stats().num_running == made.stats().num_waiting == 0
    assert not made.has_work
    made.check_integrity()


@pytest.mark.parametrize("mode", ["fast", "reference"])
def test_model_that_raises_ends_the_steps_requests_and_no_others(mode, monkeypatch):
    model = tiny()
    made = engine(model, num_lanes=2, mode=mode)
    names = [made.add(prompt_of(5, i), params(6)) for i in range(3)]
    made.step()
    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            made.step()
    made.check_integrity()
    found = run(made)
    assert [found[n][-1].finish for n in names] == ["error", "error", "length"]
    assert "ZeroDivisionError" in found[names[0]][-1].error
    want = engine().generate([prompt_of(5, 2)], params(6))[0].token_ids
    assert ids_of(found[names[2]]) == list(want)


def test_generate_that_fails_leaves_nothing_running():
    made = engine()
    with pytest.raises(ValueError, match="at least one token"):
        made.generate([[1], []])
    with pytest.raises(ValueError, match="params must be one or 2 of them, got 1"):
        made.generate([[1], [2]], [params()])
    assert not made.has_work
    assert made.generate([]) == []


def test_stats_count_what_was_done():
    made = engine(num_slots=12, chunk_size=8, token_budget=8)
    made.add(prompt_of(20), params(5))
    made.step()
    now = made.stats()
    assert (now.num_prompt_tokens, now.num_new_tokens, now.num_steps) == (8, 0, 1)
    run(made)
    now = made.stats()
    assert (now.num_prompt_tokens, now.num_new_tokens) == (20, 5)
    assert now.num_evicted == (24 - 12) + (24 - 10)  # the second layer's window is 10
    assert now.lanes == {"default": (0, 3)}
    assert now.nbytes > now.kv_nbytes == 3 * 2 * (12 + 10) * 2 * 8 * 4


def test_transient_of_a_selectors_whole_prompt_is_reported():
    sizes = []
    for policy in ("rce", "snapkv"):
        made = engine(policy=policy)
        made.generate([prompt_of(150)], params(1))
        sizes.append(made.stats().workspace_nbytes)
    kv_of_prompt = 2 * 150 * 2 * 8 * 4
    assert sizes[0] < kv_of_prompt < sizes[1]


# ------------------------------------------------------------------------ making an engine
def test_shipped_model_loads_by_name():
    made = kvmmu.Engine.load(SHIPPED, num_slots=32, num_lanes=2, policy="tova")
    (done,) = made.generate(["The old man"], kvmmu.SamplingParams(max_new_tokens=5))
    ids = made.tokenizer("The old man")["input_ids"]
    assert list(done.token_ids) == by_the_library(ids, 32, 5, policy="tova")
    assert shipped_in_transformers().config.vocab_size == made.model.config.vocab_size


def test_only_what_is_here_can_be_loaded():
    with pytest.raises(ValueError, match=r"a local folder, got 'meta/llama'"):
        Engine.load("meta/llama", 32)
    with pytest.raises(ValueError, match="device must be one that torch has here, got 'xpu'"):
        Engine.load(SHIPPED, 32, device="xpu")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_slots": 32, "lane_classes": LaneClass()},
        {"num_lanes": 2, "lane_classes": LaneClass()},
        {"policy": "h2o", "lane_classes": LaneClass()},
    ],
)
def test_load_takes_slots_or_classes(options):
    with pytest.raises(ValueError, match=r"either num_slots .* or lane_classes must be given"):
        Engine.load(SHIPPED, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": [LaneClass(), LaneClass()]}, "different names, got"),
        ({"mode": "quick"}, "mode must be 'fast' or 'reference'"),
        ({"token_budget": 0}, "token_budget must be"),
    ],
)
def test_engine_refuses_what_has_no_meaning(options, message):
    with pytest.raises(ValueError, match=message):
        engine(**options)


def test_engine_needs_a_class():
    with pytest.raises(ValueError, match="one or more of different names, got"):
        Engine(tiny(), [])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"name": ""}, "name of a lane class must be a text"),
        ({"num_lanes": 0}, "num_lanes must be an integer of at least 1, got 0"),
        ({"num_slots": 0}, "num_slots must be an integer of at least 1, got 0"),
        ({"policy": "rec"}, "did you mean 'rce'"),
        ({"num_slots": 8, "window": 6}, "num_slots must exceed num_sinks"),
    ],
)
def test_lane_class_is_checked_before_there_is_a_model(parts, message):
    with pytest.raises(ValueError, match=message):
        LaneClass(**parts)


def test_model_that_does_not_rotate_takes_in_cache_classes_only():
    model = Transformer.random(tiny_config(), positions="in_cache", backend="torch")
    with pytest.raises(ValueError, match="'default' must be 'in_cache'"):
        engine(model)
    (done,) = engine(model, positions="in_cache").generate([prompt_of(40)], params())
    (same,) = engine(positions="in_cache").generate([prompt_of(40)], params())
    assert done.token_ids == same.token_ids
