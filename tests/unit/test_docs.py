"""The documentation says what the code does: generated pages, pictures, families, links."""

from __future__ import annotations

import importlib
import json
import lzma
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny_models
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

import kvmmu
from kvmmu.hf.families import FAMILIES, Family
from kvmmu.hf.support import describe
from kvmmu.report.evaluation.results import read_results
from kvmmu.report.evaluation.summary import summarise
from kvmmu.report.evaluation.tables import markdown

REPO = Path(__file__).resolve().parents[2]
DOCS = REPO / "docs"
EXACT = [f for f in FAMILIES if f.status == "exact"]
REFUSED = [f for f in FAMILIES if f.status == "refused"]

_SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_MLA = _SHAPE | {
    "num_key_value_heads": 4,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
}
_SMALL: dict[str, dict[str, Any]] = {
    "mpt": {"vocab_size": 96, "d_model": 64, "n_layers": 2, "n_heads": 4},
    "gptj": {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8},
    "codegen": {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8},
    "lfm2": _SHAPE | {"layer_types": ["conv", "full_attention"]},
    "deepseek_v2": _MLA,
    "deepseek_v3": _MLA,
    "t5": {"vocab_size": 96, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2},
    "bart": {"vocab_size": 96, "d_model": 64, "encoder_layers": 1, "decoder_layers": 1},
}
"""Settings of the families that do not take _SHAPE."""


KEPT = sorted(path.parent for path in (DOCS / "results").glob("*/results.jsonl.xz"))


@pytest.fixture
def docs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a script of docs by name; forget it afterwards."""
    monkeypatch.syspath_prepend(str(DOCS))
    names = ("generate", "draw", "result_tables", "worked_example", "accelerator_results")

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in names:
        sys.modules.pop(name, None)


def pages() -> list[Path]:
    """List the pages that people read."""
    return [p for p in (REPO / "README.md", *sorted(DOCS.glob("*.md"))) if p.exists()]


def test_generated_pages_and_included_files_are_up_to_date(docs: Any) -> None:
    stale = docs("generate").stale()
    assert not stale, f"run python docs/generate.py; it would change {', '.join(stale)}"


@pytest.mark.slow
@pytest.mark.parametrize("home", KEPT, ids=lambda p: p.name)
def test_kept_evaluation_is_what_the_report_makes_of_its_lines(
    home: Path, docs: Any, tmp_path: Path
) -> None:
    lines = lzma.decompress((home / "results.jsonl.xz").read_bytes())
    (tmp_path / "results.jsonl").write_bytes(lines)
    made = summarise(read_results(tmp_path / "results.jsonl"))
    kept = docs("result_tables").summary(home.name)
    assert json.loads(json.dumps(made)) == kept
    assert (home / "table.md").read_text("utf-8").endswith(markdown(kept))


def test_pictures_are_up_to_date(docs: Any) -> None:
    for name, svg in docs("draw").pictures().items():
        written = (DOCS / "img" / name).read_text(encoding="utf-8")
        assert written == svg, f"run python docs/draw.py; docs/img/{name} is stale"


def test_worked_example_tells_the_story_of_the_page(docs: Any) -> None:
    example = docs("worked_example")
    for weights in example.ATTENTION:
        assert sum(weights.values()) == pytest.approx(1.0)
    assert sum(example.CHUNK.values()) == pytest.approx(3.0)
    states = example.decode_steps()
    for token, weights in enumerate(example.ATTENTION):  # no weight for a token that has left
        assert set(weights) <= set(states[token].positions)
    assert [example.WORDS[s.left] for s in states[6:]] == ["is", ".", "Rain", "fell"]
    assert {1, 3, 4} < set(states[-1].positions)  # "key", "4" and "7" are still there
    _, held = example.chunk_step()
    assert held == (0, 1, 7, 3, 4, 8)


def test_exact_families_are_those_of_the_parity_tests() -> None:
    tested = {kind for kind, _ in tiny_models.FAMILIES.values()}
    assert {f.model_type for f in EXACT} == tested
    original_only = {tiny_models.FAMILIES[name][0] for name in tiny_models.NOT_IN_CACHE}
    assert {f.model_type for f in EXACT if not f.in_cache} == original_only


def test_families_are_listed_once() -> None:
    names = [f.model_type for f in FAMILIES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("family", REFUSED, ids=lambda f: f.model_type)
def test_refused_family_says_what_the_table_says(family: Family) -> None:
    settings = _SMALL.get(family.model_type, _SHAPE)
    config = AutoConfig.for_model(family.model_type, **settings)
    make = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = make.from_config(config)
    want = f"model type '{family.model_type}' is not supported: {family.note}"
    with pytest.raises(kvmmu.UnsupportedModelError, match=re.escape(want)):
        describe(model)


def test_links_lead_somewhere() -> None:
    for page in pages():
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_index_lists_every_page_and_example() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    files = [p.name for p in DOCS.glob("*.md") if p.name not in ("index.md", "log.md")]
    files += [f"../examples/{p.name}" for p in (REPO / "examples").glob("*.py")]
    missing = [name for name in files if f"({name})" not in index]
    assert not missing


def test_policy_without_its_sections_is_named(docs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = docs("generate")
    module = importlib.import_module("kvmmu.policies.tova")
    monkeypatch.setattr(module, "__doc__", "TOVA.\n\nRule: something.\n")
    with pytest.raises(ValueError, match=r"kvmmu\.policies\.tova must open with the paper"):
        generate.policies_page()


def test_empty_tables_are_filled_and_what_is_between_them_stays(docs: Any) -> None:
    block = "<!-- table: steps -->\n<!-- end -->\n"
    filled = docs("generate").filled(f"{block}between\n{block}after\n")
    assert filled.count("<!-- table: steps -->\n|") == filled.count("|\n<!-- end -->\n") == 2
    assert "\nbetween\n" in filled
    assert filled.endswith("after\n")
    assert docs("generate").filled(filled) == filled


def test_blocks_are_filled_from_files(docs: Any) -> None:
    generate = docs("generate")
    page = "<!-- include: examples/01_constant_cache.py -->\n```python\nold\n```\nend\n"
    filled = generate.filled(page)
    assert "old" not in filled
    assert filled.startswith(page.splitlines()[0] + "\n```python\nimport kvmmu\n")
    assert filled.endswith("\n```\nend\n")
    page = "<!-- output: examples/01_constant_cache.py -->\n```\nold\n```\n"
    assert generate.filled(page) == page
    assert generate.filled(page, outputs=lambda path: path.name).count("01_constant") == 2
