"""LAMBADA: the last word of a passage, which needs all of it (Paperno et al., arXiv:1606.06031).

The passage without its last word is read; the word, its space included, is then fed token by
token. Score: 1 if every token of it is the likeliest. Its perplexity is exp of the mean negative
log-likelihood of a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from kvmmu.evals.loaders.base import LOADERS, Document, Loader
from kvmmu.evals.loaders.files import find, lines, rows

__all__ = ["LAMBADA"]


@LOADERS.register("lambada")
@dataclass(frozen=True)
class LAMBADA(Loader):
    """lambada_test_plain_text.txt, a passage a line, or lambada_test.jsonl with text."""

    source: ClassVar[str] = "the LAMBADA dataset, https://doi.org/10.5281/zenodo.2630551"

    def documents(self) -> Iterator[Document]:
        """Yield the passages, each with its last word to come."""
        names = ("lambada_test_plain_text.txt", "lambada_test.jsonl", "test.jsonl")
        path = find(self.folder, names, what="LAMBADA's test file", source=self.source)
        if ".jsonl" in path.suffixes:
            passages = [str(row["text"]) for row in rows(path, ("text",))]
        else:
            passages = [line for _, line in lines(path)]
        for i, passage in enumerate(passages):
            head, _, word = passage.strip().rpartition(" ")
            if not head.strip():
                raise ValueError(
                    f"passage {i} of {str(path)!r} must have two words, got {passage!r}"
                )
            yield Document(
                id=str(i),
                prompt=head.rstrip(),
                references=(f" {word}",),
                metric="last_word",
                max_new_tokens=1,
                task="lambada",
                mode="continue",
            )

    def score(self, document: Document, text: str) -> float:
        """1 if the text begins with the word; a run scores the likelihood instead."""
        return float(text.strip().partition(" ")[0] == document.references[0].strip())
