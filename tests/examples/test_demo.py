"""The demonstration: what it scores, what it says, what it draws."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import kvmmu
from kvmmu.cli.demo import run_demo
from kvmmu.evals.answers import feed, score
from kvmmu.evals.costs import decode_rates, peak_nbytes
from kvmmu.evals.demo import TASKS, Plan
from kvmmu.evals.settings import Setting
from kvmmu.evals.source import Source, shipped_book
from kvmmu.evals.streams import Answer, Stream, draw, pages
from kvmmu.evals.tasks.base import Query
from kvmmu.hf.record import record
from kvmmu.report.plots import plot_survivors

N = 128


@pytest.fixture(scope="module")
def lm():
    return kvmmu.load("kvmmu-ref-1m")


@pytest.fixture(scope="module")
def source(lm):
    return Source.make(shipped_book(), lm.tokenizer)


def draw_rows(source, name, **options):
    """Draw rows of one of the demonstration's tasks."""
    task, mode = TASKS[name]
    return draw(task, [source], mode=mode, **options)


# --------------------------------------------------------------------------------------- scoring
class Oracle:
    """A model of 50 tokens that knows what comes next, and errs where it is told to."""

    device = "cpu"

    def __init__(self, ids, wrong_at):
        self.ids, self.wrong_at, self.seen = ids, wrong_at, 0

    def __call__(self, ids, **options):
        self.seen += ids.shape[1]
        following = self.ids[:, self.seen : self.seen + 1].clone()
        if self.seen in self.wrong_at:
            following = (following + 1) % 50
        return SimpleNamespace(logits=torch.nn.functional.one_hot(following, 50).float() * 100)


SCRIPTED = SimpleNamespace(
    make=lambda model, **sizes: SimpleNamespace(layers=[]),
    enabled=nullcontext,
    call_size=lambda num_tokens: 7,
    num_slots=lambda num_tokens: num_tokens,
)


def asked(row, at):
    return Query(
        prompt_ids=tuple(row[at - 2 : at].tolist()), answer_ids=tuple(row[at : at + 3].tolist())
    )


def scripted(wrong_at):
    """Score the oracle on two rows with answers at [20, 23) and [26, 29)."""
    ids = torch.arange(60).view(2, 30) % 50
    answers = tuple(
        Answer(row, at, at + 3, asked(ids[row], at)) for row in (0, 1) for at in (20, 26)
    )
    stream = Stream("task", ids, 15, answers)
    return score(Oracle(ids, wrong_at), stream, SCRIPTED)


def test_model_that_is_always_right_scores_all():
    made = scripted(set())
    assert made.is_exact == (True,) * 4
    assert made.scores == (1.0,) * 4
    assert made.perplexity == pytest.approx(1.0)
    assert made.num_scored == 2 * 14


def test_model_that_is_always_wrong_scores_none():
    made = scripted(set(range(30)))
    assert made.num_right == 0
    assert made.perplexity > 1e10


@pytest.mark.parametrize("at", [20, 21, 22])
def test_one_wrong_token_makes_an_answer_wrong(at):
    assert scripted({at}).is_exact == (False, True, False, True)


@pytest.mark.parametrize("at", [19, 23, 25, 29])
def test_wrong_token_beside_an_answer_does_not_count(at):
    assert scripted({at}).num_right == 4


def test_answers_are_never_part_of_the_context():
    query = Query((1,), (0, 0, 0))
    with pytest.raises(ValueError, match="answers must lie"):
        Stream("task", torch.zeros(1, 30, dtype=torch.long), 15, (Answer(0, 15, 18, query),))


# --------------------------------------------------------------------------------------- streams
@pytest.mark.parametrize("task", TASKS)
def test_answer_stands_in_the_text_as_its_fact_says(lm, source, task):
    stream = draw_rows(source, task, num_tokens=N, num_rows=3, seed=1)
    assert stream.num_tokens == N
    for answer in stream.answers:
        start = stream.facts[answer.row][answer.key]
        row = stream.ids[answer.row]
        told = lm.tokenizer.decode(row[start : start + 4])
        assert told == f" {answer.key} " + lm.tokenizer.decode(row[answer.start : answer.stop])[1:]


def test_late_question_is_not_in_the_context(lm, source):
    stream = draw_rows(source, "late_query", num_tokens=N, num_rows=4, seed=1)
    text = [lm.tokenizer.decode(row) for row in stream.ids[:, : stream.num_context]]
    assert not any(f"? {answer.key}" in text[answer.row] for answer in stream.answers)


def test_seen_question_ends_the_context(lm, source):
    stream = draw_rows(source, "question_seen", num_tokens=N, num_rows=4, seed=1)
    for answer in stream.answers:
        text = lm.tokenizer.decode(stream.ids[answer.row, : stream.num_context])
        assert text.endswith(f"? {answer.key}")


def test_streams_repeat_with_their_seed(source):
    one, two, other = (
        draw_rows(source, "hot_set", num_tokens=N, num_rows=2, seed=s) for s in (1, 1, 2)
    )
    assert torch.equal(one.ids, two.ids)
    assert not torch.equal(one.ids, other.ids)


def test_any_tokenizer_gets_keys_of_one_length():
    class Letters:
        def encode(self, text, add_special_tokens):
            return [ord(c) for c in text]

    source = Source.make("some text", Letters())
    assert len(source.keys) > 10
    assert len({len(key) for key in source.keys}) == 1


# --------------------------------------------------------------------------------------- caches
@pytest.mark.parametrize("task", TASKS)
def test_enough_slots_answer_as_the_full_cache_does(lm, source, task):
    stream = draw_rows(source, task, num_tokens=N, num_rows=2, seed=3)
    settings = (Setting("static"), Setting("dynamic"), Setting("slots", "rce", 1))
    made = [score(lm.model, stream, setting) for setting in settings]
    assert made[0].is_exact == made[1].is_exact == made[2].is_exact
    for other in made[1:]:
        assert other.perplexity == pytest.approx(made[0].perplexity, rel=1e-4)


@pytest.mark.parametrize("policy", ["rce", "snapkv"])
def test_batch_is_exactly_its_rows(lm, source, policy):
    stream = draw_rows(source, "late_query", num_tokens=N, num_rows=3, seed=3)
    setting = Setting("slots", policy, 4)

    def guesses(part):
        cache = setting.make(lm.model, batch_size=len(part.ids), num_tokens=N)
        with setting.enabled(lm.model):
            return feed(lm.model, cache, part, chunk=setting.call_size(N))[0]

    rows = torch.cat([guesses(stream.row(b)) for b in range(3)])
    assert torch.equal(guesses(stream), rows)


@pytest.mark.parametrize(("compression", "chunk"), [(8, 16), (4, 16), (1, 32)])
def test_chunk_is_small_beside_the_cache(lm, compression, chunk):
    setting = Setting("slots", "rce", compression)
    assert setting.chunk_size(N) == chunk
    made = setting.make(lm.model, batch_size=1, num_tokens=N)
    assert made.options.chunk_size == chunk


def test_bytes_are_those_of_the_slots(lm, source):
    text = pages(source, num_tokens=N, num_scored=4, num_rows=2, seed=0)
    full = score(lm.model, text, Setting("static"))
    slots = score(lm.model, text, Setting("slots", "streaming_llm", 4))
    assert full.kv_bytes == 4 * slots.kv_bytes


@pytest.mark.parametrize("options", [{"kind": "half"}, {"compression": 0.5}])
def test_setting_out_of_range_is_refused(options):
    with pytest.raises(ValueError, match="must be"):
        Setting(**options)


def test_peak_grows_with_what_a_cache_keeps(lm, source):
    text = pages(source, num_tokens=256, num_scored=8, num_rows=4, seed=0)
    full = peak_nbytes(lm.model, text, Setting("dynamic"))
    slots = peak_nbytes(lm.model, text, Setting("slots", "rce", 8))
    kept = score(lm.model, text, Setting("dynamic")).kv_bytes
    assert kept < full
    assert slots < full


def test_decode_rates_are_positive_and_need_enough_text(lm, source):
    text = pages(source, num_tokens=N, num_scored=20, num_rows=2, seed=0)
    settings = (Setting("dynamic"), Setting("slots", "rce", 4))
    assert min(decode_rates(lm.model, text, settings, num_rounds=3, num_steps=4)) > 0
    with pytest.raises(ValueError, match="must hold 48 tokens"):
        decode_rates(lm.model, text, settings)


# ---------------------------------------------------------------------------------------- files
def is_png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 10_000


def test_survivors_are_drawn_from_a_trace(tmp_path, lm, source):
    stream = draw_rows(source, "hot_set", num_tokens=N, num_rows=1, seed=0)
    setting = Setting("slots", "rce", 4)
    cache = setting.make(lm.model, batch_size=1, num_tokens=N)
    with setting.enabled(lm.model), record(cache, tmp_path / "t"):
        feed(lm.model, cache, stream, chunk=setting.call_size(N))
    about = {
        "label": setting.label,
        "num_tokens": N,
        "num_context": stream.num_context,
        "facts": [{"key": k, "start": p, "stop": p + 4} for k, p in stream.facts[0].items()],
        "questions": [{"key": a.key, "at": a.start} for a in stream.answers],
    }
    drawn = plot_survivors(tmp_path / "t", about, tmp_path / "s.png")
    assert 0 <= drawn["layer"] < 4
    assert is_png(tmp_path / "s.png")


# ------------------------------------------------------------------------------------- the whole
@pytest.mark.slow
def test_small_demo_writes_its_files(tmp_path):
    rows = (("hot_set", 1), ("question_seen", 4), ("late_query", 2))
    plan = Plan(num_tokens=192, rows=rows, num_pages=2, more_compressions=(2,))
    results = run_demo("kvmmu-ref-1m", tmp_path, plan, seed=0)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(results["files"])
    assert all(is_png(tmp_path / name) for name in results["files"] if name.endswith(".png"))
    static, dynamic = results["caches"][:2]
    assert static["answers"] == dynamic["answers"]
    for cache in results["caches"][2:]:
        assert cache["kv_bytes"] * cache["compression"] == static["kv_bytes"]
        assert cache["tokens_per_s"] > 0
    block = results["accelerator"]
    made = kvmmu.simulate(model="kvmmu-ref-1m", trace=tmp_path / "rce.trace")
    assert block["rows"][0]["end_to_end"]["energy_j"] == made.ours.total.energy_j()
    assert (block["num_slots"], block["batch"]) == (192 // 8, 1)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "rce 1/8 replayed on jetcas65 (simulated)" in page
    assert "No accuracy belongs to these simulated figures" in page
