"""The peers that run in this environment: all exact caches give the same greedy tokens."""

from __future__ import annotations

import pytest
import torch

from kvmmu.evals.bench import engine_peer
from kvmmu.evals.bench.shapes import SHAPES, make_model
from kvmmu.evals.bench.worker import _policy_settings
from kvmmu.hf import baselines

PROMPT = [260 + n * 7 % 50 for n in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(SHAPES["tiny"], tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def settings(folder, **more):
    return {
        "model": str(folder), "threads": 1, "dtype": "float32", "weights": "float32",
        "context": 128, "max_batch": 2, "num_slots": 96, "policy": _policy_settings("rce"),
    } | more  # fmt: skip


@pytest.fixture
def peer(folder, request):
    made = []

    def make(kind, **more):
        if kind == "engine":
            return engine_peer.Peer(settings(folder, **more))
        made.append(baselines.Peer(settings(folder, cache=kind, **more)))
        return made[-1]

    yield make
    for one in made:
        one._open.close()


def tokens(peer, count=10):
    return [*peer.prefill([PROMPT]), *peer.decode(count)[0]]


@pytest.mark.parametrize("kind", ["static", "slots", "engine"])
def test_greedy_tokens_equal_the_full_caches(peer, kind):
    exact = tokens(peer("dynamic"))
    assert tokens(peer(kind)) == exact
    assert len(set(exact)) > 2


@pytest.mark.parametrize("kind", ["dynamic", "static", "slots"])
def test_a_row_that_is_spread_goes_on_as_rows_read_together(peer, kind):
    one, both = peer(kind), peer(kind)
    one.prefill([PROMPT])
    one.spread(2)
    both.prefill([PROMPT] * 2)
    made = one.decode(5)
    assert len(made) == 2
    assert made == both.decode(5)


def test_the_engine_reads_a_batch_and_starts_afresh(peer):
    made = peer("engine")
    first = made.prefill([PROMPT] * 2)
    assert first[0] == first[1] == tokens(peer("dynamic"))[0] or len(first) == 2
    made.clear()
    assert tokens(made) == tokens(peer("dynamic"))


@pytest.mark.parametrize("kind", ["dynamic", "slots", "engine"])
def test_requests_under_a_cap_get_all_their_tokens(peer, kind):
    made = peer(kind).serve([PROMPT] * 5, new_tokens=6, cap_tokens=200)
    assert made["num_tokens"] == 30
    assert made["most_users"] == (200 // 46 if kind == "dynamic" else 2)


@pytest.mark.parametrize("kind", ["dynamic", "slots", "engine"])
def test_a_cap_that_holds_nobody_is_an_error(peer, kind):
    with pytest.raises(ValueError, match="cap of 20 tokens must hold one"):
        peer(kind).serve([PROMPT], new_tokens=6, cap_tokens=20)


def test_slots_take_the_bytes_of_slots(peer):
    made = peer("slots", num_slots=32)
    made.prefill([PROMPT * 3])
    assert made.kv_bytes() == 2 * 2 * 2 * 16 * 4 * 32


def test_a_policys_parameters_reach_the_peer(peer):
    made = peer("slots", policy=_policy_settings("rce:decay=0.9"))
    assert made._policy().decay == 0.9


def test_an_unknown_cache_is_refused(folder):
    with pytest.raises(ValueError, match="cache must be dynamic, static or slots"):
        baselines.Peer(settings(folder, cache="paged"))
