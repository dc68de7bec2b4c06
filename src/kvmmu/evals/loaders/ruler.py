"""RULER: retrieval, tracking, counting and questions at any length (arXiv:2404.06654).

RULER makes its own rows for a tokenizer and a length; this reads them: validation.jsonl, in the
folder or in one folder per task. Prompt: input, then answer_prefix where the rows have one.
Score: the share of the outputs that the answer contains (qa tasks: whether it contains one).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kvmmu.evals.loaders.base import LOADERS, Document, Loader
from kvmmu.evals.loaders.files import find, rows, texts
from kvmmu.evals.loaders.metrics import string_match

__all__ = ["RULER"]

_MAX_NEW = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}
"""Tokens to generate, by the first part of a task's name, as RULER has them."""


@LOADERS.register("ruler")
@dataclass(frozen=True)
class RULER(Loader):
    """validation.jsonl with input and outputs; the folder's name is the task's (niah_*, qa_1)."""

    source: ClassVar[str] = (
        "NVIDIA/RULER, https://github.com/NVIDIA/RULER (scripts/data/prepare.py)"
    )
    tasks: tuple[str, ...] = ()

    def documents(self) -> Iterator[Document]:
        """Yield the rows of every task, or of those asked for."""
        for folder in self._folders():
            kind = folder.name.partition("_")[0]
            if kind not in _MAX_NEW:
                known = ", ".join(f"{name}*" for name in _MAX_NEW)
                raise ValueError(
                    f"a folder with RULER's validation.jsonl must be named as its task ({known}), "
                    f"got {folder.name!r}"
                )
            path = self._file(folder)
            for i, row in enumerate(rows(path, ("input", "outputs"))):
                yield Document(
                    id=f"{folder.name}/{row.get('index', i)}",
                    prompt=f"{row['input']}{row.get('answer_prefix', '')}",
                    references=texts(row["outputs"]),
                    metric="string_match_part" if kind == "qa" else "string_match_all",
                    max_new_tokens=_MAX_NEW[kind],
                    task=folder.name,
                )

    def score(self, document: Document, text: str) -> float:
        """The share of the references found, or whether any is."""
        found = string_match(text, document.references)
        if not found:
            return 0.0
        return (
            float(any(found)) if document.metric == "string_match_part" else sum(found) / len(found)
        )

    def _folders(self) -> list[Path]:
        """List the folders of the tasks. Raises MissingDataError where there is none."""
        if self.tasks:
            return [self.folder / task for task in self.tasks]
        inside = sorted(path.parent for path in self.folder.glob("*/validation.jsonl*"))
        return inside or [self._file(self.folder).parent.resolve()]

    def _file(self, folder: Path) -> Path:
        return find(folder, ("validation.jsonl",), what="RULER's rows", source=self.source)
