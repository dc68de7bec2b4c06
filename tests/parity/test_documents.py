"""Documents through a cache: as the full model where all fits, evicted first where not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import kvmmu
from kvmmu.evals.documents import Row, run_documents, summarise
from kvmmu.evals.loaders.base import Document
from kvmmu.evals.loaders.gsm8k import GSM8K
from kvmmu.evals.settings import Setting
from kvmmu.hf.cache import SlotCache

TASKS = Path(__file__).resolve().parents[3] / "shared" / "data" / "tasks"
STORY = "The rain had stopped, and Elizabeth walked along the shore to her father's house. "
ASK = Document("ask", STORY * 8 + "In the morning", ("",), "none", 24, task="write")
LAST = Document(
    "last", STORY * 8 + "The rain had", (" stopped",), "w", 1, task="word", mode="continue"
)


@pytest.fixture(scope="module")
def lm():
    return kvmmu.load("kvmmu-ref-1m")


def run(lm, setting, *documents, **options):
    return list(
        run_documents(lm, setting, documents, score=lambda d, text: float(len(text)), **options)
    )


@pytest.mark.parametrize("kind", ["static", "dynamic", "slots"])
def test_with_room_for_all_it_is_greedy_decoding(lm, kind):
    (row,) = run(lm, Setting(kind), ASK)
    ids = lm.encode(ASK.prompt)
    wanted = lm.model.generate(**ids, max_new_tokens=24, do_sample=False)[0, row.num_prompt :]
    assert row.text == lm.tokenizer.decode(wanted, skip_special_tokens=True)
    assert (row.num_new, row.num_cut, row.score) == (24, 0, float(len(row.text)))
    assert row.num_slots == row.num_prompt + 24


@pytest.mark.parametrize("kind", ["static", "dynamic", "slots"])
def test_with_room_for_all_a_continuation_has_the_models_likelihood(lm, kind):
    (row,) = run(lm, Setting(kind), LAST)
    ids = lm.encode(LAST.prompt + LAST.references[0])["input_ids"]
    with torch.inference_mode():
        every = lm.model(ids).logits.log_softmax(-1)[0, :-1]
    own = every.gather(-1, ids[0, 1:, None])[row.num_prompt - 1 :]
    assert row.log_likelihood == pytest.approx(float(own.sum()), rel=1e-4)
    greedy = bool((every.argmax(-1) == ids[0, 1:])[row.num_prompt - 1 :].all())
    assert (row.score, row.text, row.num_new) == (float(greedy), "", len(own))


@pytest.mark.parametrize("policy", ["rce", "snapkv"])
def test_a_small_cache_is_on_the_path_of_both(lm, policy):
    full, small = (
        run(lm, s, ASK, LAST) for s in (Setting(), Setting(policy=policy, compression=8))
    )
    assert small[0].text != full[0].text
    assert abs(small[1].log_likelihood / full[1].log_likelihood - 1) > 1e-3
    assert small[0].num_slots == math.ceil(full[0].num_slots / 8)
    assert small[0].kv_bytes < full[0].kv_bytes / 7


def test_the_prompt_is_read_in_small_chunks_and_the_rest_token_by_token(lm, monkeypatch):
    seen = []
    forward = type(lm.model).forward

    def spy(self, input_ids=None, **rest):
        if isinstance(rest.get("past_key_values"), SlotCache):
            seen.append(input_ids.shape[1])
        return forward(self, input_ids=input_ids, **rest)

    monkeypatch.setattr(type(lm.model), "forward", spy)
    (row,) = run(lm, Setting(compression=4), ASK)
    chunk = max(16, row.num_slots // 4)
    assert seen == [chunk] * ((row.num_prompt - 1) // chunk) + [(row.num_prompt - 1) % chunk] + (
        [1] * 24
    )


def test_writing_ends_before_the_first_stop(lm):
    (whole,) = run(lm, Setting(), ASK)
    stop = whole.text[8:11]
    document = Document("ask", ASK.prompt, ("",), "none", 24, stop=("never", stop))
    (row,) = run(lm, Setting(), document)
    assert row.text == whole.text[: whole.text.index(stop)]
    assert row.num_new < 24


def test_a_prompt_that_is_too_long_loses_its_middle(lm, monkeypatch):
    long = Document("long", " ".join(map(str, range(5000))), ("",), "none", 8)
    fed = []
    forward = type(lm.model).forward

    def spy(self, input_ids=None, **rest):
        fed.extend(input_ids[0].tolist())
        return forward(self, input_ids=input_ids, **rest)

    monkeypatch.setattr(type(lm.model), "forward", spy)
    (row,) = run(lm, Setting(compression=16), long, max_tokens=301)
    whole = lm.encode(long.prompt)["input_ids"][0].tolist()
    assert (row.num_prompt, row.num_cut) == (293, len(whole) - 293)
    assert fed[:293] == whole[:147] + whole[-146:]
    (row,) = run(lm, Setting(compression=64), long)
    assert row.num_prompt + 8 == lm.model.config.max_position_embeddings + 1
    with pytest.raises(ValueError, match="max_tokens must leave room"):
        run(lm, Setting(), long, max_tokens=9)


def test_a_continuation_that_adds_nothing_is_refused(lm):
    with pytest.raises(ValueError, match="must go on after its prompt"):
        run(lm, Setting(), Document("a", "text", ("",), "w", 1, mode="continue"))


def test_rows_are_averaged_by_task():
    row = Row("a", "t", "m", 1.0, "", None, 1, 1, 0, 1, 1, 2)
    word = Row("b", "w", "last_word", 0.0, "", -2.0, 1, 1, 0, 1, 1, 2)
    none = Row("c", "h", "pass_at_1", None, "x", None, 1, 1, 0, 1, 1, 2)
    table = summarise([row, row, Row("d", "t", "m", 0.0, "", None, 1, 1, 0, 1, 1, 2), word, none])
    assert table["t"] == {
        "metric": "m",
        "num_documents": 3,
        "score": pytest.approx(2 / 3),
        "perplexity": None,
    }
    assert table["w"]["perplexity"] == pytest.approx(math.exp(2))
    assert table["h"]["score"] is None


@pytest.mark.skipif(not TASKS.is_dir(), reason="GSM8K is not here")
def test_gsm8k_runs_from_its_file_to_its_score(lm):
    loader = GSM8K(TASKS, num_shots=2, max_new_tokens=8)
    first = next(iter(loader.documents()))
    counted = []
    (row,) = run_documents(
        lm, Setting(compression=8), [first], score=loader.score, tick=counted.append
    )
    assert (row.task, row.metric, row.score) == ("gsm8k", "exact_number", 0.0)
    assert counted == [1]
