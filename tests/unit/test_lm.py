"""kvmmu.load and LM: options are checked at once, generate and stream keep their promises."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import StoppingCriteria

import kvmmu
from kvmmu import RCE, CapacityError, IntegrityError

MODEL = "kvmmu-ref-1m"
STORY = "It was on a dreary night of November that I beheld the accomplishment of my toils."


@pytest.fixture
def lm():
    return kvmmu.load(MODEL, 24)


def refusal(kind, words):
    return pytest.raises(kind, match=re.escape(words))


# ---------------------------------------------------------------------------------------- options
def test_unknown_option_is_refused():
    with refusal(TypeError, "num_slot"):
        kvmmu.load(MODEL, num_slot=5)


@pytest.mark.parametrize("size", [{}, {"compression": 8}, {"num_slots": 64}])
@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"policy": "rec"}, "did you mean 'rce'?"),
        ({"granularity": "row"}, "granularity must be one of"),
        ({"positions": "none"}, "positions must be one of"),
        ({"window": -1}, "window must be an integer"),
        ({"allow_extrapolation": "no"}, "allow_extrapolation must be True or False, got 'no'"),
        ({"codec": "plian"}, "did you mean 'plain'?"),
    ],
)
def test_wrong_option_is_refused_at_load_in_every_mode(size, option, words):
    with refusal(ValueError, words):
        kvmmu.load(MODEL, **size, **option)


@pytest.mark.parametrize(
    "option",
    [
        {"policy": "h2o"},
        {"policy": RCE(decay=0.5)},
        {"window": 4},
        {"num_sinks": 0},
        {"granularity": "layer"},
        {"positions": "in_cache"},
        {"chunk_size": 8},
    ],
)
def test_full_cache_takes_no_option_of_a_slot_cache(option):
    with refusal(ValueError, f"{next(iter(option))} must go with num_slots or compression"):
        kvmmu.load(MODEL, **option)


def test_full_cache_takes_the_defaults():
    assert kvmmu.load(MODEL, policy=RCE()).make_cache(8) is None


@pytest.mark.parametrize("value", ["8", True, float("nan"), float("inf"), 0.5])
def test_compression_is_a_number_of_at_least_1(value):
    with refusal(ValueError, "compression must be at least 1"):
        kvmmu.load(MODEL, compression=value)


def test_compression_that_leaves_too_few_slots_is_named():
    lm = kvmmu.load(MODEL, compression=8)
    with refusal(ValueError, "compression 8 of ") as caught:
        lm.generate("hi", max_new_tokens=10)
    assert "num_slots must exceed num_sinks + window" in str(caught.value)


@pytest.mark.parametrize("dtype", ["int8", "float64", "nosuch", torch.int8, 32, None])
def test_dtype_is_one_of_three(dtype):
    with refusal(ValueError, "dtype must be float32, bfloat16 or float16"):
        kvmmu.load(MODEL, dtype=dtype)


def test_dtype_may_be_torchs_own():
    assert kvmmu.load(MODEL, dtype=torch.bfloat16).model.dtype == torch.bfloat16


@pytest.mark.parametrize("device", ["foo", "cuda:99", 3.5])
def test_device_that_is_not_here_is_refused(device):
    with refusal(ValueError, f"device must be one that torch has here, got '{device}'"):
        kvmmu.load(MODEL, device=device)


# --------------------------------------------------------------------------------------- generate
@pytest.mark.parametrize("size", [{}, {"num_slots": 24}])
def test_beams_and_samples_are_rows_of_the_cache(size):
    lm = kvmmu.load(MODEL, **size)
    assert isinstance(lm.generate(STORY, max_new_tokens=4, num_beams=2), str)
    torch.manual_seed(0)
    made = lm.generate(STORY, max_new_tokens=4, num_return_sequences=3, do_sample=True)
    assert len(made) == 3
    assert all(isinstance(text, str) for text in made)
    two = lm.generate(STORY, max_new_tokens=4, num_beams=3, num_return_sequences=2)
    assert len(two) == 2


def test_beams_over_enough_slots_equal_those_over_a_full_cache():
    full, slots = kvmmu.load(MODEL), kvmmu.load(MODEL, 64)
    options = {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 3}
    assert full.generate(STORY, **options) == slots.generate(STORY, **options)


@pytest.mark.parametrize("prompt", [[STORY], 3, None, b"text"])
def test_prompt_is_one_str(lm, prompt):
    with refusal(TypeError, "prompt must be one str"):
        lm.generate(prompt)


@pytest.mark.parametrize("name", ["max_new_tokens", "num_beams", "num_return_sequences"])
@pytest.mark.parametrize("value", [0, 2.5, "5", True])
def test_counts_are_integers(lm, name, value):
    with refusal(ValueError, f"{name} must be an integer of at least 1, got {value!r}"):
        lm.generate(STORY, **{name: value})


@pytest.mark.parametrize("name", ["num_beams", "num_return_sequences"])
def test_stream_is_of_one_sequence(lm, name):
    with refusal(ValueError, "a stream must be of one sequence, got 2"):
        list(lm.stream(STORY, **{name: 2}, max_new_tokens=3))


@pytest.mark.parametrize("name", ["return_dict_in_generate", "past_key_values", "input_ids"])
def test_what_generate_sets_itself_is_refused(lm, name):
    with refusal(ValueError, f"{name} must not be given"):
        lm.generate(STORY, **{name: True})


@pytest.mark.parametrize("size", [{}, {"num_slots": 24}, {"compression": 8}])
def test_text_beyond_the_trained_positions_is_refused_before_the_first_forward(size, monkeypatch):
    lm = kvmmu.load(MODEL, **size)
    limit = lm.model.config.max_position_embeddings
    length = lm.encode(STORY)["input_ids"].shape[1]
    monkeypatch.setattr(lm.model, "generate", lambda **options: pytest.fail("was run"))
    most = limit + 1 - length  # the last new token is never fed
    with refusal(CapacityError, f"at most {limit + 1}") as caught:
        lm.generate(STORY, max_new_tokens=most + 1)
    assert f"got {limit + 2}" in str(caught.value)
    with pytest.raises(pytest.fail.Exception, match="was run"):
        lm.generate(STORY, max_new_tokens=most)


@pytest.mark.parametrize("option", [{"allow_extrapolation": True}, {"positions": "in_cache"}])
def test_text_may_go_beyond_the_trained_positions_where_that_is_said(option):
    lm = kvmmu.load(MODEL, 24, **option)
    limit = lm.model.config.max_position_embeddings
    assert lm.make_cache(limit + 2) is not None


def test_masses_are_recorded_and_their_size_said_before(tmp_path):
    lm = kvmmu.load(MODEL, 24, policy=RCE(normalize="none", fixed_point=True))
    file = tmp_path / "run.trace"
    with pytest.warns(UserWarning, match=r"masses take up to \d+ bytes") as caught:
        lm.generate(STORY, max_new_tokens=4, trace=file, masses=True)
    said = int(re.search(r"\d+", str(caught[0].message))[0])
    events = list(kvmmu.trace.read(file).events(masses=True))
    held = sum(event.masses.nbytes for event in events)
    assert 0 < held <= said


def test_masses_need_a_trace(lm):
    with refusal(ValueError, "masses must go with trace"):
        lm.generate(STORY, masses=True)


def test_masses_need_a_policy_of_integers(lm, tmp_path):
    with refusal(ValueError, "masses must go with policy RCE"):
        lm.generate(STORY, trace=tmp_path / "run.trace", masses=True)
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------- stream
def test_pieces_joined_are_what_generate_returns(lm):
    assert "".join(lm.stream(STORY, max_new_tokens=12)) == lm.generate(STORY, max_new_tokens=12)


def test_leaving_a_stream_stops_it_and_restores_the_model(lm):
    before = lm.model.config._attn_implementation
    stream = lm.stream(STORY, max_new_tokens=400)
    next(stream)
    stream.close()
    assert lm.cache.get_seq_length() < 400
    assert lm.model.config._attn_implementation == before
    assert lm.generate(STORY, max_new_tokens=3)


def test_error_in_a_stream_is_raised_in_the_caller(lm):
    before = lm.model.config._attn_implementation
    with refusal(ValueError, "max_new_tokens must be an integer of at least 1, got 0"):
        list(lm.stream(STORY, max_new_tokens=0))
    assert lm.model.config._attn_implementation == before
    assert lm.generate(STORY, max_new_tokens=3)


def test_second_generation_is_refused_while_a_stream_is_open(lm):
    want = lm.generate(STORY, max_new_tokens=40)
    stream = lm.stream(STORY, max_new_tokens=40)
    first = next(stream)
    with refusal(IntegrityError, "one generation at a time"):
        lm.generate(STORY, max_new_tokens=3)
    with refusal(IntegrityError, "one generation at a time"):
        next(lm.stream(STORY, max_new_tokens=3))
    assert first + "".join(stream) == want  # nothing was lost
    assert lm.generate(STORY, max_new_tokens=40) == want


class _After(StoppingCriteria):
    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, scores, **options):
        done = input_ids.shape[1] >= self.length
        return torch.full((len(input_ids),), done, dtype=torch.bool)


@pytest.mark.parametrize("wrap", [lambda item: item, lambda item: [item]])
def test_own_stopping_criteria_are_heeded(lm, wrap):
    length = lm.encode(STORY)["input_ids"].shape[1]
    list(lm.stream(STORY, max_new_tokens=40, stopping_criteria=wrap(_After(length + 5))))
    assert lm.cache.get_seq_length() == length + 4
