"""The benchmark's tables, notes and pictures: what was lost, failed or is missing is said."""

from __future__ import annotations

import copy
import io

import pytest
from rich.console import Console

from kvmmu.report.bench import bench_notes, cap_table, markdown, point_tables, write_bench


def row(name, family, step_ms, ratios, **more):
    return {
        "candidate": name, "family": family, "precision": "fp32", "note": "", "status": "ok",
        "step_ms": step_ms, "step_quartiles_ms": [step_ms * 0.9, step_ms * 1.1],
        "decode_tokens_per_s": 1e3 / step_ms, "bound_ms": 10.0, "over_bound": step_ms / 10,
        "speedup_over": ratios, "prefill_tokens_per_s": 500.0, "ttft_s": 2.0,
        "is_batch_prefill": False, "prefill_growth_bytes": 5e7, "kv_bytes": 3e7,
        "prefill_taken": 0.0,
    } | more  # fmt: skip


@pytest.fixture
def result():
    engine = row(
        "engine", "kvmmu", 20.0, {"transformers-dynamic": [2.0, 1.9, 2.1], "peer": [0.5, 0.4, 0.6]},
        upkeep_share=[0.04, 0.03, 0.05],
    )  # fmt: skip
    full = row("transformers-dynamic", "transformers", 40.0, {"engine": [0.5, 0.4, 0.6]})
    peer = row("peer", "openvino-genai", 10.0, {"engine": [2.0, 1.9, 2.1]}, note="by its defaults")
    peer |= {"must_equal": True, "tokens_equal": 16, "tokens_of": 16}
    failed = {"candidate": "kvpress-snapkv", "status": "failed", "reason": "it broke"}
    group = {
        "batch": 1, "context": 16384, "num_slots": 512, "read_gbps": 30.0, "num_rounds": 8,
        "num_valid_rounds": 7, "is_void": False, "rows": [engine, full, peer, failed],
    }  # fmt: skip
    served = {
        "candidate": "engine", "precision": "fp32", "status": "ok", "tokens_per_s": 200.4,
        "range_tokens_per_s": [190.2, 211.0], "num_rounds": 3,
        "most_users": 6, "growth_bytes": 4e7, "taken": 0.0,
    }  # fmt: skip
    capped = {
        "num_requests": 12, "prompt": 1024, "new_tokens": 384, "num_slots": 256,
        "caps": [{"cap_tokens": 1536, "rows": [served]}],
    }  # fmt: skip
    host = {"cpu": "a CPU", "threads": 2, "torch": "2", "kvmmu": "0"}
    return {
        "model": "random:88m", "policy": "rce", "host": host, "points": [{"groups": [group]}],
        "absent": [{"candidate": "llama.cpp-f16", "reason": "not installed (llama_cpp)"}],
        "capped": capped,
    }  # fmt: skip


def printed(*parts, width=120):
    console = Console(width=width, record=True, file=io.StringIO())
    for part in parts:
        console.print(part)
    return console.export_text()


def test_the_table_says_where_ours_is_slower(result):
    text = printed(*point_tables(result))
    lines = {line.split()[0].rstrip(","): line for line in text.splitlines() if line.split()}
    assert lines["transformers-dynamic"].rstrip().endswith("2.00x")
    assert lines["peer"].rstrip().endswith("0.50x")
    assert "16,384 tokens, C = 512; read 30.0 GB/s; 7 of 8 rounds count" in text


def test_without_the_engine_the_library_is_the_reference(result):
    group = result["points"][0]["groups"][0]
    group["rows"][0]["candidate"] = "library"
    assert "library" in str(point_tables(result)[0].columns[-1].header)


def test_notes_name_what_is_missing_failed_and_equal(result):
    notes = "\n".join(bench_notes(result))
    assert "llama.cpp-f16: not installed (llama_cpp)" in notes
    assert "kvpress-snapkv failed: it broke" in notes
    assert "equal those of transformers-dynamic (at so many points): peer (1)" in notes
    assert "upkeep takes 4.0% of a step of engine (3.0% to 5.0%)" in notes
    assert "peer: by its defaults" in notes


def test_tokens_that_differ_are_said_loudly(result):
    result["points"][0]["groups"][0]["rows"][2]["tokens_equal"] = 3
    assert any("peer DIFFER" in n and "token 4 of 16" in n for n in bench_notes(result))


def test_a_void_point_is_called_void_everywhere(result):
    result["points"][0]["groups"][0] |= {"is_void": True, "num_valid_rounds": 0}
    assert "VOID" in printed(*point_tables(result))
    assert "VOID" in markdown(result)


def test_a_disturbed_prefill_and_turn_are_said(result):
    result["points"][0]["groups"][0]["rows"][0]["prefill_taken"] = 0.5
    result["capped"]["caps"][0]["rows"][0]["taken"] = 0.5
    notes = "\n".join(bench_notes(result))
    assert "others took the cores in prefill of engine" in notes
    assert "cap 1536: others took the cores in the turn of engine" in notes


def test_the_caps_table_counts_users(result):
    text = printed(cap_table(result))
    assert "12 requests x (1,024 + 384 tokens)" in text
    assert "200" in text
    result["capped"]["caps"] = []
    assert cap_table(result) is None


def test_pictures_and_tables_are_written(result, tmp_path):
    other = copy.deepcopy(result["points"][0])
    other["groups"][0] |= {"context": 1024, "batch": 8}
    result["points"].append(other)
    names = sorted(file.name for file in write_bench(result, tmp_path))
    expected = ["bench-caps.png", "bench-caps.svg", "bench.md", "bench.png", "bench.svg"]
    assert names == expected
    assert all((tmp_path / name).stat().st_size > 500 for name in names)


def test_a_run_of_failures_alone_still_reports(result, tmp_path):
    group = result["points"][0]["groups"][0]
    group["rows"] = group["rows"][-1:]
    result["capped"]["caps"] = []
    write_bench(result, tmp_path)
    assert "it broke" in (tmp_path / "bench.md").read_text()


def test_80_columns_are_enough_for_the_longest_names(result):
    rows = result["points"][0]["groups"][0]["rows"]
    rows[2] |= {"candidate": "openvino-genai-int8-evict", "prefill_tokens_per_s": 12345.0}
    rows[1] |= {"prefill_growth_bytes": 12.3e9, "ttft_s": 123.45, "step_ms": 1234.5}
    text = printed(*point_tables(result), width=80)
    assert "…" not in text
    assert "openvino-genai-int8-evict" in text
