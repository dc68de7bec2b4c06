"""kvmmu simulate and kvmmu accelerators: what is asked for is what is simulated, or refused."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import kvmmu
from kvmmu.accel.workload import RegularRun, regular_events, regular_header
from kvmmu.cli import app
from kvmmu.cli.replay import replay_trace
from kvmmu.geometry import CacheGeometry
from kvmmu.trace import TraceWriter

SMALL = ("--model", "opt_125m", "--batch", 2, "--prompt", 96, "--generate", 32)


def run(*args):
    """Run the command line in this process."""
    return CliRunner().invoke(app, [str(arg) for arg in args])


def simulated(*args):
    """Simulate and return the JSON object."""
    result = run("simulate", *args, "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


def refused(result, *parts):
    """Assert exit code 2 and one line on stderr with all the parts."""
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """Record a regular run of the smallest shipped model's shapes."""
    geometry = CacheGeometry(
        num_layers=4, batch=2, num_kv_heads=2, head_dim=64, slots=(24,) * 4, dtype="float32",
        itemsize=4,
    )  # fmt: skip
    header = regular_header(
        geometry, granularity="head", chunk=16, num_sinks=4, window=3, model="kvmmu-ref-1m"
    )
    path = tmp_path_factory.mktemp("trace") / "run.trace"
    with TraceWriter(path, header) as writer:
        for event in regular_events(header, RegularRun(48, 16, 16)):
            writer.write(event)
    return path


@pytest.fixture(scope="module")
def made():
    return simulated(*SMALL, "--num-slots", 32)


# ---------------------------------------------------------------------------------- what is said
def test_json_is_alone_on_stdout_and_messages_are_on_stderr():
    result = run("simulate", *SMALL, "--num-slots", 32, "--json")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1
    assert set(json.loads(result.stdout)) >= {"simulation", "accuracy", "other_drams", "paper"}
    assert result.stderr.startswith("simulated in ")


def test_answer_comes_first_and_fits_80_columns():
    result = run("simulate", *SMALL, "--num-slots", 32)
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    first = "\n".join(lines[:26])
    for text in ("simulated", "accuracy", "not measured", "both overlapped", "1.52x", "KV-MMU"):
        assert text in first
    for text in ("Energy by unit", "lower bound", "Sensitivity", "own largest batch", "mm2",
                 "Resolved configuration", "scheduler window"):  # fmt: skip
        assert text in result.stdout


def test_options_reach_the_simulation():
    made = simulated(
        *SMALL, "--compression", 4, "--chunk", 8, "--window", 5, "--num-sinks", 2, "--kv-bits", 4,
        "--granularity", "head", "--layout", "head", "--softmax", "three_pass", "--corner", "high",
        "--dram", "ddr4_3200_x64", "--also-dram", "lpddr4_3200_x64", "--also-dram", "hbm2_256",
        "--set", "array.rows=16", "--set", "clock.clock_mhz=400",
    )  # fmt: skip
    about = made["simulation"]["configuration"]
    wanted = {
        "num_slots": 32, "chunk": 8, "window": 5, "num_sinks": 2, "granularity": "head",
        "layout": "head", "softmax": "three_pass", "corner": "high", "dram": "ddr4_3200_x64",
        "array": "16 x 32", "clock_mhz": 400.0, "batch": 2, "prompt": 96, "generate": 32,
    }  # fmt: skip
    assert {key: about[key] for key in wanted} == wanted
    assert about["bits"]["kv"] == 4
    assert list(made["other_drams"]) == ["lpddr4_3200_x64", "hbm2_256"]


def test_command_and_public_function_agree(made):
    simulation = kvmmu.simulate(model="opt_125m", batch=2, prompt=96, generate=32, num_slots=32)
    assert simulation.ratios == made["simulation"]["ratios"]


def test_public_function_takes_every_part_of_a_request():
    from kvmmu.accel.request import Request

    own = set(inspect.signature(kvmmu.simulate).parameters)
    theirs = set(inspect.signature(Request).parameters)
    assert own - {"softmax"} == theirs - {"softmax_form"}


def test_staggered_lanes_are_another_run(made):
    other = simulated(*SMALL, "--num-slots", 32, "--staggered")
    assert "mixed" in other["simulation"]["ours"]["phases"]
    assert "mixed" not in made["simulation"]["ours"]["phases"]


def test_output_holds_the_study_its_pictures_and_a_page(tmp_path):
    folder = tmp_path / "new" / "folder"
    made = simulated(*SMALL, "--num-slots", 32, "--output", folder)
    assert json.loads((folder / "simulation.json").read_text("utf-8")) == made
    assert len(list((folder / "accelerator").glob("*.png"))) == 6
    page = (folder / "index.html").read_text("utf-8")
    assert "opt_125m on jetcas65 with a KV-MMU, simulated" in page
    assert "Not in this folder" in page


def test_simulation_and_lists_import_no_torch():
    args = ["simulate", *map(str, SMALL), "--num-slots", "32", "--json"]
    code = (
        "import sys\nfrom kvmmu.cli import app\n"
        f"for args in ({args!r}, ['accelerators', '--json']):\n"
        "    app(args, standalone_mode=False)\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_readme_shows_what_the_command_prints():
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    (found,) = re.findall(r"\$ kvmmu (simulate .*)\n((?:.*\n)+?)```", readme)
    shown = [line.rstrip() for line in run(*found[0].split()).stdout.splitlines()]
    assert shown[: found[1].count("\n")] == found[1].splitlines()


# ---------------------------------------------------------------------------------------- traces
def test_trace_is_replayed_with_its_own_shape(trace):
    made = simulated("--model", "kvmmu-ref-1m", "--trace", trace)
    about = made["simulation"]["configuration"]
    assert (about["batch"], about["num_slots"], about["granularity"]) == (2, 24, "head")
    assert made["labels"]["workload"] == "trace run.trace"
    assert made["simulation"]["is_trace"]


def test_trace_of_the_regular_run_costs_what_the_regular_run_costs(trace):
    recorded = kvmmu.simulate(model="kvmmu-ref-1m", trace=trace)
    regular = kvmmu.simulate(
        model="kvmmu-ref-1m", batch=2, prompt=48, generate=16, num_slots=24, chunk=16, window=3,
        granularity="head",
    )  # fmt: skip
    for name, part in regular.ours.phases.items():
        np.testing.assert_array_equal(part.cost.counts, recorded.ours.phases[name].cost.counts)
        assert part.delay_s() == recorded.ours.phases[name].delay_s()


def test_trace_of_another_model_is_refused_by_its_geometry(trace):
    refused(
        run("simulate", "--model", "opt_125m", "--trace", trace),
        "num_layers of the trace must be the simulated one, 12 for opt_125m, got 4",
    )
    result = run("simulate", "--model", "kvmmu-ref-1m", "--trace", trace, "--num-slots", 32)
    refused(result, "num_slots of the trace must be the simulated one, 32", "got 24")


@pytest.mark.parametrize(
    "option",
    [
        ("--batch", 2), ("--prompt", 48), ("--generate", 16), ("--compression", 8), ("--chunk", 16),
        ("--window", 3), ("--num-sinks", 4), ("--granularity", "head"), ("--staggered",),
    ],
)  # fmt: skip
def test_what_a_trace_says_itself_is_refused_beside_it(trace, option):
    result = run("simulate", "--model", "kvmmu-ref-1m", "--trace", trace, *option)
    refused(result, f"--trace must go without {option[0]}")


def test_replay_compares_with_the_full_cache_and_disowns_the_measured_accuracy(trace):
    block = replay_trace(trace, "kvmmu-ref-1m", label="rce 1/8", dtype="float32")
    assert block["kind"] == "simulated"
    assert [row["name"] for row in block["rows"]] == ["rce", "full_8bit"]
    ours, full = (row["end_to_end"] for row in block["rows"])
    assert ours["kv_bytes_read"] < full["kv_bytes_read"]
    ratio = block["ratios"]["end_to_end"]["overlapped"]["energy"]
    assert ratio == pytest.approx(full["energy_j"] / ours["energy_j"])
    assert "float32 K and V and float scores, not with the simulated int8" in block["accuracy"]


def test_replay_of_what_cannot_be_simulated_says_why(trace):
    block = replay_trace(trace, "llama_7b", label="rce 1/8", dtype="float32")
    assert "num_layers" in block["refused"]
    assert "rows" not in block


# ------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--accelerator", "jetcas56"], ["unknown accelerator", "did you mean 'jetcas65'?"]),
        (["--accelerator", "./none.yaml"], ["none.yaml must be a readable file"]),
        (["--model", "lama_7b"], ["unknown model", "did you mean 'llama_7b'?"]),
        (["--dram", "lpddr5"], ["unknown DRAM 'lpddr5'", "lpddr4_3200_x64"]),
        (["--also-dram", "lpddr5"], ["unknown DRAM 'lpddr5'"]),
        (["--also-dram", "lpddr4_3200_x64"], ["--also-dram must name another DRAM", "again"]),
        (["--num-slots", 64, "--compression", 8], ["--num-slots and --compression", "got both"]),
        (["--num-slots", 32, "--window", 64], ["num_slots must exceed num_sinks + window = 68"]),
        (["--batch", 0], ["batch must be at least 1, got 0"]),
        (["--generate", 0], ["generate must be at least 1, got 0"]),
        (["--compression", 0.5], ["compression must be at least 1"]),
        (["--batch", 200], ["must fit the 17.2 GB of lpddr4_3200_x64", "fewer lanes or slots"]),
        (["--corner", "mid"], ["--corner must be low, nominal or high, got 'mid'"]),
        (["--softmax", "twice"], ["softmax", "two_pass", "'twice'"]),
        (["--layout", "rows"], ["layout", "slot, split, head", "'rows'"]),
        (["--granularity", "token"], ["granularity", "'token'"]),
        (["--trace", "none.trace"], ["--trace must be a file that exists, got 'none.trace'"]),
        (["--set", "array.rows"], ["--set must be key=value", "'array.rows'"]),
        (["--set", "arry.rows=3"], ["unknown key 'arry'", "did you mean 'array'?"]),
        (["--set", "array.rows=0"], ["array.rows must be greater than 0, got 0"]),
        (["--set", "array.rows=2", "--set", "array.rows=3"], ["each key once", "twice"]),
        (["--set", "bits.kv=4", "--kv-bits", 4], ["--kv-bits and --set bits.kv", "got both"]),
        (["--set", "layout=head", "--layout", "head"], ["--layout and --set layout"]),
        (
            ["--set", "buffers.kv_kib=32"],
            ["buffers.kv_port_bytes must be at most 16", "add banks"],
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(args, parts):
    refused(run("simulate", *args), *parts)


def test_output_that_is_a_file_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    refused(run("simulate", "--output", file), "--output must be a folder", str(file))


def test_file_that_is_no_trace_is_refused(tmp_path):
    file = tmp_path / "a.trace"
    file.write_text("text")
    refused(run("simulate", "--trace", file), str(file))


def test_dram_without_bandwidth_is_refused_by_its_key(tmp_path):
    from kvmmu.accel.dram.spec import CONFIGS

    text = (CONFIGS / "lpddr4_3200_x64.yaml").read_text("utf-8")
    assert "clock_mhz: 1600.0" in text
    file = tmp_path / "zero.yaml"
    file.write_text(text.replace("clock_mhz: 1600.0", "clock_mhz: 0.0"), encoding="utf-8")
    refused(run("simulate", *SMALL, "--dram", file), "zero.yaml", "clock_mhz", "greater than 0")


@pytest.mark.parametrize("option", ["--accelerator", "--dram"])
def test_file_that_is_no_yaml_is_refused(tmp_path, option):
    file = tmp_path / "bad.yaml"
    file.write_text("name: [")
    refused(run("simulate", *SMALL, option, file), "bad.yaml")


# ----------------------------------------------------------------------------------------- lists
def test_every_accelerator_is_listed_with_its_balance():
    made = json.loads(run("accelerators", "--json").stdout)
    rows = {row["name"]: row for row in made["accelerators"]}
    assert list(rows) == kvmmu.list_accelerators()
    row = rows["jetcas65"]
    bandwidth = row["dram_gbps"] * 1e9
    assert row["balance"] == pytest.approx(row["num_pes"] * row["clock_mhz"] * 1e6 / bandwidth / 16)
    half = json.loads(run("accelerators", "--batch", 32, "--json").stdout)
    assert half["accelerators"][0]["balance"] == pytest.approx(rows["edge28"]["balance"] / 2)


def test_published_machine_is_listed_with_a_figure_and_its_error():
    made = json.loads(run("accelerators", "--json").stdout)
    text = " ".join(run("accelerators").stdout.split())
    for row in made["published"]:
        met = any(abs(figure["error"]) <= made["tolerance"] for figure in row["figures"])
        assert met or row["shown_as"] == "roofline"
        assert f"{row['name']}: " in text
        assert any(f"error {figure['error']:+.1%}" in text for figure in row["figures"])


def test_lists_name_every_dram_and_model():
    text = run("accelerators").stdout
    made = json.loads(run("accelerators", "--json").stdout)
    assert {row["name"] for row in made["drams"]} >= {"lpddr4_3200_x64", "hbm2_256"}
    assert {row["name"] for row in made["models"]} >= {"llama_7b", "kvmmu-ref-1m"}
    assert all(row["name"] in text for row in made["drams"] + made["models"])
    assert max(map(len, text.splitlines())) <= 80


def test_batch_of_the_list_out_of_range_is_refused():
    refused(run("accelerators", "--batch", 0), "--batch must be at least 1, got 0")


@pytest.mark.parametrize("command", ["simulate", "accelerators", "report"])
def test_help_has_an_example(command):
    text = run(command, "--help").stdout
    assert f"kvmmu {command}" in text
    assert "Example:" in text
