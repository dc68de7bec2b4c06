"""The metrics of the published benchmarks, each in [0, 1], written anew from their definitions."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

__all__ = [
    "class_match",
    "edit_similarity",
    "number_share",
    "rouge_l",
    "string_match",
    "token_f1",
    "words",
]

T = TypeVar("T")

_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = frozenset(string.punctuation)
_CHINESE_PUNCTUATION = frozenset(
    "！？。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～、《》「」『』【】〔〕“”‘’…—"
)


def words(text: str, *, is_chinese: bool = False) -> list[str]:
    """Split an answer into lower-case words without punctuation and English articles.

    Chinese is split into characters; the published scorers ask jieba for words.
    """
    plain = "".join(char for char in text.lower() if char not in _PUNCTUATION)
    if is_chinese:
        return [c for c in plain if not c.isspace() and c not in _CHINESE_PUNCTUATION]
    return [word for word in plain.split() if word not in _ARTICLES]


def token_f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of two bags of words (SQuAD's)."""
    shared = sum((Counter(answer) & Counter(reference)).values())
    return 2 * shared / (len(answer) + len(reference)) if shared else 0.0


def rouge_l(answer: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of the longest common subsequence of words (Lin, 2004), over the whole text."""
    shared = _common(answer, reference)
    return 2 * shared / (len(answer) + len(reference)) if shared else 0.0


def edit_similarity(answer: str, reference: str) -> float:
    """1 - (insertions and deletions) / (both lengths), in hundredths as fuzz.ratio gives it."""
    total = len(answer) + len(reference)
    return round(200 * _common(answer, reference) / total) / 100 if total else 0.0


def class_match(answer: str, reference: str, classes: Sequence[str]) -> float:
    """1 / (labels named) if the true one is among them; labels that are part of it do not count."""
    named = [c for c in classes if c in answer and (c == reference or c not in reference)]
    return 1 / len(named) if reference in named else 0.0


def number_share(answer: str, number: str) -> float:
    """Share of the numbers in an answer that are the right one."""
    found = re.findall(r"\d+", answer)
    return found.count(number) / len(found) if found else 0.0


def string_match(answer: str, references: Sequence[str]) -> list[bool]:
    """Tell for each reference whether the answer contains it, whatever the case (RULER's)."""
    return [reference.lower() in answer.lower() for reference in references]


def _common(a: Sequence[T], b: Sequence[T]) -> int:
    """Length of the longest common subsequence."""
    last = [0] * (len(b) + 1)
    for item in a:
        row = [0]
        for j, other in enumerate(b):
            row.append(last[j] + 1 if item == other else max(row[j], last[j + 1]))
        last = row
    return last[-1]
