"""Every example runs offline on the shipped model, and pages quote what it prints."""

from __future__ import annotations

import functools
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((REPO / "examples").glob("*.py"))


@functools.cache
def printed(path: Path) -> str:
    """Run an example in a process of its own; return what it prints."""
    settings = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, env=settings, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example_runs_and_prints(path: Path) -> None:
    assert printed(path)


def example(number: str) -> str:
    """Return what the example of this number prints."""
    (path,) = (p for p in EXAMPLES if p.name.startswith(number))
    return printed(path)


def test_constant_cache_is_far_smaller_than_a_full_one() -> None:
    last = example("01").splitlines()[-1]
    ours, full = (int(n.replace(",", "")) for n in re.findall(r"([\d,]+) bytes", last))
    assert ours < full / 10


def test_policies_agree_where_nothing_is_evicted() -> None:
    rows = [line.split() for line in example("02").splitlines()[2:]]
    assert len({row[-1] for row in rows}) == 1
    assert rows[0][0] == "short_keys"


def test_trace_example_counts_what_stayed() -> None:
    shares = [float(s) for s in re.findall(r"([\d.]+)%", example("03"))]
    assert sum(shares) == pytest.approx(100, abs=0.05 * len(shares) + 0.01)


def test_batch_equals_the_full_cache_with_enough_slots() -> None:
    lines = example("04").splitlines()
    assert lines[-1].endswith("the full cache: True")
    assert sum("storage moved: False" in line for line in lines) == 2


def test_pages_quote_what_the_examples_print(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPO / "docs"))
    generate = importlib.import_module("generate")
    try:
        for page in generate.pages_with_blocks():
            text = page.read_text(encoding="utf-8")
            new = generate.filled(text, outputs=printed)
            assert text == new, f"{page.name}: run python docs/generate.py --outputs"
    finally:
        for name in ("generate", "worked_example"):
            sys.modules.pop(name, None)
