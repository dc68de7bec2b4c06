"""kvmmu bench on the command line: options, one clear line for bad input, JSON last."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvmmu.cli import app
from kvmmu.evals.bench import candidates
from kvmmu.evals.bench.candidates import Candidate

FAKE = Path(__file__).parents[1] / "fake_peer.py"


def run(*args):
    return CliRunner().invoke(app, ["bench", *map(str, args)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["random:99m"], "a random model must be one of"),
        (["--contexts", "many"], "--contexts must be whole numbers"),
        (["--contexts", "3"], "--contexts must be numbers of at least 16"),
        (["--batch-sizes", "0"], "--batch-sizes must be numbers of at least 1"),
        (["--num-slots", "2"], "--num-slots must be numbers of at least 8"),
        (["--caps", "100"], "--caps must be numbers of at least 256"),
        (["--policy", "rec"], "did you mean 'rce'"),
        (["--baselines", "vllm"], "unknown candidate 'vllm'"),
        (["--ours", "none", "--baselines", "none"], "must name at least one"),
        (["--quick", "--caps", "none"], "--caps must be left out with --quick"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--turn-s", "0"], "--turn-s must exceed 0"),
        (["--peer-python", "vllm=/bin/sh"], "unknown peer 'vllm'"),
        (["--peer-python", "kvpress=/no/python"], "must name a Python, got '/no/python'"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(options, message, tmp_path):
    made = run(*options, "--output", tmp_path / "out", "--convert-dir", tmp_path / "models")
    assert made.exit_code == 2
    assert message in made.stderr
    assert made.stderr.count("\n") == 1
    assert made.stdout == ""


def test_an_output_that_is_a_file_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    made = run("random:tiny", "--output", file)
    assert made.exit_code == 2
    assert "--output must be a folder" in made.stderr


def test_help_has_an_example():
    made = run("--help")
    assert made.exit_code == 0
    assert "kvmmu bench --quick" in made.stdout


@pytest.fixture
def only_fakes(monkeypatch):
    """Let two candidates that only count stand for all."""
    given = {
        "engine": Candidate("engine", "kvmmu", "slots", "fp32", 4, "hf", FAKE, {"fans_out": True}),
        "transformers-dynamic": Candidate(
            "transformers-dynamic", "transformers", "full", "fp32", 4, "hf", FAKE,
            {"fans_out": True, "step_s": 0.001}, has_serve=True,
        ),
        "llama.cpp-f16": Candidate(
            "llama.cpp-f16", "llama.cpp", "full", "fp16", 2, "hf", FAKE, {}, ("no_such_package",)
        ),
    }  # fmt: skip
    monkeypatch.setattr(candidates, "CANDIDATES", given)


def small(tmp_path, *more):
    return run(
        "random:tiny", "--contexts", "32", "--batch-sizes", "1,2", "--num-slots", "8",
        "--caps", "256", "--rounds", "1", "--turn-s", "0.01", "--threads", "1",
        "--output", tmp_path / "out", "--convert-dir", tmp_path / "models",
        "--peer-python", f"llama.cpp={sys.executable}", *more,
    )  # fmt: skip


@pytest.mark.usefixtures("only_fakes")
def test_one_command_gives_table_pictures_and_json(tmp_path):
    made = small(tmp_path, "--json")
    assert made.exit_code == 0, made.stderr
    result = json.loads(made.stdout.splitlines()[-1])
    assert [p["groups"][0]["batch"] for p in result["points"]] == [1, 2]
    assert result["absent"][0]["candidate"] == "llama.cpp-f16"
    assert result == json.loads((tmp_path / "out" / "bench.json").read_text())
    for name in ("bench.md", "bench.png", "bench.svg", "bench-caps.png", "points.jsonl"):
        assert (tmp_path / "out" / name).is_file()


@pytest.mark.usefixtures("only_fakes")
def test_the_table_is_printed_and_messages_go_to_stderr(tmp_path):
    made = small(tmp_path)
    assert made.exit_code == 0, made.stderr
    assert "transformers-dynamic" in made.stdout
    assert "not installed (no_such_package)" in " ".join(made.stdout.split())
    assert "wrote bench.json" in made.stderr
