"""LongBench: questions, summaries, few-shot labels, counts and code (arXiv:2308.14508).

Reads data/<dataset>.jsonl. Prompts: those of config/dataset2prompt.json where the folder has it
(the published ones), else short ones of our own. Metric and length of answer by data set, as
published; the best reference counts. Differs from the published scorers: ROUGE-L is over the
whole text at once, and Chinese is split into characters, not into jieba's words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kvmmu.evals.loaders.base import LOADERS, Document, Loader
from kvmmu.evals.loaders.files import find, missing, rows, texts
from kvmmu.evals.loaders.metrics import (
    class_match,
    edit_similarity,
    number_share,
    rouge_l,
    token_f1,
    words,
)
from kvmmu.registry import unknown_name

__all__ = ["DATASETS", "LongBench"]

DATASETS: dict[str, tuple[str, int]] = {
    "narrativeqa": ("qa_f1", 128),
    "qasper": ("qa_f1", 128),
    "multifieldqa_en": ("qa_f1", 64),
    "multifieldqa_zh": ("qa_f1_zh", 64),
    "hotpotqa": ("qa_f1", 32),
    "2wikimqa": ("qa_f1", 32),
    "musique": ("qa_f1", 32),
    "dureader": ("rouge_zh", 128),
    "gov_report": ("rouge", 512),
    "qmsum": ("rouge", 512),
    "multi_news": ("rouge", 512),
    "vcsum": ("rouge_zh", 512),
    "trec": ("classification", 64),
    "triviaqa": ("qa_f1", 32),
    "samsum": ("rouge", 128),
    "lsht": ("classification", 64),
    "passage_count": ("count", 32),
    "passage_retrieval_en": ("retrieval", 32),
    "passage_retrieval_zh": ("retrieval_zh", 32),
    "lcc": ("code_sim", 64),
    "repobench-p": ("code_sim", 64),
}
"""Metric and new tokens of each data set, as published."""

_ONE_LINE = frozenset({"trec", "triviaqa", "samsum", "lsht"})
"""Data sets whose answer is the first line of what is written."""

_PROMPTS = {
    "qa_f1": "{context}\n\nQuestion: {input}\nAnswer:",
    "qa_f1_zh": "{context}\n\n问题：{input}\n回答：",
    "rouge": "{context}\n\n{input}\nSummary:",
    "rouge_zh": "{context}\n\n{input}\n回答：",
    "classification": "{context}\n{input}",
    "count": "{context}\n\nHow many different paragraphs are there? The number is",
    "retrieval": "{context}\n\nAbstract: {input}\n\nThe abstract is of: Paragraph",
    "retrieval_zh": "{context}\n\n摘要：{input}\n\n摘要出自：段落",
    "code_sim": "{context}{input}",
}
"""Our own prompts, by metric; with the published ones in the folder, these are not used."""


@LOADERS.register("longbench")
@dataclass(frozen=True)
class LongBench(Loader):
    """data/<dataset>.jsonl with input, context, answers, all_classes and _id."""

    source: ClassVar[str] = (
        "THUDM/LongBench, https://huggingface.co/datasets/THUDM/LongBench (data.zip)"
    )
    datasets: tuple[str, ...] = ()

    def documents(self) -> Iterator[Document]:
        """Yield the rows of every data set that is there, or of those asked for."""
        prompts = self._prompts()
        for name, path in self._files():
            metric, max_new_tokens = DATASETS[_base(name)]
            prompt = prompts.get(_base(name), _PROMPTS[metric])
            for i, row in enumerate(rows(path, ("input", "context", "answers"))):
                yield Document(
                    id=str(row.get("_id", f"{name}/{i}")),
                    prompt=_fill(prompt, context=row["context"], question=row["input"]),
                    references=texts(row["answers"]),
                    metric=metric,
                    max_new_tokens=max_new_tokens,
                    stop=("\n",) if _base(name) == "samsum" else (),
                    task=name,
                    classes=texts(row.get("all_classes")),
                )

    def score(self, document: Document, text: str) -> float:
        """The best score over the references."""
        if _base(document.task) in _ONE_LINE:
            text = text.lstrip("\n").partition("\n")[0]
        scores = [_score(document, text, reference) for reference in document.references]
        return max(scores, default=0.0)

    def _files(self) -> list[tuple[str, Path]]:
        """List data sets and their files. Raises ValueError or MissingDataError."""
        for name in self.datasets:
            if _base(name) not in DATASETS:
                raise ValueError(unknown_name("data set of LongBench", name, list(DATASETS)))
        names = self.datasets or tuple(n for base in DATASETS for n in (base, f"{base}_e"))
        found = []
        for name in names:
            try:
                places = (f"data/{name}.jsonl", f"{name}.jsonl")
                what = f"LongBench's {name}"
                found.append((name, find(self.folder, places, what=what, source=self.source)))
            except FileNotFoundError:
                if self.datasets:
                    raise
        if not found:
            place = self.folder / "data" / "<dataset>.jsonl"
            raise missing(place, what="LongBench's rows", source=self.source)
        return found

    def _prompts(self) -> dict[str, str]:
        """Read the published prompts where the folder has them."""
        for path in (self.folder / "config" / "dataset2prompt.json",):
            if path.is_file():
                try:
                    return dict(json.loads(path.read_text(encoding="utf-8")))
                except (ValueError, TypeError) as error:
                    raise ValueError(f"{str(path)!r} must be a JSON object: {error}") from error
        return {}


def _base(name: str) -> str:
    """Return a data set's name without the _e of LongBench-E."""
    return name.removesuffix("_e") if name.removesuffix("_e") in DATASETS else name


def _fill(prompt: str, *, context: str, question: str) -> str:
    """Put context and question where the braces say; braces within them stay."""
    parts = {"{context}": context, "{input}": question}
    return re.sub(r"\{(?:context|input)\}", lambda found: parts[found[0]], prompt)


def _score(document: Document, text: str, reference: str) -> float:
    """Score an answer against one reference by the document's metric."""
    metric = document.metric
    is_chinese = metric.endswith("_zh")
    if metric in ("qa_f1", "qa_f1_zh"):
        return token_f1(*(words(t, is_chinese=is_chinese) for t in (text, reference)))
    if metric in ("rouge", "rouge_zh"):
        pieces = [list("".join(t.split())) if is_chinese else t.split() for t in (text, reference)]
        return rouge_l(*pieces)
    if metric == "classification":
        return class_match(text, reference, document.classes)
    if metric == "code_sim":
        return edit_similarity(_code_line(text), reference)
    if metric == "count":
        return number_share(text, reference)
    numbers = re.findall(r"\d+", reference)
    return number_share(text, numbers[0]) if numbers else 0.0


def _code_line(text: str) -> str:
    """Return the first line that is neither a comment nor a fence."""
    marks = ("`", "#", "//")
    kept = (line for line in text.lstrip("\n").split("\n") if not any(m in line for m in marks))
    return next(kept, "")
