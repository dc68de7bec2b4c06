"""The evaluation's runs: what they refuse, what they leave out and why, what each line tells."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_evaluation import PLAN
from typer.testing import CliRunner

import kvmmu
from kvmmu import RCE
from kvmmu.cli import app
from kvmmu.evals import costs, documents, evaluate, speed
from kvmmu.evals.cases import PERPLEXITY, PUBLISHED, Case
from kvmmu.evals.cell import Cell, run_cell
from kvmmu.evals.costs import Taken, decode_rates, step_times
from kvmmu.evals.evaluate import FULL, Evaluation
from kvmmu.evals.published import published_cases
from kvmmu.evals.results import ResultsFile
from kvmmu.evals.settings import Setting
from kvmmu.evals.source import Source, shipped_book
from kvmmu.evals.streams import pages

ABOUT = {"model": "m", "fingerprint": "f", "dtype": "float32"}
NAME, Line = "results.jsonl", dict[str, Any]


@pytest.fixture(scope="module")
def lm() -> Any:
    return kvmmu.load("kvmmu-ref-1m")


@pytest.fixture(scope="module")
def texts(lm: Any) -> dict[str, Source]:
    return {"frankenstein": Source.make(shipped_book()[:60_000], lm.tokenizer)}


@pytest.fixture
def short(lm: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model, as if it had been trained at 128 tokens."""
    monkeypatch.setattr(lm.model.config, "max_position_embeddings", 128)
    return lm


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Stand in for run_cell: right at every seed but 0; the cells that were asked for."""
    cells: list[Cell] = []

    def answer(cell: Cell, *args: Any, **options: Any) -> list[Line]:
        cells.append(cell)
        params = evaluate.describe_setting(cell.setting)
        rows = [[4.0 * (cell.seed > 0), 4]] * (1 if cell.seed == 0 else 9)
        return [{"key": cell.key, "kind": "answers", "rows": rows, "chance": 0.0} | params]

    monkeypatch.setattr(evaluate, "run_cell", answer)
    monkeypatch.setattr(evaluate, "_sources", lambda tokenizer: {})
    return cells


def run(lm: Any, folder: Path, **changes: Any) -> Evaluation:
    job = Evaluation(lambda: lm, dataclasses.replace(PLAN, **changes), folder)
    job.run(advance=lambda n: None, say=lambda text: None)
    return job


def lines_of(folder: Path, kind: str) -> list[Line]:
    lines = map(json.loads, (folder / NAME).read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


# -------------------------------------------------------------------------------------- the file
def test_file_in_use_is_neither_read_nor_cut(tmp_path: Path) -> None:
    first = ResultsFile(tmp_path, ABOUT)
    with first.locked():
        first.append([{"key": "a"}])
        with (tmp_path / NAME).open("ab") as file:
            file.write(b'{"key": "what it is wri')
        before = (tmp_path / NAME).read_bytes()
        with pytest.raises(ValueError, match="must not be in use by another run"):
            ResultsFile(tmp_path, ABOUT)
        assert (tmp_path / NAME).read_bytes() == before


def test_lines_of_a_run_that_ended_meanwhile_are_kept(tmp_path: Path) -> None:
    first, second = ResultsFile(tmp_path, ABOUT), ResultsFile(tmp_path, ABOUT)
    second.append([{"key": "a", "n": 1}])
    with first.locked():
        assert first.done["a"]["n"] == 1
        first.append([{"key": "a", "n": 2}, {"key": "b", "n": 3}])
    assert [line.get("n") for line in ResultsFile(tmp_path, ABOUT).done.values()] == [1, 3]


# --------------------------------------------------------------------------- what is in a line
def test_every_line_of_a_case_tells_its_size(lm: Any, texts: Any, tmp_path: Path) -> None:
    for case in (
        Case("niah_multikey", "late", 128, 2),
        Case(PERPLEXITY, "online", 128, 64, text="frankenstein"),
        Case("hot_set", "online", 8192, 8),
    ):
        lines = run_cell(Cell(case, Setting("slots", "h2o", 2), 0), lm, texts, batch_size=8)
        assert {line["size"] for line in lines} == {case.size}


def test_keys_are_those_of_the_files_there_are() -> None:
    one = Case(PERPLEXITY, "online", 2048, 4096, text="frankenstein")
    two = Case("key_value", "late", 1024, 64, {"num_hex": 8})
    assert Cell(one, Setting("slots", RCE(decay=0.99), 8), 0).key == (
        "perplexity/online/2048frankenstein/4096|rce:decay=0.99 1/8|head|0"
    )
    assert Cell(two, FULL, 3).key == 'key_value/late/1024{"num_hex": 8}/64|full StaticCache|head|3'


# -------------------------------------------------------------------------- published benchmarks
@pytest.fixture
def ruler(tmp_path: Path) -> Path:
    """Rows of RULER, the longest first, in a folder."""
    folder = tmp_path / "ruler" / "niah_x"
    folder.mkdir(parents=True)
    rows = [{"input": "word " * n + "the key is", "outputs": ["7"]} for n in (60, 40, 20)]
    (folder / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder.parent


def test_documents_are_one_cell_whatever_the_seeds(lm: Any, ruler: Path, tmp_path: Path) -> None:
    (case,) = published_cases(["ruler"], ruler, 2)
    assert case.mode == PUBLISHED
    for plan in (dataclasses.replace(PLAN, cases=(case,), seeds=s) for s in ((0, 1, 2), (3,))):
        (cell,) = Evaluation(lambda: lm, plan, tmp_path / "out").cells((FULL,))
        assert cell.seed == 0


def test_documents_lines_tell_one_length_for_every_cache(
    lm: Any, ruler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = iter(range(1, 9))  # no two answers are equally long
    monkeypatch.setattr(documents, "write_answer", lambda *args, **more: [5] * next(words))
    (case,) = published_cases(["ruler"], ruler, 2)
    settings = (FULL, Setting("slots", "streaming_llm", 4))
    lines = [run_cell(Cell(case, s, 0), lm, {}, batch_size=1)[0] for s in settings]
    assert len({line["num_tokens"] for line in lines}) == 1
    assert {line["size"] for line in lines} == {2}


# ---------------------------------------------------------------------------- what is left out
def test_floor_is_decided_anew_from_all_seeds(
    lm: Any, answered: list[Cell], tmp_path: Path
) -> None:
    case = PLAN.cases[0]
    run(lm, tmp_path, cases=(case,), seeds=(0,))
    assert {cell.setting for cell in answered} == {FULL}
    (line,) = lines_of(tmp_path, "skipped")
    assert (line["full_score"], line["size"]) == (0.0, case.size)
    run(lm, tmp_path, cases=(case,), seeds=(0, 1))
    assert len(lines_of(tmp_path, "answers")) == 2 * (1 + len(PLAN.settings))
    answered.clear()
    run(lm, tmp_path, cases=(case,), seeds=(0,), settings=(Setting("slots", "h2o", 4),))
    assert len(answered) == 1


def test_seed_that_cannot_be_drawn_leaves_the_others(
    lm: Any, answered: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer: Callable[..., list[Line]] = evaluate.run_cell

    def refuse_seed_2(cell: Cell, *args: Any, **options: Any) -> list[Line]:
        made = answer(cell)
        return made if cell.seed != 2 else [evaluate.skipped(cell.case, "r", key="skipped|2")]

    monkeypatch.setattr(evaluate, "run_cell", refuse_seed_2)
    run(lm, tmp_path, cases=PLAN.cases[:1], seeds=(1, 2))
    asked = [(cell.setting, cell.seed) for cell in answered]
    assert asked == [(FULL, 1), (FULL, 2), *((s, 1) for s in PLAN.settings)]


def test_case_beyond_the_trained_length_is_skipped_and_the_rest_is_run(
    short: Any, tmp_path: Path
) -> None:
    text = "frankenstein"
    cases = [Case(PERPLEXITY, "online", n, 32, text=text) for n in (192, 130, 129)]
    settings = (Setting("slots", "streaming_llm", 4),)
    run(short, tmp_path, cases=tuple(cases), settings=settings, seeds=(0,))
    skipped = lines_of(tmp_path, "skipped")
    assert [line["num_tokens"] for line in skipped] == [192, 130]
    for line, length in zip(skipped, (192, 130), strict=True):
        assert "must be at most 129 tokens (the model's trained positions" in line["reason"]
        assert line["reason"].endswith(f"got {length}")
    assert [line["num_tokens"] for line in lines_of(tmp_path, "pages")] == [129, 129]


def test_questions_on_a_shared_context_are_texts_of_their_own(short: Any, texts: Any) -> None:
    case = Case("niah_multiquery", "shared", 140, 4)
    (line,) = run_cell(Cell(case, FULL, 0), short, texts, batch_size=4)
    assert line["kind"] == "answers"


# ---------------------------------------------------------------------------- what is refused
def test_line_of_other_parameters_is_refused_in_one_line(
    lm: Any, answered: list[Cell], tmp_path: Path
) -> None:
    cases = PLAN.cases[:1]
    run(lm, tmp_path, cases=cases, seeds=(1,))
    path = tmp_path / NAME
    path.write_text(path.read_text().replace('"decay": 0.984375', '"decay": 0.5'))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"of 'rce' with decay 0\.5, got 0\.984375; choose") as e:
        run(lm, tmp_path, cases=cases, seeds=(1, 2))
    assert "\n" not in str(e.value)
    assert path.read_bytes() == before
    run(lm, tmp_path, cases=cases, seeds=(1,), settings=PLAN.settings[1:])


def test_compression_that_leaves_too_few_slots_is_refused_at_once(tmp_path: Path) -> None:
    args = ["eval", "kvmmu-ref-1m", "--suite", "quick", "--output", str(tmp_path / "x")]
    result = CliRunner().invoke(app, [*args, "--compression", "4,64"])
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("kvmmu: ")]
    assert "compression 64 of 256 tokens makes 4 slots: num_slots must exceed" in line
    assert not (tmp_path / "x").exists()


# --------------------------------------------------------------------------------------- speed
class Clock:
    """Clocks of a machine on which other work takes the CPU in some readings."""

    def __init__(self, is_busy: Callable[[int], bool]) -> None:
        self.is_busy, self.calls, self.wall_s, self.cpu_s = is_busy, 0, 0.0, 0.0

    def __call__(self, device: Any) -> Taken:
        if self.calls % 2:  # the end of a round
            self.wall_s += 3.0 if self.is_busy(self.calls // 2) else 1.0
            self.cpu_s += 1.0
        self.calls += 1
        return Taken(self.wall_s, self.cpu_s)


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], bool]], Clock]:
    def put(is_busy: Callable[[int], bool]) -> Clock:
        made = Clock(is_busy)
        monkeypatch.setattr(costs, "_clocks", made)
        return made

    return put


TWO = (Setting("static"), Setting("slots", "streaming_llm", 4))


def test_disturbed_rounds_are_timed_again(lm: Any, texts: Any, clocked: Any) -> None:
    stream = pages(texts["frankenstein"], num_tokens=64, num_scored=12, num_rows=1, seed=0)
    clocked(lambda n: n == 4)  # the full cache's second round, after one to warm up
    times = step_times(lm.model, stream, TWO, num_rounds=3, num_steps=1)
    pairs = costs.quiet_pairs(*times)
    assert len(pairs) == 5
    assert set(pairs) == {(1.0, 1.0)}
    clocked(lambda n: n == 4)
    assert decode_rates(lm.model, stream, TWO, num_rounds=3, num_steps=1) == [1.0, 1.0]


def test_no_ratio_is_told_where_every_round_was_disturbed(
    lm: Any, texts: Any, clocked: Any
) -> None:
    clock = clocked(lambda n: n % 2 == 1)  # all of the second setting
    with pytest.warns(RuntimeWarning, match="decode speed of 1 caches was not measured"):
        lines = speed.speed_lines(lm, texts["frankenstein"], TWO[0], TWO[1:], 128)
    assert lines == []
    assert clock.calls == 2 * 2 * 8 * 3  # three passes and no more


@pytest.mark.parametrize(
    ("wall_s", "cpu_s", "is_quiet"),
    [(1.0, 0.81, True), (1.0, 0.79, False), (1.0, 1.19, True), (1.0, 1.21, False), (9, None, True)],
)
def test_round_is_quiet_within_a_fifth(wall_s: float, cpu_s: float, *, is_quiet: bool) -> None:
    assert Taken(wall_s, cpu_s).is_quiet == is_quiet


def test_speed_is_written_while_the_folder_is_locked(
    lm: Any, answered: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(*args: Any) -> list[Line]:
        with pytest.raises(ValueError, match="must not be in use"):
            ResultsFile(tmp_path, ABOUT)
        return [{"kind": "speed", "key": "speed|x"}]

    monkeypatch.setattr(evaluate, "speed_lines", timed)
    monkeypatch.setattr(evaluate, "_sources", lambda tokenizer: {"frankenstein": None})
    run(lm, tmp_path, cases=PLAN.cases[:1], seeds=(1,), has_speed=True)
    assert len(lines_of(tmp_path, "speed")) == 1


def test_length_of_the_speed_is_one_that_the_model_reads(short: Any) -> None:
    long, fit = (Case("hold", "online", n, 1) for n in (256, 64))
    assert [speed.common_length(c, short) for c in ((long, long, fit), (long,))] == [64, 129]


def test_length_of_the_speed_is_the_most_common_and_the_shortest_if_tied(lm: Any) -> None:
    pages = Case(PERPLEXITY, "online", 256, 8, text="frankenstein")
    for lengths, timed in (((512, 64, 64, 128), 64), ((64, 512, 512), 512), ((512, 64), 64)):
        cases = [Case("niah_multikey", "late", n, 8) for n in lengths]
        assert speed.common_length([pages, pages, pages, *cases], lm) == timed
