"""The whole benchmark on candidates that only count: resuming, failures, groups, caps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kvmmu.errors import KVMMUError
from kvmmu.evals.bench import point as point_module
from kvmmu.evals.bench import rounds as rounds_module
from kvmmu.evals.bench.candidates import CANDIDATES, Candidate, absent_reason, pick, python_of
from kvmmu.evals.bench.capped import Capped
from kvmmu.evals.bench.model import BenchModel
from kvmmu.evals.bench.point import measure_point
from kvmmu.evals.bench.run import Bench, Plan
from kvmmu.evals.bench.worker import Point, Timing

FAKE = Path(__file__).parents[1] / "fake_peer.py"
POINT = Point(2, 40, 8)


def fake(name, *, holds="full", family="transformers", packages=(), **settings):
    settings = {"fans_out": True, **settings}
    return Candidate(
        name, family, holds, "fp32", 4, "hf", FAKE, settings, packages, has_serve=True
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    """Count every round, and let a buffer that is not read stand for the bandwidth."""
    monkeypatch.setattr(rounds_module, "MOST_TAKEN", 1e9)
    bandwidth = fake("read bandwidth", family="kvmmu")
    monkeypatch.setattr(point_module, "BANDWIDTH", bandwidth)


@pytest.fixture
def model(tmp_path):
    return BenchModel.open("random:tiny", tmp_path / "models")


def timing(tmp_path, **more):
    settings = {"rounds": 2, "turn_s": 0.01, "threads": 1, "log_dir": tmp_path / "logs"}
    return Timing(**settings | more)


def measure(model, tmp_path, *candidates, rates=None, **more):
    how, rates = timing(tmp_path, **more), {} if rates is None else rates
    return measure_point(list(candidates), POINT, model, how, rates=rates, say=lambda _: None)


def bench(model, tmp_path, *candidates, **more):
    how = timing(tmp_path)
    return Bench(model, Plan((POINT,), candidates, how, **more), tmp_path / "out")


def run(job):
    return job.run(advance=lambda _: None, say=lambda _: None)


def test_every_candidate_has_a_row_with_its_figures(model, tmp_path):
    exact = fake("transformers-dynamic")
    (group,) = measure(model, tmp_path, exact, fake("other", fans_out=False))
    first, other = group["rows"]
    assert [first["candidate"], other["candidate"]] == ["transformers-dynamic", "other"]
    assert first["decode_tokens_per_s"] == pytest.approx(2e3 / first["step_ms"])
    assert (first["prefill_tokens"], other["prefill_tokens"]) == (40, 80)
    assert (first["kv_bytes"], first["weight_bytes"]) == (123, 1000)
    ratio = other["speedup_over"]["transformers-dynamic"][0]
    assert 1 / ratio == pytest.approx(first["speedup_over"]["other"][0], rel=0.5)
    assert (other["tokens_equal"], other["tokens_of"], other["must_equal"]) == (16, 16, True)


def test_tokens_that_differ_are_counted(model, tmp_path):
    (group,) = measure(model, tmp_path, fake("transformers-dynamic"), fake("bad", shift=1))
    assert group["rows"][1]["tokens_equal"] == 1


def test_a_slower_ours_is_reported_as_slower(model, tmp_path):
    ours = fake("engine", family="kvmmu", holds="slots", step_s=0.004)
    (group,) = measure(model, tmp_path, ours, fake("fast", step_s=0.001))
    assert group["rows"][0]["speedup_over"]["fast"][0] < 0.6


def test_a_candidate_that_fails_is_a_row_and_the_others_go_on(model, tmp_path):
    bad, worse = fake("bad", refuses=True), fake("worse", dies=True)
    (group,) = measure(model, tmp_path, bad, fake("good"), worse)
    statuses = [(row["candidate"], row["status"]) for row in group["rows"]]
    assert statuses == [("bad", "failed"), ("good", "ok"), ("worse", "failed")]
    assert group["rows"][0]["reason"] == "ValueError: this peer refuses the model"
    assert group["rows"][2]["reason"] == "last words"


def test_a_prefill_known_to_be_too_long_is_skipped_with_its_reason(model, tmp_path):
    rates = {"slow": 0.1, "good": 1e9}
    (group,) = measure(model, tmp_path, fake("slow"), fake("good"), rates=rates, max_prefill_s=10)
    assert [row["status"] for row in group["rows"]] == ["skipped", "ok"]
    assert "would take 400 s" in group["rows"][0]["reason"]


def test_peers_that_do_not_fit_together_are_measured_in_groups_with_ours_in_each(
    model, tmp_path, monkeypatch
):
    monkeypatch.setattr(BenchModel, "free_bytes", staticmethod(lambda: int(2.4e9)))
    ours = fake("engine", family="kvmmu", holds="slots")
    groups = measure(model, tmp_path, ours, fake("one"), fake("two"), fake("three"))
    names = [[row["candidate"] for row in group["rows"]] for group in groups]
    assert names == [["engine", "one", "two"], ["engine", "three"]]


def test_one_that_does_not_fit_at_all_is_skipped(model, tmp_path, monkeypatch):
    monkeypatch.setattr(BenchModel, "free_bytes", staticmethod(lambda: int(1e8)))
    (group,) = measure(model, tmp_path, fake("big"))
    assert "of memory" in group["rows"][0]["reason"]


def test_upkeep_is_the_share_that_goes_when_scores_are_off(model, tmp_path):
    on = fake("engine", family="kvmmu", holds="slots", step_s=0.004)
    off = fake("engine-no-scores", family="kvmmu", holds="slots", step_s=0.002)
    (group,) = measure(model, tmp_path, on, off, turn_s=0.05)
    share, low, high = group["rows"][0]["upkeep_share"]
    assert low <= share <= high
    assert 0.3 < share < 0.7
    assert "upkeep_share" not in group["rows"][1]


def test_a_finished_point_is_not_measured_again(model, tmp_path):
    log = str(tmp_path / "log")
    first = run(bench(model, tmp_path, fake("one", log=log), caps=(64,)))
    count = Path(log).read_text()
    second = run(bench(model, tmp_path, fake("one", log=log), caps=(64,)))
    assert Path(log).read_text() == count
    assert second == first


def test_a_void_point_is_measured_again(model, tmp_path, monkeypatch):
    log = str(tmp_path / "log")
    monkeypatch.setattr(rounds_module, "MOST_TAKEN", -1)
    result = run(bench(model, tmp_path, fake("one", log=log)))
    assert result["points"][0]["groups"][0]["is_void"]
    count = len(Path(log).read_text())
    run(bench(model, tmp_path, fake("one", log=log)))
    assert len(Path(log).read_text()) > count


def test_half_a_line_is_cut_off_and_its_point_measured(model, tmp_path):
    run(bench(model, tmp_path, fake("one")))
    file = tmp_path / "out" / "points.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    run(bench(model, tmp_path, fake("one")))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["about", "point"]


def test_a_folder_of_another_model_is_refused(model, tmp_path):
    bench(model, tmp_path, fake("one"))
    with pytest.raises(ValueError, match="must be of the same model"):
        bench(replace(model, fingerprint="other"), tmp_path, fake("one"))


def test_what_is_not_installed_is_listed(model, tmp_path):
    result = run(bench(model, tmp_path, fake("one"), fake("two", packages=("no_such_package",))))
    (absent,) = result["absent"]
    assert absent["candidate"] == "two"
    assert absent["reason"].startswith("not installed (no_such_package)")
    assert len(result["points"][0]["groups"][0]["rows"]) == 1


def test_a_cap_gives_tokens_per_second_and_refuses_missing_tokens(model, tmp_path):
    work = Capped(num_requests=3, prompt=10, new_tokens=5, num_slots=8)
    job = bench(model, tmp_path, fake("one"), fake("less", missing=1), caps=(64,), capped=work)
    (cap,) = run(job)["capped"]["caps"]
    low, high = cap["rows"][0]["range_tokens_per_s"]
    assert 0 < low <= cap["rows"][0]["tokens_per_s"] <= high
    assert cap["rows"][0]["num_rounds"] == 2
    assert cap["rows"][1]["reason"] == "gave 14 of 15 tokens"


def test_names_and_families_choose_candidates():
    assert [c.name for c in pick("transformers-static-compiled", is_ours=False)] == [
        "transformers-static-compiled"
    ]
    assert {c.family for c in pick("openvino-genai,llama.cpp", is_ours=False)} == {
        "openvino-genai", "llama.cpp",
    }  # fmt: skip
    assert all(c.is_default for c in pick("transformers", is_ours=False))
    assert pick("none", is_ours=False) == ()
    with pytest.raises(ValueError, match="unknown candidate 'vlm'"):
        pick("vlm", is_ours=False)


def test_every_candidates_file_exists():
    assert [c.name for c in CANDIDATES.values() if not c.file.is_file()] == []


def test_a_peers_python_is_taken_by_family_or_name():
    peer = CANDIDATES["openvino-genai-int8"]
    assert python_of(peer, {"openvino-genai": "/a"}) == "/a"
    assert python_of(peer, {"openvino-genai": "/a", peer.name: "/b"}) == "/b"
    with pytest.raises(KVMMUError, match="must name a Python that runs"):
        absent_reason(peer, {"openvino-genai": "/no/such/python"})
