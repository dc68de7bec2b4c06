"""GSM8K: grade-school word problems, solved step by step (Cobbe et al., arXiv:2110.14168).

Prompt: `num_shots` solved problems, the first of the train file or of `shots_file`, then the
question. The solutions are the file's own, calculator marks included; they end with "#### N".
Score: 1 if the number after the first "####" of the answer equals the reference's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import islice
from pathlib import Path
from typing import ClassVar

from kvmmu.evals.loaders.base import LOADERS, Document, Loader
from kvmmu.evals.loaders.files import find, missing, rows

__all__ = ["GSM8K"]

_ANSWER = re.compile(r"####\s*\$?(-?[\d,]*\.?\d+)")


@LOADERS.register("gsm8k")
@dataclass(frozen=True)
class GSM8K(Loader):
    """test.jsonl and train.jsonl (or gsm8k_test, gsm8k_train) with question and answer."""

    source: ClassVar[str] = "openai/grade-school-math, https://github.com/openai/grade-school-math"
    num_shots: int = 8
    shots_file: Path | None = None
    max_new_tokens: int = 256

    def documents(self) -> Iterator[Document]:
        """Yield the test file's problems, each after the solved ones."""
        if self.num_shots < 0:
            raise ValueError(f"num_shots must be at least 0, got {self.num_shots}")
        head = "".join(f"{shot}\n\n" for shot in self._shots())
        for i, row in enumerate(rows(self._find("test"), ("question", "answer"))):
            number = _number(row["answer"])
            if number is None:
                raise ValueError(f"answer {i} of GSM8K must end with '#### N', got another end")
            yield Document(
                id=str(i),
                prompt=f"{head}{_ask(row['question'])}",
                references=(str(number),),
                metric="exact_number",
                max_new_tokens=self.max_new_tokens,
                stop=("Question:", "\n\n"),
                task="gsm8k",
            )

    def score(self, document: Document, text: str) -> float:
        """1 if the numbers are equal, however they are written: 1,000.0 is 1000."""
        return float(_number(text) == Decimal(document.references[0]))

    def _shots(self) -> list[str]:
        """Write the solved problems of the prompt. Raises ValueError for too few."""
        if self.num_shots == 0:
            return []
        path = self._find("train") if self.shots_file is None else Path(self.shots_file)
        if not path.is_file():
            raise missing(path, what="the solved problems of GSM8K", source=self.source)
        solved = list(islice(rows(path, ("question", "answer")), self.num_shots))
        if len(solved) < self.num_shots:
            raise ValueError(
                f"{str(path)!r} must hold {self.num_shots} solved problems, got {len(solved)}"
            )
        return [f"{_ask(row['question'])} {row['answer']}" for row in solved]

    def _find(self, split: str) -> Path:
        names = (f"{split}.jsonl", f"gsm8k_{split}.jsonl")
        return find(self.folder, names, what=f"GSM8K's {split} file", source=self.source)


def _ask(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def _number(text: str) -> Decimal | None:
    """Return the number after the first "####", None where there is none."""
    found = _ANSWER.search(text)
    try:
        return Decimal(found[1].replace(",", "")) if found else None
    except InvalidOperation:  # pragma: no cover - the pattern lets only numbers through
        return None
