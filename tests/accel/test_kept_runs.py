"""The runs kept in docs/results/accelerator are what the code makes of them today."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvmmu.accel.claim import (
    CLAIM,
    MAC_FACTORS,
    RANGES,
    READINGS,
    Point,
    price,
    price_decode,
    ratios_of,
)
from kvmmu.accel.request import Request
from kvmmu.accel.simulate import simulate
from kvmmu.accel.study import study

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def kept():
    sys.path.insert(0, str(DOCS))
    try:
        yield importlib.import_module("accelerator_results")
    finally:
        sys.path.remove(str(DOCS))
        for name in ("accelerator_results", "rtl_results"):
            sys.modules.pop(name, None)


def assert_same(made, stored, where=""):
    """Compare JSON values; stored floats have 6 digits."""
    if isinstance(stored, dict):
        assert made.keys() == stored.keys(), where
        for key, value in stored.items():
            assert_same(made[key], value, f"{where}.{key}")
    elif isinstance(stored, list):
        assert len(made) == len(stored), where
        for i, (a, b) in enumerate(zip(made, stored)):
            assert_same(a, b, f"{where}[{i}]")
    elif isinstance(stored, float):
        assert made == pytest.approx(stored, rel=2e-6, abs=1e-12), where
    else:
        assert made == stored, where


def point_of(line):
    given = dict(line["point"])
    return Point(**given | {"lengths": tuple(given["lengths"]), "bits": tuple(given["bits"])})


def check_lines(kept, count, seed):
    lines = kept.claim_lines()
    for i in np.random.default_rng(seed).choice(len(lines), count, replace=False):
        assert_same(kept._short(price(point_of(lines[i]))), lines[i], lines[i]["key"])


def test_points_of_the_claim_are_priced_as_kept(kept):
    check_lines(kept, 2, seed=0)


@pytest.mark.slow
def test_many_points_of_the_claim_are_priced_as_kept(kept):
    check_lines(kept, 40, seed=1)


@pytest.mark.slow
def test_studies_are_as_kept(kept):
    for model, prompt, generate, slots in kept.STUDIED:
        request = Request(model=model, prompt=prompt, generate=generate, num_slots=slots)
        assert_same(kept._short(study(request).to_json()), kept.runs_of()[model], model)


@pytest.mark.slow
def test_search_for_a_design_finds_what_is_kept(kept, tmp_path):
    from kvmmu.accel.explore.explore import Exploration, explore

    stored = json.loads((kept.HOME / "explore_llama_7b.json").read_text("utf-8"))
    made = explore(Exploration(Request(), trials=100), folder=tmp_path)
    assert_same(kept._short(made["ratios"]), stored["ratios"])
    assert made["rce"]["best"]["point"] == stored["rce"]["best"]["point"]


def test_points_of_the_grid_are_priced_as_kept(kept):
    for line in kept.grid_of()[::13]:
        made = price_decode(line["model"], line["batch"], line["context"])
        assert_same(kept._short(made), line)


def test_stalls_are_as_kept(kept):
    from kvmmu.accel.stalls import stalls

    for row in kept.stalls_of()[::7]:
        request = Request(
            accelerator=row["accelerator"],
            model=row["model"],
            batch=row["batch"],
            prompt=4 * row["slots"],
            generate=4 * row["slots"],
            num_slots=row["slots"],
            granularity=row["granularity"],
            overrides={"mmu.store": row["store"]},
        )
        made = json.loads(json.dumps(stalls(request).to_json()))
        assert_same(kept._short(made), {name: row[name] for name in made}, row["model"])


def test_shares_of_the_rtl_are_as_kept(kept):
    rtl = importlib.import_module("rtl_results")
    row = rtl.shares_of()[0]
    assert (row["model"], row["slots"], row["store"]) == ("llama_7b", 256, "dram")
    request = Request(prompt=1024, generate=1024, num_slots=256, granularity=row["granularity"])
    run = replace(request, overrides={"mmu.store": row["store"]})
    made = json.loads(json.dumps(rtl._priced(simulate(run, names=()))))
    assert_same(kept._short(made), {name: row[name] for name in made})


def test_search_covers_every_combination_of_its_ranges(kept):
    """A point that cannot be is kept with its reason; none is left out."""
    import lzma

    count = int(np.prod([len(values) for values in RANGES.values()]))
    text = lzma.decompress((kept.HOME / "claim.jsonl.xz").read_bytes()).decode()
    assert len(set(text.splitlines())) == count


def test_readings_price_the_scopes_they_name():
    part = {"array_j": 1.0, "other_j": 1.0, "delay_s": 1.0}
    scopes = ("decode/overlapped", "decode/serial", "end_to_end/overlapped", "end_to_end/serial")
    ours = {name: dict(part, delay_s=1.0 + 9 * ("serial" in name)) for name in scopes}
    for name in scopes:
        ours[name]["other_j"] = 1.0 + 9 * ("serial" in name)
    full = {name: dict(part, delay_s=2.0 + i, array_j=3.0 + i) for i, name in enumerate(scopes)}
    line = {"ours": ours, "full": full}
    found = {reading: ratios_of(line, reading, 1.0) for reading in READINGS}
    assert found == {
        "R1": (3.0, 4.0),
        "R2": (3.5, 5.0),
        "R3": (3.0, 2.0),
        "R4": (2.0, 2.0),
        "R5": (2.5, 3.0),
    }
    assert ratios_of(line, "R1", 0.0) == (1.0, 4.0)  # no array energy: only the rest is left
    assert set(MAC_FACTORS) == {"low", "nominal", "high", "Eyeriss-like"}
    assert CLAIM == {"energy": 1.52, "delay": 3.62}
