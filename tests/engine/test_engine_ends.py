"""How requests end: what is let out of the text, and what is said of the end."""

from __future__ import annotations

import pytest
from engine_models import SHIPPED, shipped

from kvmmu.engine.engine import Engine
from kvmmu.engine.lane_class import LaneClass
from kvmmu.engine.request import SamplingParams
from kvmmu.hf.load import load_tokenizer

WORDS = "The sea was calm, the wind was low, and the watch was long. "


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(SHIPPED)


@pytest.fixture(scope="module")
def made(tokenizer):
    return Engine(shipped(), LaneClass(num_slots=64, num_lanes=2), tokenizer=tokenizer)


@pytest.fixture(scope="module")
def free(made):
    """What comes without a stop. -> token ids, and a token that no earlier one equals"""
    ids = continued(made).token_ids
    at = next(i for i in range(8, len(ids)) if ids[i] not in ids[:i])
    return ids, at


def continued(made, n=40, **more):
    (done,) = made.generate([WORDS], SamplingParams(max_new_tokens=n, ignore_eos=True, **more))
    return done


def test_text_of_the_token_that_ends_it_is_left_out(made, free, tokenizer):
    ids, at = free
    done = continued(made, stop_token_ids=[ids[at]])
    assert done.token_ids == ids[: at + 1]
    assert done.text == tokenizer.decode(ids[:at])
    assert tokenizer.decode([ids[at]])


def test_begun_stop_string_is_let_out_when_a_token_ends_the_text(made, free, tokenizer):
    ids, at = free
    text = tokenizer.decode(ids[:at])
    done = continued(made, stop_token_ids=[ids[at]], stop=text[-3:] + "\x00")
    assert (done.text, done.finish) == (text, "stop")


def test_end_by_a_stop_is_one_even_at_the_last_token_allowed(made, free, tokenizer):
    ids, at = free
    assert continued(made, at + 1, stop_token_ids=[ids[at]]).finish == "stop"
    last = tokenizer.decode(ids[: at + 1])[-1]
    n = next(n for n in range(1, 41) if last in tokenizer.decode(ids[:n]))
    assert continued(made, n, stop=last).finish == "stop"
    assert continued(made, at + 1).finish == "length"
