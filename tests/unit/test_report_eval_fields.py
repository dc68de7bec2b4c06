"""What a results file may hold: whatever is wrong is said in one line that tells where."""

from __future__ import annotations

import json

import pytest
from fake_evaluation import FEW, answers, as_text, fake_lines

from kvmmu.cli import app
from kvmmu.report.evaluation import parse_results, read_results, write_report

ABOUT = {"kind": "about", "model": "m"}
BY_KIND = {line["kind"]: line for line in fake_lines(**FEW)}


def read(folder, lines):
    """Write lines to a folder's file, and read it."""
    (folder / "results.jsonl").write_text(as_text(lines), encoding="utf-8")
    return read_results(folder / "results.jsonl")


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("answers", "compression", None),
        ("answers", "compression", 0),
        ("answers", "compression", float("nan")),
        ("answers", "rows", 5),
        ("answers", "rows", [[1.0, 4, 1]]),
        ("answers", "rows", [[5.0, 4]]),
        ("answers", "rows", [[0.0, 0]]),
        ("answers", "mode", None),
        ("answers", "key", [1]),
        ("answers", "num_tokens", "a"),
        ("answers", "seed", "a"),
        ("answers", "size", "a"),
        ("answers", "chance", 2),
        ("answers", "params", {"depth": "deep"}),
        ("answers", "params", []),
        ("answers", "samples", [["id"]]),
        ("answers", "log_likelihoods", ["a"]),
        ("pages", "rows", [[1.0, 0]]),
        ("pages", "rows", [[1e9, 1]]),
        ("pages", "text", None),
        ("speed", "ratio_to_static", "fast"),
        ("speed", "ratio_quartiles", [1.0]),
        ("speed", "num_tokens", 1.5),
        ("survivors", "kept", [0.5]),
        ("survivors", "edges", [3, 2, 1]),
        ("skipped", "reason", 1),
        ("skipped", "floor", "high"),
        ("about", "seeds", [[1]]),
        ("about", "host", "here"),
        ("about", "num_parameters", "many"),
        ("answers", "kind", [1]),
        ("answers", "kind", None),
    ],
)
def test_wrong_field_is_named_with_its_file_and_line(tmp_path, kind, field, value):
    wrong = BY_KIND[kind] | {field: value}
    told = rf"^field '{field}' in line 2 of .*results\.jsonl must .*, got [^\n]*$"
    with pytest.raises(ValueError, match=told):
        read(tmp_path, [ABOUT, wrong])


def test_command_ends_with_one_line(tmp_path, capsys):
    lines = [ABOUT, answers("rce", [[1.0, 1]]) | {"compression": None}]
    (tmp_path / "results.jsonl").write_text(as_text(lines), encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        app(["report", str(tmp_path)])
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert "Traceback" not in said
    assert said.count("\n") == 1
    assert "field 'compression' in line 2" in said


@pytest.mark.parametrize("text", ["", '{"kind": "abo', "{}", "garbage", "[[" * 100_000])
def test_file_that_tells_not_what_it_is_of_is_refused(tmp_path, text):
    (tmp_path / "results.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"must (have a line of kind 'about'|be a text), got"):
        write_report(tmp_path)
    assert not (tmp_path / "index.html").exists()


@pytest.mark.parametrize("text", ["\n", "garbage\n", "[1]\n", "   \n"])
@pytest.mark.parametrize("is_last", [True, False])
def test_whole_line_that_is_no_object_is_refused(text, is_last):
    head, tail = json.dumps(ABOUT) + "\n", json.dumps(answers("full", [[1.0, 1]])) + "\n"
    lines = [head, tail, text] if is_last else [head, text, tail]
    with pytest.raises(ValueError, match=rf"got .* in line {3 if is_last else 2}$"):
        parse_results(lines)


def test_every_line_of_an_evaluation_is_right():
    made = parse_results(as_text(fake_lines(**FEW)).splitlines())
    assert made.num_broken == 0
    assert all(made.of(kind) for kind in BY_KIND if kind != "about")


def test_optional_fields_may_be_null(tmp_path):
    more = dict.fromkeys(("seed", "granularity", "capability", "chance", "kv_bytes", "params"))
    made = read(tmp_path, [ABOUT, answers("full", [[1.0, 1]]) | more])
    assert len(made.of("answers")) == 1
    write_report(tmp_path)
