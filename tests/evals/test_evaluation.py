"""The evaluation: resumed after any kill, it has the results of a run that nobody disturbed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_evaluation
from small_evaluation import PLAN
from typer.testing import CliRunner

import kvmmu
from kvmmu.cli import app
from kvmmu.evals import evaluate
from kvmmu.evals.cases import PERPLEXITY, SUITES, Case, floor, pick, resized
from kvmmu.evals.cell import Cell, run_cell
from kvmmu.evals.evaluate import FULL, Evaluation
from kvmmu.evals.results import ResultsFile
from kvmmu.evals.settings import Setting
from kvmmu.evals.source import Source, shipped_book

ABOUT = {"model": "m", "fingerprint": "f", "dtype": "float32"}
NAME = "results.jsonl"


@pytest.fixture(scope="module")
def lm() -> Any:
    return kvmmu.load("kvmmu-ref-1m")


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """Read the lines without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / NAME).read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k != "seconds"}
        for line in lines
        if line["kind"] != "speed"
    ]


def same(one: Path, two: Path) -> bool:
    """Tell whether two files hold the same lines, each once, in any order."""
    texts = [Counter(json.dumps(line, sort_keys=True) for line in lines_of(p)) for p in (one, two)]
    keys = [line["key"] for line in lines_of(one) if "key" in line]
    return texts[0] == texts[1] and len(set(keys)) == len(keys)


# ------------------------------------------------------------------------------------- one model
class Stub:
    """Stands in for run_cell: lines that depend on the cell alone, and a count of the calls."""

    def __init__(self) -> None:
        self.cells: list[Cell] = []
        self.budget = 10**9

    def __call__(self, cell: Cell, *args: Any, **options: Any) -> list[dict[str, Any]]:
        if not self.budget:
            raise KeyboardInterrupt
        self.budget -= 1
        self.cells.append(cell)
        right = 0.0 if cell.case.task == "babi_qa3" else 4.0
        line = {"key": cell.key, "kind": "answers", "rows": [[right, 4]], "chance": 0.0}
        if cell.case.task == PERPLEXITY:
            return [{"key": f"{cell.key}|survivors", "kind": "survivors"}, line | {"kind": "pages"}]
        return [line]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    made = Stub()
    monkeypatch.setattr(evaluate, "run_cell", made)
    monkeypatch.setattr(evaluate, "_sources", lambda tokenizer: {})
    return made


def run(lm: Any, folder: Path, **changes: Any) -> Evaluation:
    plan = dataclasses.replace(PLAN, **changes)
    job = Evaluation(lambda: lm, plan, folder)
    job.run(advance=lambda n: None, say=lambda text: None)
    return job


def test_every_cut_of_the_file_is_finished_to_the_same_lines(
    lm: Any, stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)  # thousands of lines
    run(lm, tmp_path / "whole")
    data = (tmp_path / "whole" / NAME).read_bytes()
    ends = [i for i, byte in enumerate(data) if byte == ord("\n")]
    cuts = {0, 1, 5, len(data)} | {end + n for end in ends for n in (-9, -1, 0, 1, 2)}
    for cut in sorted(cuts):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        (folder / NAME).write_bytes(data[:cut])
        run(lm, folder)
        assert same(folder, tmp_path / "whole"), cut


@pytest.mark.parametrize("budget", [0, 1, 7, 10, 11, 15])
def test_what_is_done_is_not_run_again(lm: Any, stub: Stub, tmp_path: Path, budget: int) -> None:
    stub.budget = budget
    with pytest.raises(KeyboardInterrupt):
        run(lm, tmp_path)
    stub.budget = 10**9
    run(lm, tmp_path)
    run(lm, tmp_path)
    keys = [cell.key for cell in stub.cells]
    assert len(set(keys)) == len(keys) == 5 * 2 + 4 * 2 * 2


def test_more_policies_are_added_to_what_there_is(lm: Any, stub: Stub, tmp_path: Path) -> None:
    run(lm, tmp_path)
    before = len(stub.cells)
    more = (*PLAN.settings, Setting("slots", "h2o", 4))
    run(lm, tmp_path, settings=more)
    assert {cell.setting for cell in stub.cells[before:]} == {more[-1]}
    assert len(stub.cells) - before == 4 * 2


def test_case_below_the_floor_is_skipped_and_no_policy_is_asked(
    lm: Any, stub: Stub, tmp_path: Path
) -> None:
    run(lm, tmp_path)
    asked = [cell for cell in stub.cells if cell.case.task == "babi_qa3"]
    assert {cell.setting for cell in asked} == {FULL}
    (line,) = (line for line in lines_of(tmp_path) if line["kind"] == "skipped")
    assert (line["task"], line["mode"], line["full_score"], line["floor"]) == (
        "babi_qa3", "late", 0.0, 0.8,
    )  # fmt: skip
    assert {c.setting for c in stub.cells if c.case.task == "hold"} == {FULL, *PLAN.settings}


def test_case_that_cannot_be_drawn_is_skipped_with_the_reason(lm: Any, tmp_path: Path) -> None:
    wide = Case("hot_set", "online", 8192, 8)  # a record in 48 tokens: more than there are keys
    run(lm, tmp_path, cases=(wide,), has_speed=False)
    about, *lines = lines_of(tmp_path)
    assert about["kind"] == "about"
    assert [(line["kind"], line["seed"]) for line in lines] == [("skipped", 0), ("skipped", 1)]
    for line in lines:
        assert line["reason"].startswith("cannot be drawn: ")
        assert "add keys" in line["reason"]


def test_two_runs_cannot_write_to_one_folder(tmp_path: Path) -> None:
    first, second = (ResultsFile(tmp_path, {"model": "m"}) for _ in range(2))
    with (
        first.locked(),
        pytest.raises(ValueError, match="must not be in use by another run"),
        second.locked(),
    ):
        pass
    with second.locked():  # the first has ended
        pass


@pytest.mark.parametrize(
    ("chance", "least"), [(0, 0.8), (0.03, 0.8), (0.125, 0.8), (1 / 6, 2 / 3), (0.5, 0.8)]
)
def test_floor_lies_above_chance(chance: float, least: float) -> None:
    assert floor(chance) == pytest.approx(least)


def test_work_that_is_advanced_is_the_total(lm: Any, stub: Stub, tmp_path: Path) -> None:
    for budget in (7, 10**9, 10**9):
        stub.budget, done = budget, []
        job = Evaluation(lambda: lm, PLAN, tmp_path)
        total = job.total
        try:
            job.run(advance=done.append, say=lambda text: None)
        except KeyboardInterrupt:
            continue
        assert sum(done) == total or not stub.cells


# -------------------------------------------------------------------------------------- the file
def test_file_of_another_model_is_refused_in_one_line(tmp_path: Path) -> None:
    ResultsFile(tmp_path, ABOUT)
    before = (tmp_path / NAME).read_bytes()
    for name in ABOUT:
        with pytest.raises(ValueError, match="choose another --output") as caught:
            ResultsFile(tmp_path, ABOUT | {name: "other"})
        assert f"holds results of {name}" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert (tmp_path / NAME).read_bytes() == before
    ResultsFile(tmp_path, ABOUT | {"suite": "another"})


@pytest.mark.parametrize(
    "data",
    [
        b"my own notes",
        b"my own notes\n",
        b'{"kind": "notes"}\n{"a": 1',
        b'{"loss": 1}\n{"loss": 2}',
        b"[1, 2]\n",
        b"\xff\xfe\x00",
        b"\n",
    ],
)
def test_foreign_file_is_refused_and_left_as_it_is(data: bytes, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(data)
    with pytest.raises(ValueError, match=r"must (begin with|hold).* choose another --output"):
        ResultsFile(tmp_path, ABOUT)
    assert (tmp_path / NAME).read_bytes() == data


def test_line_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path, ABOUT)
    file.append([{"key": "a", "n": 1}])
    file.append([{"key": "a", "n": 2}, {"key": "b", "n": 3}])
    assert [line.get("n") for line in ResultsFile(tmp_path, ABOUT).done.values()] == [1, 3]
    assert len((tmp_path / NAME).read_text().splitlines()) == 3


# ------------------------------------------------------------------------------------- real cells
def test_cells_rows_are_its_contexts_in_any_batch(lm: Any) -> None:
    source = Source.make(shipped_book()[:100_000], lm.tokenizer)
    texts = {"frankenstein": source}
    for case in (Case("niah_multikey", "late", 128, 6), Case("hold", "online", 128, 3)):
        cell = Cell(case, Setting("slots", "rce", 2), 1)
        one, two = (run_cell(cell, lm, texts, batch_size=n) for n in (2, 64))
        assert [{**line, "seconds": 0} for line in one] == [{**line, "seconds": 0} for line in two]
        (line,) = one
        assert sum(count for _, count in line["rows"]) >= case.size
        assert line["num_slots"] == 64


def test_pages_come_with_the_ages_of_what_was_kept(lm: Any) -> None:
    source = Source.make(shipped_book()[:100_000], lm.tokenizer)
    case = Case(PERPLEXITY, "online", 128, 64, text="frankenstein")
    for policy, compression in (("streaming_llm", 4), ("rce", 1)):
        cell = Cell(case, Setting("slots", policy, compression), 0)
        ages, line = run_cell(cell, lm, {"frankenstein": source}, batch_size=8)
        assert (ages["kind"], line["kind"]) == ("survivors", "pages")
        assert [count for _, count in line["rows"]] == [32, 32]
        widths = np.diff(ages["edges"])
        held = float(np.dot(widths, ages["kept"]))
        assert held == pytest.approx(min(127, 128 / compression), abs=0.5)
        assert ages["kept"][0] == 1  # the newest


# ------------------------------------------------------------------------------ real processes
def start(folder: Path, jobs: int = 1) -> subprocess.Popen[bytes]:
    """Run the small evaluation in an interpreter of its own."""
    return subprocess.Popen(
        [sys.executable, small_evaluation.__file__, str(folder), str(jobs)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def num_lines(folder: Path) -> int:
    path = folder / NAME
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(condition: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    small_evaluation.main(str(folder), 1)
    return folder


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_lines(
    undisturbed: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    for _ in range(4):
        least = num_lines(tmp_path) + int(rng.integers(1, 5))
        process = start(tmp_path)
        wait_for(lambda p=process, n=least: p.poll() is not None or num_lines(tmp_path) >= n)
        time.sleep(float(rng.random()) * 0.08)
        process.kill()
        assert process.wait() in (-signal.SIGKILL, 0)
    assert start(tmp_path).wait() == 0
    assert same(tmp_path, undisturbed)


@pytest.mark.slow
def test_two_processes_write_the_lines_of_one(undisturbed: Path, tmp_path: Path) -> None:
    assert start(tmp_path, jobs=2).wait() == 0
    assert same(tmp_path, undisturbed)


def children(pid: int) -> set[int]:
    """List a process's children and theirs."""
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found |= {int(path.parent.name)} | children(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_workers_end_with_the_process_that_was_killed(undisturbed: Path, tmp_path: Path) -> None:
    process = start(tmp_path, jobs=2)
    wait_for(lambda: num_lines(tmp_path) > 3 or process.poll() is not None)
    workers = children(process.pid)
    process.kill()
    process.wait()
    assert len(workers) >= 2
    wait_for(lambda: not any(is_alive(pid) for pid in workers), 20)
    assert start(tmp_path).wait() == 0
    assert same(tmp_path, undisturbed)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state not in "ZX"


# ------------------------------------------------------------------------------- command line
BAD = [
    (["--suite", "standrad"], ["unknown suite 'standrad'", "did you mean 'standard'?"]),
    (["--tasks", "niah_multkey"], ["unknown task", "did you mean 'niah_multikey'?"]),
    (["--tasks", "hot_set/late"], ["mode of task hot_set must be one of online, got 'late'"]),
    (["--policies", "rec"], ["unknown policy 'rec'", "did you mean 'rce'?"]),
    (["--policies", "rce:deacy=1"], ["'deacy'", "did you mean 'decay'?"]),
    (["--policies", "rce:decay=x"], ["decay", "a number", "'x'"]),
    (["--policies", ","], ["policies must name at least one"]),
    (["--compression", "0.5"], ["--compression must be at least 1, got '0.5'"]),
    (["--compression", "nan"], ["compression must be at least 1"]),
    (["--compression", "inf"], ["compression must be at least 1"]),
    (["--compression", "4;8"], ["--compression must be numbers with commas"]),
    (["--seeds", "-1"], ["--seeds must lie in"]),
    (["--seeds", "a"], ["--seeds must be numbers"]),
    (["--granularity", "row"], ["--granularity must be head or layer, got 'row'"]),
    (["--jobs", "0"], ["--jobs must be at least 1, got 0"]),
    (["--batch-size", "0"], ["--batch-size must be at least 1, got 0"]),
]


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what the command would set, so that it is undone after the test."""
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TORCH_CPP_LOG_LEVEL", "KINETO_LOG_LEVEL"):
        monkeypatch.setenv(name, "1")
    for name in ("HF_HUB_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, "error")


def refused(args: list[str], parts: list[str]) -> None:
    """Assert exit code 2 and one line on stderr with all the parts."""
    result = CliRunner().invoke(app, ["eval", *args])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line and "Loading" not in line]
    assert [line[:7] for line in lines] == ["kvmmu: "]
    for part in parts:
        assert part in lines[0]


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("args", "parts"), BAD, ids=[" ".join(args) for args, _ in BAD])
def test_bad_input_is_refused_in_one_line(
    args: list[str], parts: list[str], tmp_path: Path
) -> None:
    refused(["kvmmu-ref-1m", "--suite", "quick", "--output", str(tmp_path / "x"), *args], parts)
    assert not (tmp_path / "x").exists()


@pytest.mark.usefixtures("quiet")
def test_output_of_another_model_is_refused_in_one_line(tmp_path: Path) -> None:
    ResultsFile(tmp_path, ABOUT)
    args = ["kvmmu-ref-1m", "--suite", "quick", "--jobs", "1", "--output", str(tmp_path)]
    refused(args, ["holds results of model 'm', got 'kvmmu-ref-1m'"])
    (tmp_path / NAME).write_text("notes\n")
    refused(args, ["must hold a JSON object in every line, got b'notes' in line 1"])
    refused([*args[:-1], str(tmp_path / NAME)], ["--output must be a folder"])


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_second_run_adds_a_policy_and_ends_with_one_json_object(tmp_path: Path) -> None:
    before: list[str] = []
    for policies in ("streaming_llm", "streaming_llm,rce", "streaming_llm,rce"):
        result = CliRunner().invoke(
            app,
            ["eval", "kvmmu-ref-1m", "--suite", "quick", "--tasks", "niah_multikey/late",
             "--compression", "4", "--policies", policies, "--jobs", "1", "--no-speed",
             "--json", "--output", str(tmp_path)],
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout.splitlines()[-1])
        lines = (tmp_path / NAME).read_text().splitlines()
        assert lines[: len(before)] == before
        assert len(lines) == 2 + 1 + policies.count(",")
        assert (tmp_path / "index.html").stat().st_size > 1000
        before = lines


def test_help_shows_an_example() -> None:
    result = CliRunner().invoke(app, ["eval", "--help"])
    assert result.exit_code == 0
    assert "Example: kvmmu eval kvmmu-ref-1m" in " ".join(result.output.split())


def test_tasks_choose_among_the_cases_of_a_suite() -> None:
    suite = SUITES["quick"]
    assert pick(suite, []) == suite.cases
    late = pick(suite, ["niah_multikey/late", "niah_multikey"])
    assert [case.mode for case in late] == ["late", "shared", "seen"]


def test_size_changes_the_number_of_answers_and_leaves_perplexity() -> None:
    cases = SUITES["standard"].cases
    sizes = {(c.task, resized(c, 64).size, resized(c, 64).key == c.key) for c in cases}
    assert {size for task, size, _ in sizes if task != PERPLEXITY} == {64}
    assert {same for task, _, same in sizes if task == PERPLEXITY} == {True}
    assert {same for task, _, same in sizes if task != PERPLEXITY} == {False}


def test_every_case_has_a_key_of_its_own() -> None:
    for name in SUITES.names():
        keys = [case.key for case in SUITES[name].cases]
        assert len(set(keys)) == len(keys)
