"""The command line: exit codes, one clear line for bad input, JSON last on stdout."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import kvmmu
from kvmmu.cli import app, generate
from kvmmu.cli.policy_text import describe_policy, parse_policy
from kvmmu.policies.base import list_policies
from kvmmu.policies.h2o import H2O
from kvmmu.policies.rce import RCE
from kvmmu.policies.snapkv import SnapKV

MODEL = "kvmmu-ref-1m"
STORY = "It was on a dreary night of November that I beheld the accomplishment of my toils."


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Set what the commands would set, so that it is undone after the test."""
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TORCH_CPP_LOG_LEVEL", "KINETO_LOG_LEVEL"):
        monkeypatch.setenv(name, "1")
    for name in ("HF_HUB_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, "error")


def run(*args, **options):
    """Run the command line in this process."""
    return CliRunner().invoke(app, [str(arg) for arg in args], **options)


def fresh(*args):
    """Run the command line as a user does, in an interpreter of its own."""
    command = [sys.executable, "-m", "kvmmu", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


def refused(result, *parts):
    """Assert exit code 2 and one line on stderr with all the parts."""
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    # transformers reads the switch of its bar once; another test may have imported it before
    lines = [line for line in result.stderr.splitlines() if "Loading weights" not in line]
    assert [line[:7] for line in lines if line] == ["kvmmu: "]
    for part in parts:
        assert part in lines[-1]


# ------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--num-slots", 64, "--compression", 8], ["--num-slots and --compression"]),
        (["--full", "--num-slots", 64], ["--num-slots and --full"]),
        ([], ["exactly one of --num-slots, --compression and --full", "got none"]),
        (["--num-slots", "many"], ["--num-slots", "integer"]),
        (["--num-slots", 64, "--max-new-tokens", 0], ["--max-new-tokens", "got 0"]),
        (["--num-slots", 64, "--temperature", -1], ["--temperature must be at least 0"]),
        (["--num-slots", 64, "--top-p", 1.5], ["--top-p must lie in (0, 1]"]),
        (["--full", "--trace", "x.trace"], ["--trace", "--full"]),
        (["--num-slots", 64, "--trace", "no/such/x.trace"], ["folder of --trace must exist"]),
        (["--num-slots", 64, "--policy", "rec"], ["did you mean 'rce'?"]),
        (["--num-slots", 64, "--policy", "rce:deacy=1"], ["'deacy'", "did you mean 'decay'?"]),
        (["--num-slots", 64, "--policy", "rce:decay=x"], ["decay", "a number", "'x'"]),
        (["--num-slots", 64, "--policy", "rce:decay=2"], ["decay must lie in (0, 1]"]),
        (["--num-slots", 64, "--device", "nosuch"], ["--device", "'nosuch'"]),
        (["--num-slots", 5], ["num_slots must exceed num_sinks + window", "got 5"]),
        (["--compression", 0.5], ["compression must be at least 1"]),
        (["--num-slots", 64, "--granularity", "row"], ["granularity", "'row'"]),
        (["--num-slots", 64, "--dtype", "int8"], ["dtype", "'int8'"]),
        (["--full", "--policy", "rce"], ["--full must go without --policy"]),
        (["--full", "--window", 4], ["--full must go without --window"]),
        (["--full", "--num-sinks", 4], ["--full must go without --num-sinks"]),
        (["--full", "--granularity", "head"], ["--full must go without --granularity"]),
        (["--full", "--positions", "in_cache"], ["--full must go without --positions"]),
        (["--num-slots", 64, "--trace", "."], ["--trace must be a file", "'.'"]),
        (["--num-slots", 64, "--trace-masses"], ["--trace-masses must go with --trace"]),
        (
            ["--num-slots", 64, "--trace", "x.trace", "--trace-masses"],
            ["--trace-masses must go with --policy", "fixed_point", "'rce'"],
        ),
        (["--num-slots", 64, "--seed", -1], ["--seed must lie in [0, 2**31)", "-1"]),
        (["--num-slots", 64, "--seed", 2**70], ["--seed must lie in"]),
        (["--full", "--max-new-tokens", 9999], ["trained positions", "8193"]),
        (["--num-slots", 64, "--max-new-tokens", 9999], ["trained positions", "8193"]),
        (["--compression", 30], ["compression 30 of ", "num_slots must exceed"]),
    ],
)
def test_bad_option_is_refused_in_one_line(args, parts):
    refused(run("generate", MODEL, "--prompt", STORY, *args), *parts)


@pytest.mark.parametrize("prompt", ["", "  \n "])
def test_empty_prompt_is_refused(prompt):
    refused(run("generate", MODEL, "--full", "--prompt", prompt), "prompt must not be empty")


def test_empty_prompt_file_is_refused_by_name(tmp_path):
    file = tmp_path / "story.txt"
    file.write_text("\n")
    refused(run("generate", MODEL, "--full", "--prompt-file", file), "must not be empty", str(file))


def test_prompt_that_is_no_utf_8_is_refused(tmp_path):
    file = tmp_path / "story.txt"
    file.write_bytes(b"\xff\xfe abc")
    refused(run("generate", MODEL, "--full", "--prompt-file", file), "UTF-8", str(file))
    stdin = run("generate", MODEL, "--full", "--prompt-file", "-", input=b"\xff\xfe abc")
    refused(stdin, "UTF-8")
    refused(run("generate", MODEL, "--full", "--prompt", "\udcff\udcfe abc"), "UTF-8", "--prompt")


@pytest.mark.parametrize("seed", [-1, 2**40])
def test_demo_seed_out_of_range_is_refused(tmp_path, seed):
    refused(run("demo", "--output", tmp_path / "new", "--seed", seed), "--seed must lie in")
    assert not (tmp_path / "new").exists()


def test_interruption_is_said_and_exits_with_130(monkeypatch):
    def interrupt(model, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "load_model", interrupt)
    result = run("generate", MODEL, "--full", "--prompt", STORY)
    assert result.exit_code == 130
    assert result.stderr == "kvmmu: interrupted\n"


def test_missing_prompt_file_is_refused(tmp_path):
    file = tmp_path / "none.txt"
    refused(run("generate", MODEL, "--full", "--prompt-file", file), "--prompt-file", str(file))


def test_prompt_given_twice_is_refused(tmp_path):
    refused(
        run("generate", MODEL, "--full", "--prompt", "a", "--prompt-file", tmp_path), "got both"
    )


def test_unknown_model_is_refused_with_the_shipped_ones():
    refused(run("generate", "nosuch", "--full", "--prompt", STORY), MODEL, "'nosuch'")


def test_folder_without_a_model_is_refused(tmp_path):
    refused(run("generate", tmp_path, "--full", "--prompt", STORY), "config.json", str(tmp_path))


def test_demo_output_that_is_a_file_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    refused(run("demo", "--output", file), "--output must be a folder", str(file))


def test_missing_model_is_refused():
    refused(run("generate", "--full"), "model")


def test_unknown_command_is_refused():
    refused(run("generrate"), "generrate")


def test_process_exits_with_2_and_no_traceback():
    done = fresh("generate", MODEL, "--prompt", STORY, "--num-slots", 64, "--full")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


def test_fault_exits_with_1_and_a_traceback(monkeypatch, capfd):
    def fail(model, **options):
        raise RuntimeError("a fault")

    monkeypatch.setattr(generate, "load_model", fail)
    result = run("generate", MODEL, "--full", "--prompt", STORY)
    assert result.exit_code == 1
    assert "Traceback" in result.stderr + capfd.readouterr().err


# ------------------------------------------------------------------------------------ generation
def test_json_is_last_on_stdout_and_progress_is_not_there():
    done = fresh(
        *("generate", MODEL, "--prompt", STORY, "--num-slots", 16),
        *("--max-new-tokens", 8, "--json"),
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout.splitlines()[-1])
    assert len(done.stdout.splitlines()) == 1
    assert made["new_tokens"] == 8
    assert made["cache"]["num_slots"] == 16
    assert made["cache"]["evicted"] == made["prompt_tokens"] + 7 - 16
    assert done.stderr.startswith(f"{made['prompt_tokens']} + 8 tokens; rce, 16 slots; KV")


def generated(*args):
    result = run("generate", MODEL, "--max-new-tokens", 6, "--prompt", STORY, *args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_text_goes_to_stdout_and_equals_kvmmu_load():
    result = run("generate", MODEL, "--prompt", STORY, "--num-slots", 16, "--max-new-tokens", 6)
    assert result.exit_code == 0
    lm = kvmmu.load(MODEL, 16)
    assert result.stdout == lm.generate(STORY, max_new_tokens=6) + "\n"


def test_compression_counts_prompt_and_new_tokens():
    made = generated("--compression", 2)
    length = made["prompt_tokens"] + 6
    assert made["cache"]["num_slots"] == -(-length // 2)


def test_full_cache_and_enough_slots_give_the_same_text():
    full, slots = generated("--full"), generated("--num-slots", 64)
    assert full["cache"]["mode"] == "full"
    assert full["text"] == slots["text"]
    assert slots["cache"]["evicted"] == 0
    assert slots["cache"]["full_kv_bytes"] == full["cache"]["kv_bytes"]


def test_options_reach_the_cache():
    made = generated(
        *("--num-slots", 20, "--policy", "rce:decay=0.9,normalize=none", "--window", 5),
        *("--num-sinks", 2, "--granularity", "layer", "--positions", "in_cache"),
    )["cache"]
    assert made["policy"]["decay"] == 0.9
    assert made["policy"]["normalize"] == "none"
    assert (made["window"], made["num_sinks"]) == (5, 2)
    assert (made["granularity"], made["positions"]) == ("layer", "in_cache")


def test_sampling_repeats_with_its_seed():
    options = ("--num-slots", 20, "--temperature", 2.0, "--top-p", 0.95)
    one, two, other = (generated(*options, "--seed", seed)["text"] for seed in (1, 1, 2))
    assert one == two
    assert one != other


def test_prompt_comes_from_stdin():
    args = ("--prompt-file", "-", "--num-slots", 16, "--max-new-tokens", 3, "--json")
    result = run("generate", MODEL, *args, input=STORY)
    assert json.loads(result.stdout)["new_tokens"] == 3


def test_trace_is_written_and_summed_up(tmp_path):
    file = tmp_path / "run.trace"
    made = generated("--num-slots", 16, "--trace", file)
    assert kvmmu.trace.read(file).header.policy == "rce"
    assert made["trace"]["tokens"] == made["cache"]["num_tokens"]
    assert made["trace"]["evictions"] > 0


def test_masses_are_traced_and_their_size_is_said_first(tmp_path):
    file = tmp_path / "run.trace"
    result = run(
        *("generate", MODEL, "--prompt", STORY, "--num-slots", 16, "--max-new-tokens", 4),
        *("--policy", "rce:normalize=none,fixed_point=true", "--trace", file, "--trace-masses"),
    )
    assert result.exit_code == 0, result.stderr
    lines = result.stderr.splitlines()
    said = [line for line in lines if line and "Loading weights" not in line]
    assert said[0].startswith("masses: up to ")
    trace = kvmmu.trace.read(file)
    trace.verify()
    assert trace.header.has_masses
    made = kvmmu.trace.agreement(trace)
    assert made.evictions > 0
    assert f"{made.rate:.2%} of the {made.evictions:,} victims in decode" in said[-1]


# ------------------------------------------------------------------------------------------ demo
def test_demo_writes_its_files_and_prints_its_results(tmp_path, monkeypatch):
    from kvmmu.evals.demo import Plan

    rows = (("hot_set", 1), ("question_seen", 2), ("late_query", 1))
    tiny = Plan(
        num_tokens=128,
        rows=rows,
        num_pages=1,
        num_scored=64,
        policies=("rce",),
        compressions=(4,),
        more_compressions=(),
    )
    monkeypatch.setattr(Plan, "quick", lambda: tiny)
    folder = tmp_path / "new" / "demo"
    result = run("demo", "--quick", "--output", folder, "--seed", 3, "--json")
    assert result.exit_code == 0, result.stderr
    made = json.loads(result.stdout.splitlines()[-1])
    assert made == json.loads((folder / "results.json").read_text())
    assert sorted(path.name for path in folder.iterdir()) == sorted(made["files"])
    assert [cache["label"] for cache in made["caches"]][2:] == ["rce 1/4"]
    assert (made["seed"], made["num_tokens"]) == (3, 128)
    assert f"wrote {', '.join(made['files'])} to {folder}" in result.stderr.replace("\n", "")
    block = made["accelerator"]
    assert (block["kind"], block["label"], block["num_slots"]) == ("simulated", "rce 1/8", 16)
    ours, full = (row["end_to_end"] for row in block["rows"])
    assert 0 < ours["kv_bytes_read"] < full["kv_bytes_read"]
    assert "replayed on jetcas65 (simulated)" in (folder / "index.html").read_text("utf-8")


# ----------------------------------------------------------------------------------------- lists
def test_every_policy_is_listed_with_its_rule():
    rows = json.loads(run("policies", "--json").stdout)["policies"]
    assert [row["name"] for row in rows] == list_policies()
    assert all(row["rule"].endswith(".") for row in rows)
    text = run("policies").stdout
    assert all(name in text for name in list_policies())


def test_every_shipped_model_is_listed_with_its_size():
    rows = json.loads(run("models", "--json").stdout)["models"]
    assert [row["name"] for row in rows] == kvmmu.list_models()
    assert all(row["bytes"] > 1e5 for row in rows)


def test_policy_text_reads_every_kind_of_value():
    assert parse_policy("rce") == RCE()
    assert parse_policy("rce:decay=0.5, normalize=none, fixed_point=true") == RCE(
        decay=0.5, normalize="none", fixed_point=True
    )
    assert parse_policy("snapkv:then=h2o,observation_window=none,kernel_size=7") == SnapKV(
        then=H2O(), kernel_size=7
    )


@pytest.mark.parametrize("text", ["rce:decay", "rce:normalize=sum", "snapkv:kernel_size=1.5"])
def test_policy_text_that_cannot_be_read_is_refused(text):
    with pytest.raises(ValueError, match="must be"):
        parse_policy(text)


@pytest.mark.parametrize("name", list_policies())
def test_rule_leaves_parameters_and_differences_out(name):
    made = describe_policy(name)
    assert "Parameters" not in made["rule"]
    assert "Differs" not in made["rule"]


# ------------------------------------------------------------------------------------------ help
@pytest.mark.parametrize("command", ["demo", "generate", "policies", "models"])
def test_help_has_an_example(command):
    text = run(command, "--help").stdout
    assert f"kvmmu {command}" in text
    assert "Example:" in text


def test_version_is_printed():
    assert run("--version").stdout == f"kvmmu {kvmmu.__version__}\n"


def test_no_command_prints_the_help():
    result = run()
    assert result.exit_code == 0
    assert "generate" in result.stdout


def test_import_of_the_command_line_is_light():
    code = "import kvmmu.cli, sys; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
