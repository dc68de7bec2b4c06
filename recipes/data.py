"""Training text; held-out text never enters it."""

from __future__ import annotations

import json
import lzma
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvmmu.evals.filler import encode_filler

BOOKS = ("moby_dick", "pride_and_prejudice", "war_and_peace", "tiny_shakespeare")
HELD_OUT = ("frankenstein", "wikitext2_test", "wikitext2_valid")
CODE_CHARS = 1_500_000
SPAN = 50


def read_text(path: Path) -> str:
    """Read one xz-compressed UTF-8 text."""
    return lzma.decompress(path.read_bytes()).decode()


def training_texts(directory: Path) -> dict[str, str]:
    """Read every training text by name: books, GSM8K train, the standard library's sources."""
    texts = {name: read_text(directory / f"{name}.txt.xz") for name in BOOKS}
    rows = read_text(directory.parent / "tasks" / "gsm8k_train.jsonl.xz").splitlines()
    problems = [json.loads(row) for row in rows]
    texts["gsm8k_train"] = "\n\n".join(f"{p['question']}\n{p['answer']}" for p in problems)
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    code = "\n\n".join(p.read_text(encoding="utf-8", errors="ignore") for p in sources)
    texts["standard_library"] = code[:CODE_CHARS]
    return texts


def check_held_out(
    texts: dict[str, str], held_out: dict[str, str], encode: Callable[[str], list[int]]
) -> None:
    """Raise ValueError, with both names, if texts hold a 50-token span of a held-out text.

    White space is collapsed first, so that different line breaks do not hide a copy.
    """
    hashes = {name: np.unique(_span_hashes(text, encode)) for name, text in held_out.items()}
    forbidden = np.sort(np.concatenate(list(hashes.values())))
    for name, text in texts.items():
        spans = _span_hashes(text, encode)
        places = np.searchsorted(forbidden, spans).clip(max=forbidden.size - 1)
        copied = spans[forbidden[places] == spans]
        for held_name, held_spans in hashes.items():
            if np.isin(held_spans, copied).any():
                raise ValueError(
                    f"training text {name} must not hold {SPAN} tokens in a row of {held_name}"
                )


def _span_hashes(text: str, encode: Callable[[str], list[int]]) -> NDArray[np.uint64]:
    ids = encode_filler(" ".join(text.split()), encode).ids.astype(np.uint64)
    factors = np.random.default_rng(0).integers(1, 2**63, size=SPAN, dtype=np.uint64) | np.uint64(1)
    num = max(0, ids.size - SPAN + 1)
    hashes = np.zeros(num, dtype=np.uint64)
    for i, factor in enumerate(factors):
        hashes += ids[i : i + num] * factor  # wraps modulo 2**64
    return hashes
