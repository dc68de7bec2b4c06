"""A plan of users, prefill, decode and switching: closed forms, flat and linear costs, refusals."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from functools import cache

import pytest
from rich.console import Console
from typer.testing import CliRunner

from kvmmu.accel.dram.spec import load_dram
from kvmmu.accel.plan import plan
from kvmmu.accel.profile_plan import plan_profile
from kvmmu.accel.profiles import load_profile
from kvmmu.accel.request import Request
from kvmmu.accel.spec.load import load_accelerator, load_model
from kvmmu.cli import app
from kvmmu.errors import CapacityError, SpecError
from kvmmu.report.accelerator.names import bytes_text, three_digits, time_text
from kvmmu.report.plan import plan_answer, plan_notes, plan_table

SMALL = Request(model="opt_125m", num_slots=128)
CONTEXTS = (256, 512, 1024)


@cache
def made(model="opt_125m", num_slots=128, contexts=CONTEXTS, accelerator="jetcas65", users=None):
    """Plan once for all tests that look at the same plan."""
    request = Request(model=model, num_slots=num_slots, accelerator=accelerator)
    return plan(request, contexts=contexts, users=users)


def rows_of(planned, cache):
    return [row for row in planned.rows if row.cache == cache]


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


# Users ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["opt_125m", "llama_3_8b"])
def test_users_fill_the_dram_and_one_more_would_not_fit(model):
    planned = made(model, 128, (256, 4096))
    free = planned.memory_bytes - planned.weight_bytes
    for row in planned.rows:
        assert row.users * row.bytes_per_user <= free < (row.users + 1) * row.bytes_per_user


def test_bytes_of_a_user_are_those_of_the_closed_form():
    model, spec = load_model("llama_3_8b"), load_accelerator("jetcas65")
    full, ours = made("llama_3_8b", 128, (256, 4096)).rows[-2:]
    row_bytes = 2 * model.num_kv_heads * model.head_dim  # int8
    assert full.kv_bytes_per_user == 4096 * model.num_layers * row_bytes
    assert ours.kv_bytes_per_user == 128 * model.num_layers * row_bytes
    assert (spec.mmu.score_bits, spec.mmu.position_bits) == (16, 24)
    assert ours.table_bytes_per_user == model.num_layers * (128 * (2 + 3) + 8)
    assert full.table_bytes_per_user == 0


def test_with_as_many_slots_as_tokens_rce_holds_the_full_caches_bytes():
    for slots in (256, 300):
        full, ours = plan(replace(SMALL, num_slots=slots), contexts=(256,)).rows
        assert ours.num_slots == 256
        assert ours.kv_bytes_per_user == full.kv_bytes_per_user


def test_tables_on_chip_take_no_dram_and_are_told():
    planned = made(accelerator="hbm_server", contexts=(256,))
    assert planned.rows[1].table_bytes_per_user == 0
    assert "score tables of all 256 users are on chip" in planned.notes[0]


# Time and energy ------------------------------------------------------------------------------


def test_decode_is_flat_in_context_for_rce_and_grows_for_the_full_cache():
    full, ours = (rows_of(made(), name) for name in ("full", "rce"))
    assert len({row.decode_s_alone for row in ours}) == 1
    assert len({row.decode_s_all for row in ours}) == 1
    times = [row.decode_s_alone for row in full]
    assert times == sorted(set(times))


def test_prefill_grows_with_the_prompt_and_less_than_the_full_caches():
    full, ours = (rows_of(made("llama_7b", 512, (2048, 16384)), name) for name in ("full", "rce"))
    assert ours[1].prefill_s == pytest.approx(8 * ours[0].prefill_s, rel=0.03)
    assert full[1].prefill_s > 8.5 * full[0].prefill_s


def test_a_switch_moves_a_users_cache_and_tables_out_and_in():
    for row in made().rows:
        moved = 2 * (row.kv_bytes_per_user + row.table_bytes_per_user)
        assert row.switch_s == pytest.approx(moved / 20e9, rel=1e-12)
    slow = plan(SMALL, contexts=(256,), link_gbps=5.0)
    assert slow.rows[0].switch_s == pytest.approx(4 * made().rows[0].switch_s, rel=1e-12)


def test_asked_users_are_timed_but_never_more_than_fit():
    for row in made(users=3).rows:
        assert row.users_timed == 3
        assert row.users > 3
        assert row.tokens_per_s == pytest.approx(3 / row.decode_s_all)
    crowded = made("llama_7b", 512, (16384,), users=4).rows
    assert [row.users_timed for row in crowded] == [2, 4]


def test_more_users_share_the_weights_of_a_step():
    for row in made().rows:
        assert row.decode_s_alone < row.decode_s_all < row.users_timed * row.decode_s_alone


def test_what_does_not_fit_has_no_figures_but_a_reason():
    full, ours = made("llama_7b", 512, (131072,)).rows
    assert (full.users, full.prefill_s, full.decode_s_alone, full.decode_s_all) == (0, *3 * [None])
    assert full.reason == "one user needs 34.4 GB, 10.4 free"
    assert ours.users > 0
    assert ours.prefill_s > 0


# Profiles -------------------------------------------------------------------------------------


def test_profile_decode_is_its_bytes_over_its_bandwidth():
    planned = plan_profile(Request(accelerator="h200", num_slots=512), contexts=(4096,))
    model, profile = load_model("llama_7b"), load_profile("h200")
    full, ours = planned.rows
    for row, held in ((full, 4096), (ours, 512)):
        moved = 2 * (model.num_weights_per_step + held * model.num_kv_per_token)
        assert row.decode_s_alone == pytest.approx(moved / (profile.bandwidth_gbps * 1e9))
        assert row.kv_bytes_per_user == 2 * held * model.num_kv_per_token
        free = 141_000_000_000 - 2 * model.num_parameters
        assert row.users == free // row.kv_bytes_per_user


def test_profile_prefill_is_no_shorter_than_its_macs_at_full_rate():
    planned = plan_profile(Request(accelerator="h200", num_slots=512), contexts=(4096, 32768))
    model, profile = load_model("llama_7b"), load_profile("h200")
    for row in planned.rows:
        macs = (row.context - 1) * model.num_layers * model.num_layer_weights
        assert row.prefill_s > macs / (profile.num_pes * profile.clock_mhz * 1e6)
    full, ours = planned.rows[2:]
    assert full.prefill_s > 1.3 * ours.prefill_s


def test_a_profile_says_nothing_of_energy_nor_of_a_memory_it_does_not_name():
    planned = plan_profile(Request(accelerator="duplex", num_slots=512), contexts=(4096,))
    for row in planned.rows:
        assert row.users is None
        assert row.decode_s_all is None
        assert row.energy_j_per_token is None
        assert "names no memory size" in row.reason
    asked = plan_profile(Request(accelerator="duplex", num_slots=512), contexts=(4096,), users=8)
    assert all(row.users_timed == 8 and row.decode_s_all > 0 for row in asked.rows)


# Refusals -------------------------------------------------------------------------------------


def test_a_model_larger_than_the_dram_is_refused_by_name():
    with pytest.raises(CapacityError, match=r"weights of llama_3_70b must fit the 17\.2 GB of lp"):
        plan(Request(model="llama_3_70b"), contexts=(256,))
    with pytest.raises(CapacityError, match=r"weights of llama_3_70b must fit the 141\.0 GB of h"):
        plan_profile(Request(model="llama_3_70b", accelerator="h200"), contexts=(256,))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"contexts": ()}, "contexts must be at least 2 tokens each"),
        ({"contexts": (1,)}, "contexts must be at least 2 tokens each"),
        ({"link_gbps": 0.0}, "link_gbps must be above 0"),
        ({"link_gbps": float("nan")}, "link_gbps must be above 0"),
        ({"link_gbps": float("inf")}, "link_gbps must be above 0 and finite, got inf"),
        ({"users": 0}, "users must lie in"),
        ({"users": 257}, "users must lie in"),
    ],
)
def test_impossible_questions_are_refused(options, told):
    for make, accelerator in ((plan, "jetcas65"), (plan_profile, "h200")):
        with pytest.raises(ValueError, match=told):
            make(replace(SMALL, accelerator=accelerator), **options)


def test_too_few_slots_are_refused_on_accelerators_and_profiles():
    for make, accelerator in ((plan, "jetcas65"), (plan_profile, "h200")):
        with pytest.raises(ValueError, match="num_slots must exceed num_sinks"):
            make(replace(SMALL, num_slots=5, accelerator=accelerator), contexts=(256,))


def test_a_dram_is_refused_for_a_profile_and_an_unknown_one_by_name():
    with pytest.raises(ValueError, match="h200 is a profile"):
        plan_profile(replace(SMALL, accelerator="h200", dram="hbm2_256"))
    with pytest.raises((SpecError, ValueError), match="ddr9"):
        plan(replace(SMALL, dram="ddr9"))


# Command --------------------------------------------------------------------------------------


def test_the_command_answers_in_two_sentences_then_a_table_of_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = run("plan", "--model", "llama_7b", "--num-slots", 512)
    assert result.exit_code == 0, result.stderr
    text = " ".join(result.stdout.split())
    users = load_dram("lpddr4_3200_x64").capacity_bytes - load_model("llama_7b").num_parameters
    users //= 512 * 32 * (8192 + 6)  # slots x layers x (int8 K and V of a token, score, position)
    assert f"With 512 slots {users} users of 32,768 tokens fit the 17.2 GB of lpddr4_" in text
    assert f"instead of 1, of 131,072 tokens {users} instead of none" in text
    assert "accuracy not measured" in text
    assert "simulated" in text
    assert "…" not in result.stdout  # no cell is cut
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize("accelerator", ["h200", "jetcas65"])
def test_no_figure_of_the_table_is_cut_at_80_columns(monkeypatch, accelerator):
    monkeypatch.setenv("COLUMNS", "80")
    args = ["--accelerator", accelerator, "--model", "llama_7b", "--num-slots", 512]
    made = json.loads(run("plan", *args, "--json").stdout)
    text = run("plan", *args).stdout
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for row in made["rows"]:
        figures = [time_text(row["switch_s"]), bytes_text(row["kv_bytes_per_user"])]
        if row["decode_s_alone"]:
            figures += [time_text(row["decode_s_alone"]), three_digits(row["tokens_per_s"])]
        for figure in figures:
            assert figure in text
    has_energy = any(row["energy_j_per_token"] for row in made["rows"])
    assert has_energy == (accelerator == "jetcas65")
    assert ("no row has energy a token: left out of the table" in text) != has_energy
    assert ("energy" in text[: text.index("──")].splitlines()[-2]) == has_energy


def test_figures_wider_than_a_terminal_wrap_before_their_units():
    made = json.loads(json.dumps(plan(SMALL, contexts=(256,)).to_json()))
    for row in made["rows"]:
        row |= dict.fromkeys(("prefill_s", "decode_s_alone", "decode_s_all", "switch_s"), 123456.0)
        row |= {"users": 123456, "tokens_per_s": 123456.0, "energy_j_per_token": 1e8}
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(plan_table(made))
    text = console.export_text()
    assert "…" not in text
    assert text.count("123,456") == 2 * 6


def test_the_command_prints_one_json_object_of_the_rows():
    args = ["plan", "--model", "opt_125m", "--num-slots", 128, "--contexts", "512,256", "--json"]
    found = json.loads(run(*args).stdout)
    assert found["label"] == "simulated"
    assert found["accuracy"] is None
    assert [row["context"] for row in found["rows"]] == [256, 256, 512, 512]
    assert found["rows"] == json.loads(json.dumps(made(contexts=(256, 512)).to_json()))["rows"]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--model", "llama_3_70b"], "weights of llama_3_70b must fit"),
        (["--accelerator", "jetcas"], "did you mean 'jetcas65'?"),
        (["--accelerator", "h20"], "did you mean 'h200'?"),
        (["--contexts", "4k"], "--contexts must be whole numbers"),
        (["--num-slots", "64", "--compression", "8"], "must not be given together"),
        (["--num-slots", "0"], "--num-slots must be at least 1"),
        (["--kv-bits", "0"], "--kv-bits must be 4, 8 or 16"),
        (["--accelerator", "h200", "--dram", "hbm2_256"], "h200 is a profile"),
    ],
)
def test_the_command_refuses_in_one_line(args, told):
    result = run("plan", *args)
    assert result.exit_code == 2
    assert told in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_profiles_answer_and_notes_name_what_is_not_known():
    found = plan_profile(Request(accelerator="duplex", num_slots=512), contexts=(4096,)).to_json()
    assert plan_answer(found).startswith("With 512 slots a user of 4,096 tokens takes 8.0x fewer")
    assert any("no memory size" in note for note in plan_notes(found))
