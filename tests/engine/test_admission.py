"""A text past a model's positions is refused when it comes; one that fits never fails later."""

from __future__ import annotations

import pytest
import tiny_models

from kvmmu.engine.engine import Engine
from kvmmu.engine.lane_class import LaneClass
from kvmmu.engine.model import Transformer
from kvmmu.engine.request import SamplingParams
from kvmmu.errors import CapacityError

LIMIT = 40
_FACTORS = {"short_factor": [1.0 + i / 4 for i in range(8)], "long_factor": [4.0] * 8}
MODELS = {
    "gpt2": ("gpt2", {"max_position_embeddings": LIMIT}),
    "opt": ("opt", {"max_position_embeddings": LIMIT}),
    "llama": ("llama", {"max_position_embeddings": LIMIT}),
    "longrope": (
        "phi3",
        {
            "max_position_embeddings": 20 * LIMIT,  # trained, but with other angles past the first
            "original_max_position_embeddings": LIMIT,
            "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4} | _FACTORS,
        },
    ),
}
EXTRAPOLATES = "use a lane class with positions='in_cache', or allow_extrapolation=True"
RENUMBERS = "use a lane class with positions='in_cache'"
CURES = {"gpt2": "", "opt": "", "llama": EXTRAPOLATES, "longrope": RENUMBERS}


@pytest.fixture(scope="module", params=MODELS)
def named(request, tmp_path_factory):
    """A model's name and the model."""
    return request.param, loaded(request.param, tmp_path_factory)


@pytest.fixture(scope="module", params=["llama", "longrope"])
def turning(request, tmp_path_factory):
    """A model that turns its keys."""
    return request.param, loaded(request.param, tmp_path_factory)


def loaded(name, tmp_path_factory):
    kind, changes = MODELS[name]
    folder = tmp_path_factory.mktemp(name)
    tiny_models.make(kind, **changes).save_pretrained(folder)
    return Transformer.load(folder, backend="torch")


def engine(model, policy="rce", **parts):
    sizes = {"num_slots": 12, "num_lanes": 2, "chunk_size": 8}
    return Engine(model, LaneClass(policy=policy, **(sizes | parts)))


def new(n):
    return SamplingParams(max_new_tokens=n, ignore_eos=True)


def refusal(made, num_prompt, num_new):
    """Add a text that must be refused; nothing may stay of it. -> what was said"""
    before = made.stats()
    with pytest.raises(CapacityError) as caught:
        made.add([3] * num_prompt, new(num_new))
    assert made.stats() == before
    assert not made.has_work
    said = str(caught.value)
    assert "\n" not in said
    return said


def serves(made, num_prompt, num_new):
    (done,) = made.generate([[3] * num_prompt], new(num_new))
    made.check_integrity()
    return (done.finish, len(done.token_ids)) == ("length", num_new)


@pytest.mark.parametrize("policy", ["rce", "snapkv"])
@pytest.mark.parametrize("num_prompt", [1, LIMIT - 3, LIMIT])
def test_text_is_served_up_to_the_last_position_and_refused_past_it(named, policy, num_prompt):
    name, model = named
    made = engine(model, policy)
    num_new = LIMIT + 1 - num_prompt  # the last token is not fed
    said = refusal(made, num_prompt, num_new + 1)
    assert f"at most {LIMIT + 1} " in said
    assert f"got {LIMIT + 2}; " in said
    assert said.endswith("shorten them" + (CURES[name] and f"; {CURES[name]}"))
    assert serves(made, num_prompt, num_new)


@pytest.mark.parametrize("policy", ["rce", "snapkv"])
def test_extrapolation_serves_more_only_where_angles_go_on(named, policy):
    name, model = named
    made = engine(model, policy, allow_extrapolation=True)
    if name == "llama":
        assert serves(made, LIMIT + 20, 9)
        return
    assert "allow_extrapolation" not in refusal(made, LIMIT + 1, 1)
    assert serves(made, LIMIT, 1)


def test_text_whose_keys_are_numbered_in_the_cache_has_no_end(turning):
    _, model = turning
    made = engine(model, positions="in_cache")
    assert serves(made, 3 * LIMIT, 2 * LIMIT)


def test_lane_that_numbers_keys_must_lie_within_the_positions(turning):
    _, model = turning
    engine(model, positions="in_cache", num_slots=LIMIT - 8, chunk_size=8)
    with pytest.raises(CapacityError, match=rf"at most the model's trained {LIMIT} positions"):
        engine(model, positions="in_cache", num_slots=LIMIT - 7, chunk_size=8)


@pytest.mark.parametrize("is_allowed", [False, True])
def test_selector_that_numbers_keys_takes_a_prompt_within_the_positions(turning, is_allowed):
    name, model = turning
    made = engine(model, "snapkv", positions="in_cache", allow_extrapolation=is_allowed)
    assert serves(made, LIMIT, 2 * LIMIT)
    if name == "llama" and is_allowed:
        assert serves(made, LIMIT + 1, 3)
        return
    said = refusal(made, LIMIT + 1, 3)
    assert f"at most the model's {LIMIT} positions with policy 'snapkv'" in said
