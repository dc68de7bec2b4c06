"""A candidate's child process: what is asked and answered, what becomes of faults and idle ones."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvmmu.evals.bench.process import Child, ChildError

FAKE = Path(__file__).parents[1] / "fake_peer.py"


@pytest.fixture
def child(tmp_path):
    made = Child(sys.executable, FAKE, tmp_path / "log", threads=1, limit_s=120)
    yield made
    made.close()


def opened(child, **settings):
    child.ask("open", settings={"fans_out": True, **settings})
    child.ask("prefill", prompts=[[1, 2, 3]])
    return child


def test_answers_are_not_mixed_with_what_the_peer_prints(child, tmp_path):
    opened(child)
    assert child.ask("decode", count=3)["value"] == [[3, 4, 5]]
    assert "noise on stdout" in (tmp_path / "log").read_text()


def test_turns_say_wall_and_cpu_time_and_memory(child):
    opened(child, step_s=0.02)
    made = child.ask("decode", count=10)
    assert 0.2 <= made["wall_s"] < 5
    assert 0 < made["cpu_s"] <= made["wall_s"] * 1.2
    assert made["cpu_s"] <= made["all_cpu_s"]
    made = child.ask("prefill", prompts=[[1]])
    assert 0 < made["before_bytes"] <= made["peak_bytes"]


def test_an_error_is_one_line(child):
    with pytest.raises(ChildError, match=r"^ValueError: this peer refuses the model$"):
        child.ask("open", settings={"fans_out": True, "refuses": True})


def test_a_dead_child_gives_its_last_words(child):
    opened(child, dies=True)
    with pytest.raises(ChildError, match=r"^last words$"):
        child.ask("decode", count=1)


def test_a_child_that_hangs_is_given_up(child):
    opened(child, hangs=True)
    child.limit_s = 0.2
    with pytest.raises(ChildError, match="took longer than 0 s"):
        child.ask("decode", count=1)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_child_is_stopped_between_its_turns(child):
    opened(child)
    stat = Path(f"/proc/{child._process.pid}/stat")
    deadline = time.monotonic() + 5
    while stat.read_text().rsplit(")", 1)[1].split()[0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_closed_child_is_gone(child):
    opened(child)
    child.close()
    assert child._process.poll() is not None


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends the children of a dead parent")
def test_children_of_a_killed_run_are_gone(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from kvmmu.evals.bench.process import Child;"
        "child = Child(sys.executable, Path(sys.argv[1]), Path(sys.argv[2]), threads=1);"
        "child.ask('open', settings={'fans_out': True});"
        "print(child._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", code, str(FAKE), str(tmp_path / "log")]
    made = subprocess.run(command, capture_output=True, text=True)
    stat = Path(f"/proc/{int(made.stdout)}/stat")
    deadline = time.monotonic() + 5
    while stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)
