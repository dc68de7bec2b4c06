"""lm-eval through the slots: as stock `hf` where all tokens fit, something else where not.

Three tasks of our own over local files, on the shipped model, one thread, float32.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys

import pytest
import torch
import yaml
from typer.testing import CliRunner

from kvmmu.cli import app
from kvmmu.evals.lm_harness.arguments import CacheArguments, MissingExtraError, as_arguments
from kvmmu.hf.cache import SlotCache
from kvmmu.hf.load import model_path
from kvmmu.policies.base import list_policies
from kvmmu.policies.rce import RCE

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'kvmmu[eval]'")

MODEL = "kvmmu-ref-1m"
STORY = (
    "The rain had stopped, and {name} walked along the shore to the house of her father. "
    "She had a letter, and in the letter was a {thing}. The old man sat at the fire, and the wind "
    "was loud in the night; he spoke of the sea, of the ships and of the men who had not come "
    "home. "
)
ROWS = [
    {"name": "Elizabeth", "thing": "key"},
    {"name": "Margaret", "thing": "ring"},
    {"name": "Justine", "thing": "map"},
    {"name": "Agatha", "thing": "lock of hair"},
]
TASKS = {
    "our_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}In the letter was a",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
    },
    "our_text": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}In the morning",
        "doc_to_target": "thing",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 24},
        "metric_list": [{"metric": "exact_match"}],
    },
    "our_rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the tasks and their rows; nothing is kept outside it."""
    place = tmp_path_factory.mktemp("tasks")
    choices = [f" {row['thing']}" for row in ROWS]
    rows = [
        row | {"text": STORY.format(**row) * 2, "choices": choices, "label": i}
        for i, row in enumerate(ROWS)
    ]
    data = place / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, task in TASKS.items():
        source = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(place / "c")},
            "test_split": "test",
        }
        (place / f"{name}.yaml").write_text(yaml.safe_dump(source | task), encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def answers(folder):
    """Return what a model answers to every request, by task; asked for once."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    importlib.import_module("kvmmu.evals.lm_harness.model")  # registers "kvmmu"
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    known: dict[str, dict[str, list]] = {}

    def ask(model, **arguments):
        key = repr((model, arguments))
        if key not in known:
            done = lm_eval.simple_evaluate(
                model,
                arguments | {"dtype": "float32"},
                tasks=list(TASKS),
                task_manager=manager,
                device="cpu",
                batch_size=1,
                bootstrap_iters=0,
            )
            rows = done["samples"].items()
            known[key] = {name: [row["resps"] for row in made] for name, made in rows}
        return known[key]

    return ask


@pytest.fixture
def stock(answers):
    """What lm-eval's own model answers, without any of ours."""
    return answers("hf", pretrained=model_path(MODEL))


def made(**arguments):
    """Return our model itself."""
    from kvmmu.evals.lm_harness.model import KVMMULM

    return KVMMULM(MODEL, **arguments)


def ours(answers, **arguments):
    return answers("kvmmu", pretrained=MODEL, **arguments)


def sums(rows):
    """Every log-likelihood of a task, in order."""
    flat = [reply for row in rows for replies in row for reply in replies]
    return [reply[0] if isinstance(reply, tuple | list) else reply for reply in flat]


def choices(rows):
    """Each document's likeliest choice."""
    return [max(range(len(row)), key=lambda i: row[i][0][0]) for row in rows]


# ------------------------------------------------------------------------------------ all fits
@pytest.mark.parametrize("task", ["our_choice", "our_rolling"])
@pytest.mark.parametrize("given", [{"num_slots": 512}, {"compression": 1}])
def test_log_likelihoods_are_stock_where_all_tokens_fit(answers, stock, task, given):
    wanted, got = sums(stock[task]), sums(ours(answers, **given)[task])
    assert got == pytest.approx(wanted, rel=1e-4)  # one forward against many: float32's order


@pytest.mark.parametrize("given", [{"num_slots": 512}, {"compression": 1}])
def test_choices_and_texts_are_stock_where_all_tokens_fit(answers, stock, given):
    got = ours(answers, **given)
    assert choices(got["our_choice"]) == choices(stock["our_choice"])
    greedy = [[reply[0][1] for reply in row] for row in got["our_choice"]]
    assert greedy == [[reply[0][1] for reply in row] for row in stock["our_choice"]]
    assert got["our_text"] == stock["our_text"]


def test_full_is_stock_to_the_bit(answers, stock):
    assert ours(answers, full=True) == stock


# -------------------------------------------------------------------------------- not all fits
@pytest.mark.parametrize("task", ["our_choice", "our_rolling", "our_text"])
@pytest.mark.parametrize("given", [{"num_slots": 24}, {"compression": 4}])
def test_a_small_cache_changes_every_task(answers, stock, task, given):
    assert ours(answers, **given)[task] != stock[task]
    if task != "our_text":
        far = [
            abs(a / b - 1) for a, b in zip(sums(ours(answers, **given)[task]), sums(stock[task]))
        ]
        assert min(far) > 1e-3  # every row, by ten times what the order of sums may change


def test_a_small_cache_changes_the_generated_ids():
    context = torch.arange(100, 300)[None]
    full, small = made(full=True), made(num_slots=16)
    wanted = full._model_generate(context, 230, [])
    assert not torch.equal(small._model_generate(context, 230, []), wanted)
    assert torch.equal(made(num_slots=230)._model_generate(context, 230, []), wanted)


@pytest.mark.parametrize("policy", list_policies())
def test_every_policy_is_on_the_path_of_both(policy):
    """Selectors too: once the cache is full of a policy's choice, what follows differs."""
    context, tokens = list(range(100, 300)), [7, 300, 301]
    full = made(full=True)._loglikelihood_tokens([(None, context, tokens)], disable_tqdm=True)
    whole = made(num_slots=256, policy=policy)
    small = made(num_slots=16, policy=policy)
    got = whole._loglikelihood_tokens([(None, context, tokens)], disable_tqdm=True)
    assert got[0][0] == pytest.approx(full[0][0], rel=1e-4)
    less = small._loglikelihood_tokens([(None, context, tokens)], disable_tqdm=True)
    assert abs(less[0][0] / full[0][0] - 1) > 1e-3
    ids = torch.tensor([context])
    assert torch.equal(
        whole._model_generate(ids, 216, []), made(full=True)._model_generate(ids, 216, [])
    )


# ------------------------------------------------------------------------------ how it is fed
@pytest.fixture
def calls(monkeypatch):
    """Every call of a decoder as (new tokens, C), while a SlotCache is filled."""
    from transformers import LlamaForCausalLM

    seen: list[tuple[int, int]] = []
    forward = LlamaForCausalLM.forward

    def spy(self, input_ids=None, **rest):
        cache = rest.get("past_key_values")
        if isinstance(cache, SlotCache):
            seen.append((input_ids.shape[1], cache.num_slots))
        return forward(self, input_ids=input_ids, **rest)

    monkeypatch.setattr(LlamaForCausalLM, "forward", spy)
    return seen


def test_what_is_scored_is_fed_token_by_token_after_small_chunks(calls):
    context, tokens = list(range(100, 200)), [7, 8, 9]
    made(num_slots=40)._loglikelihood_tokens([(None, context, tokens)], disable_tqdm=True)
    # 99 of the context in chunks of at most max(16, 40 // 4), its last and two of the answer
    assert calls == [(16, 40)] * 6 + [(3, 40)] + [(1, 40)] * 3


def test_a_rolling_text_is_all_fed_token_by_token(calls):
    made(num_slots=16)._loglikelihood_tokens([(None, [0], [7, 8, 9, 10])], disable_tqdm=True)
    assert calls == [(1, 16)] * 4


def test_a_question_is_read_in_small_chunks_before_generating(calls):
    made(compression=2)._model_generate(torch.arange(100, 201)[None], 104, [])
    assert calls == [(16, 52)] * 6 + [(4, 52)] + [(1, 52)] * 3


def test_compression_counts_context_and_answer(calls):
    lm = made(compression=4)
    lm._loglikelihood_tokens([(None, list(range(100, 158)), [7, 8, 9])], disable_tqdm=True)
    assert {num_slots for _, num_slots in calls} == {16}  # ceil(61 / 4)


def test_a_context_that_is_shared_is_read_once_and_answers_stay_the_same(calls):
    context = list(range(100, 200))
    asked = [(None, context, tokens) for tokens in ([7, 8, 9], [5], [9, 8], [6])]
    lm = made(num_slots=24)
    together = lm._loglikelihood_tokens(asked, disable_tqdm=True)
    assert len(calls) == 7 + 1 + 3  # the context less one, its last, and 2 + 0 + 1 + 0 of answers
    apart = [lm._loglikelihood_tokens([one], disable_tqdm=True)[0] for one in asked]
    assert together == apart


def test_a_text_beyond_max_length_loses_its_beginning_as_in_stock():
    asked = [(None, list(range(100, 200)), [7, 8])]
    wanted = made(full=True, max_length=50)._loglikelihood_tokens(asked, disable_tqdm=True)
    with pytest.warns(UserWarning, match="1 contexts lost their beginning to fit max_length 50"):
        got = made(num_slots=64, max_length=50)._loglikelihood_tokens(asked, disable_tqdm=True)
    assert got[0][0] == pytest.approx(wanted[0][0], rel=1e-4)


def test_places_in_the_cache_take_texts_beyond_the_trained_length():
    asked = [(None, [100 + i % 900 for i in range(8400)], [7, 8])]
    lm = made(num_slots=256, positions="in_cache", max_length=10_000)
    (total, _) = lm._loglikelihood_tokens(asked, disable_tqdm=True)[0]
    assert total < 0


# ------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one of num_slots, compression and full must be given, got none"),
        ({"num_slots": 64, "compression": 2}, "got num_slots and compression"),
        ({"full": True, "policy": "rce"}, "full must go without policy"),
        ({"full": 1}, "full must be True or False, got 1"),
        ({"num_slots": 64, "policy": "rec"}, "did you mean 'rce'"),
        ({"num_slots": 64, "policy": "rce:deacy=1"}, "did you mean 'decay'"),
        ({"num_slots": 64, "polcy": "rce"}, "did you mean 'policy'"),
        ({"num_slots": 64, "batch_size": 4}, "batch_size must be 1"),
        ({"num_slots": 64, "batch_size": "auto"}, "batch_size must be 1"),
        ({"num_slots": 64, "parallelize": True}, "unknown argument of model 'kvmmu' 'parallelize'"),
        ({"num_slots": 3}, "num_slots must exceed"),
        ({"compression": 0.5}, "compression must be at least 1"),
        ({"num_slots": 64, "granularity": "row"}, "granularity must be one of"),
        ({"num_slots": 64, "dtype": "int8"}, "dtype must be"),
    ],
)
def test_wrong_arguments_are_refused(given, message):
    with pytest.raises(ValueError, match="(?s)" + message):
        made(**given)


def test_policy_text_brings_its_parameters():
    made = as_arguments({"num_slots": 64, "policy": "rce:decay=0.9"})
    assert made.policy == RCE(decay=0.9)
    assert made == CacheArguments(num_slots=64, policy=RCE(decay=0.9))


def test_too_few_slots_are_refused_before_anything_is_run(calls):
    asked = [(None, list(range(100, 300)), [7]), (None, [100, 101], [7])]
    with pytest.raises(ValueError, match="compression 8 of a request of 3 tokens makes 1 slots"):
        made(compression=8)._loglikelihood_tokens(asked, disable_tqdm=True)
    assert not calls


def test_beams_are_refused():
    with pytest.raises(ValueError, match="num_beams must be 1"):
        made(num_slots=16)._model_generate(torch.tensor([[1, 2]]), 9, [], num_beams=2)


def test_without_lm_eval_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "kvmmu.evals.lm_harness.model", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval.api.registry", None)
    with pytest.raises(MissingExtraError, match=r"needs lm-eval; pip install 'kvmmu\[eval\]'"):
        importlib.import_module("kvmmu.evals.lm_harness.model")


# -------------------------------------------------------------------------------- command line
@pytest.fixture
def command(folder, monkeypatch):
    """Run `kvmmu lm-eval` in this process; what it sets is undone."""
    for name in (
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "TORCH_CPP_LOG_LEVEL",
        "KINETO_LOG_LEVEL",
        "TQDM_DISABLE",
        "HF_DATASETS_DISABLE_PROGRESS_BARS",
        "DISABLE_MULTIPROC",
    ):
        monkeypatch.setenv(name, "1")
    for name in ("HF_HUB_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, "error")

    def run(*args):
        line = ["lm-eval", MODEL, "--include-path", str(folder), *map(str, args)]
        return CliRunner().invoke(app, line)

    return run


def test_the_command_prints_json_and_writes_it(command, tmp_path):
    file = tmp_path / "out.json"
    args = ["--tasks", "our_choice,our_text", "--num-slots", 64, "--policy", "rce:decay=0.9"]
    done = command(*args, "--limit", 2, "--output", file, "--json")
    assert done.exit_code == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results == json.loads(file.read_text(encoding="utf-8"))
    assert results["n-samples"]["our_choice"]["effective"] == 2
    assert results["config"]["cache"]["num_slots"] == 64
    assert results["config"]["cache"]["policy"]["decay"] == 0.9
    assert 0 <= results["results"]["our_choice"]["acc,none"] <= 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--tasks", "our_choic", "--full"], "did you mean 'our_choice'"),
        (["--tasks", ",", "--full"], "tasks must name at least one task"),
        (["--tasks", "our_choice"], "exactly one of num_slots, compression and full"),
        (["--tasks", "our_choice", "--full", "--limit", 0], "limit must be at least 1, got 0"),
        (["--tasks", "our_choice", "--full", "--output", "no/x"], "folder of --output must exist"),
        (
            ["--tasks", "our_choice", "--full", "--metadata", "["],
            "--metadata must be a JSON object",
        ),
        (["--full"], "--tasks"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(command, args, message):
    done = command(*args)
    assert done.exit_code == 2, done.stderr
    assert message in done.stderr.splitlines()[-1]
    assert done.stdout == ""
