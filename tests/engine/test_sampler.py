"""Logits to tokens: by each row's own parameters, whoever shares the batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from kvmmu.engine.request import SamplingParams
from kvmmu.engine.sampler import RowState, _head, sample

V = 50


def row(prompt=(1, 2, 3), **params):
    return RowState(SamplingParams(**params), prompt, V)


def logits_of(rows, seed=0):
    return 3 * torch.randn(rows, V, generator=torch.Generator().manual_seed(seed))


def tokens(logits, rows):
    return [draw.token_id for draw in sample(logits, rows)]


# ------------------------------------------------------------------------ greedy
def test_greedy_takes_the_first_of_the_greatest_logits():
    logits = torch.zeros(2, V)
    logits[0, [7, 20]] = 5.0
    assert tokens(logits, [row(), row()]) == [7, 0]


def test_greedy_and_sampled_rows_share_a_batch():
    logits = logits_of(3)
    mixed = tokens(logits, [row(), row(temperature=1.0, seed=4), row()])
    assert mixed[0] == int(logits[0].argmax())
    assert mixed[2] == int(logits[2].argmax())
    assert mixed[1] == tokens(logits[1:2], [row(temperature=1.0, seed=4)])[0]


def test_tiny_temperature_is_greedy():
    logits = logits_of(4)
    drawn = tokens(logits, [row(temperature=1e-30, seed=i) for i in range(4)])
    assert drawn == logits.argmax(-1).tolist()


# ------------------------------------------------------------------------ drawing
def test_same_seed_draws_the_same_and_another_seed_another():
    logits = torch.zeros(1, V)
    a = [tokens(logits, [state])[0] for state in [row(temperature=1.0, seed=5)] for _ in range(20)]
    b = [tokens(logits, [state])[0] for state in [row(temperature=1.0, seed=5)] for _ in range(20)]
    c = [tokens(logits, [state])[0] for state in [row(temperature=1.0, seed=6)] for _ in range(20)]
    assert a == b != c
    assert len(set(a)) > 5


def test_rows_without_a_seed_draw_apart():
    states = [row(temperature=1.0) for _ in range(8)]
    assert len(set(tokens(torch.zeros(8, V), states))) > 1


@given(
    seed=st.integers(0, 50),
    neighbours=st.lists(
        st.sampled_from(
            [
                {"temperature": 2.0, "top_k": 3},
                {"temperature": 0.5, "top_p": 0.4, "min_p": 0.1},
                {"repetition_penalty": 2.0},
                {"temperature": 1.0, "logprobs": 2},
            ]
        ),
        max_size=4,
    ),
    at=st.integers(0, 4),
)
def test_draw_does_not_depend_on_batch_mates(seed, neighbours, at):
    mine = {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.3, "seed": seed}
    logits = logits_of(1, seed)
    alone = sample(logits, [row(**mine, logprobs=3)])[0]
    others = [row(**params) for params in neighbours]
    at = min(at, len(others))
    batch = logits_of(len(others) + 1, seed + 1)
    batch[at] = logits[0]
    shared = sample(batch, [*others[:at], row(**mine, logprobs=3), *others[at:]])[at]
    assert shared == alone


def test_frequencies_are_the_probabilities():
    logits = torch.full((1, V), -torch.inf).clamp(min=-30)
    logits[0, :3] = torch.tensor([0.5, 0.3, 0.2]).log()
    n = 4000
    state = row(temperature=1.0, seed=1)
    drawn = torch.tensor([tokens(logits, [state])[0] for _ in range(n)]).bincount(minlength=3)
    share = drawn[:3] / n
    assert torch.allclose(share, torch.tensor([0.5, 0.3, 0.2]), atol=4 * (0.25 / n) ** 0.5)


def kept(logits, **params):
    """Which tokens can be drawn at all: those that some of many seeds draws."""
    found = set()
    flat = logits.expand(400, -1)
    for start in (0, 400):
        found |= set(tokens(flat, [row(seed=start + i, **params) for i in range(400)]))
    return found


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"top_k": 1}, {0}),
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_p": 0.49}, {0}),
        ({"top_p": 0.51}, {0, 1}),
        ({"top_p": 1e-9}, {0}),
        ({"min_p": 1.0}, {0}),
        ({"min_p": 0.35}, {0, 1, 2}),
        ({"top_k": 3, "top_p": 0.6}, {0, 1}),  # of three, 0.526 + 0.316 + 0.158
        ({"top_k": 99}, {0, 1, 2, 3}),
    ],
)
def test_what_is_kept_is_what_the_words_say(params, expected):
    logits = torch.full((1, V), -60.0)
    logits[0, :4] = torch.tensor([0.5, 0.3, 0.19, 0.01]).log()
    logits[0, 3] = torch.tensor(0.05).log() if params == {"top_k": 99} else logits[0, 3]
    assert kept(logits, temperature=1.0, **params) == expected


def test_ties_at_the_border_of_top_k_stay_as_in_transformers():
    logits = torch.full((1, V), -60.0)
    logits[0, [3, 5, 9]] = 1.0
    assert kept(logits, temperature=1.0, top_k=2) == {3, 5, 9}


@given(
    seed=st.integers(0, 200),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([None, 1, 7, 49]),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    penalty=st.sampled_from([1.0, 1.5, 0.7]),
)
def test_the_same_tokens_may_come_as_from_transformers(
    seed, temperature, top_k, top_p, min_p, penalty
):
    logits = logits_of(1, seed)
    prompt = torch.tensor([[4, 9, 9, 30]])
    theirs = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty)])
    theirs.append(TemperatureLogitsWarper(temperature))
    if top_k is not None:
        theirs.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        theirs.append(TopPLogitsWarper(top_p))
    if min_p > 0:
        theirs.append(MinPLogitsWarper(min_p))
    allowed = theirs(prompt, logits.clone()).isfinite()[0]
    params = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    states = [
        row(prompt[0].tolist(), seed=i, repetition_penalty=penalty, **params) for i in range(60)
    ]
    drawn = tokens(logits.expand(60, -1), states)
    assert bool(allowed[drawn].all())
    if int(allowed.sum()) == 1:
        assert set(drawn) == {int(allowed.int().argmax())}


@pytest.mark.parametrize("num_likeliest", [1, 2])
def test_tokens_that_have_top_p_to_the_bit_are_enough(num_likeliest):
    logits = torch.full((1, V), -20.0)
    logits[0, :3] = torch.tensor([0.0, -1.0, -2.0])
    share = float(logits.softmax(-1)[0, :num_likeliest].double().sum())
    assert kept(logits, temperature=1.0, top_p=share) == set(range(num_likeliest))


def test_row_without_top_p_keeps_all_its_tokens_beside_one_with():
    logits = torch.full((2, V), -40.0)
    logits[:, 7] = 0.0  # in float32 its probability is 1, and nothing is left for the others
    params = [SamplingParams(temperature=1.0, top_p=p) for p in (0.5, 1.0)]
    left = _head(logits, params)
    assert left[0].isfinite().nonzero().tolist() == [[7]]
    assert torch.equal(left[1], logits[1])


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_least_and_greatest_random_number_draw_what_is_kept(number, monkeypatch):
    drawn = torch.tensor([number], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *size, **options: drawn)
    assert tokens(logits_of(8), [row(temperature=1.0, top_k=1) for _ in range(8)]) == (
        logits_of(8).argmax(-1).tolist()
    )


# ------------------------------------------------------------------------ penalties, logprobs
def test_repetition_penalty_counts_the_prompt_and_what_was_made():
    logits = torch.zeros(1, V)
    logits[0, 1:5] = torch.tensor([4.0, 3.9, 3.8, 3.7])
    state = row([1], repetition_penalty=1.2)
    assert [tokens(logits, [state])[0] for _ in range(3)] == [2, 3, 4]
    assert float(logits[0, 1]) == 4.0  # what the model said is not changed


def test_repetition_penalty_lowers_negative_logits_too():
    logits = torch.full((1, V), -9.0)
    logits[0, 1:3] = torch.tensor([-1.0, -1.5])
    assert tokens(logits, [row([1], repetition_penalty=2.0)]) == [2]


@pytest.mark.parametrize("n", [0, 1, 5])
def test_logprobs_are_those_of_the_models_own_logits(n):
    logits = logits_of(1)
    state = row(temperature=0.5, seed=1, top_k=5, repetition_penalty=2.0, logprobs=n)
    state.note(int(logits.argmax()))  # lowered where it is drawn from, not in what is told
    draw = sample(logits, [state])[0]
    want = logits[0].log_softmax(-1)
    assert draw.logprob.token_id == draw.token_id
    assert draw.logprob.logprob == pytest.approx(float(want[draw.token_id]))
    best = want.topk(n)
    assert [i for i, _ in draw.logprob.top] == best.indices.tolist()
    assert [p for _, p in draw.logprob.top] == pytest.approx(best.values.tolist())


def test_no_logprobs_unless_asked():
    assert sample(logits_of(1), [row()])[0].logprob is None


# ------------------------------------------------------------------------ bad rows
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "seed": 3}])
def test_bad_logits_fail_their_own_row_alone(bad, params):
    logits = logits_of(3)
    want = tokens(logits[[0, 2]], [row(**params), row(**params)])
    logits[1, 17] = bad
    states = [row(**params) for _ in range(3)]
    draws = sample(logits, states)
    assert "logits must be finite" in draws[1].error
    assert [draws[0].token_id, draws[2].token_id] == want
    assert draws[0].error is draws[2].error is None


# ------------------------------------------------------------------------ parameters
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": -1}, "temperature must be a finite number at least 0, got -1"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"temperature": float("inf")}, "temperature must be"),
        ({"temperature": True}, "temperature must be"),
        ({"top_p": 0.0}, "top_p must be a finite number above 0 and at most 1, got 0"),
        ({"top_p": 1.1}, "top_p must be"),
        ({"min_p": -0.1}, "min_p must be"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a finite number above 0, got 0"),
        ({"top_k": 0}, "top_k must be an integer of at least 1, got 0"),
        ({"top_k": 2.0}, "top_k must be"),
        ({"max_new_tokens": 0}, "max_new_tokens must be"),
        ({"max_new_tokens": None}, "max_new_tokens must be"),
        ({"logprobs": -1}, "logprobs must be"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**63}, "seed must be below"),
        ({"ignore_eos": 1}, "ignore_eos must be True or False, got 1"),
        ({"stop": [""]}, "stop must hold strings that are not empty"),
        ({"stop": [3]}, "stop must hold strings"),
        ({"stop": 3}, "stop must be a string or a list"),
        ({"stop_token_ids": [-1]}, "stop_token_ids must hold token ids"),
        ({"stop_token_ids": 5}, "stop_token_ids must be a list"),
    ],
)
def test_parameters_out_of_range_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**params)


def test_one_stop_string_is_a_list_of_one():
    assert SamplingParams(stop="ab").stop == ("ab",)
    assert SamplingParams(stop=["a", "b"], stop_token_ids=[1]).stop_token_ids == (1,)
