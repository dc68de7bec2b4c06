"""Training text and the mix of tasks; held-out text and held-out keys never enter it."""

from __future__ import annotations

import json
import lzma
import re
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from kvmmu.evals.filler import Filler, encode_filler
from kvmmu.evals.hotset import hot_set
from kvmmu.evals.keys import KEY_WORDS, key_words
from kvmmu.evals.retrieval import Task, late_query, passkey, question_seen, variable_tracking

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


@dataclass(frozen=True)
class Sample:
    """One training sequence: ids [T] and, for each, the weight of its prediction."""

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    kind: str
    answers: tuple[tuple[int, int], ...] = ()  # [first, stop) of each answer in ids
    key_ids: tuple[int, ...] = ()  # tokens whose embedding is to be disturbed in this sequence

    def count_exact(self, is_right: NDArray[np.bool_]) -> tuple[int, int]:
        """Count exact answers and answers; is_right [T-1] tells which next tokens were found."""
        exact = sum(bool(is_right[a - 1 : b - 1].all()) for a, b in self.answers)
        return exact, len(self.answers)


class Mix:
    """Draw training sequences; the sequence of step n depends on the seed and n alone.

    Keys are the training key words. Most sequences name keys to disturb, with the embeddings of
    donors (rare tokens that are no key words), so that names are compared instead of known.
    """

    ANSWER_WEIGHT = 1.0
    TEXT_WEIGHT = 0.5
    FILLER_WEIGHT = 0.15
    FILLER_SHARE = 0.25  # of the filler's tokens are learnt, at random: cheaper, as good
    DISTURBED_SHARE = 0.7
    NUM_COMMON = 200  # the most common tokens lend no embedding

    def __init__(self, texts: dict[str, str], tokenizer: Tokenizer, *, seed: int) -> None:
        self.seed = seed
        self._cache: dict[str, list[int]] = {}
        self._tokenizer = tokenizer
        self.fillers = [encode_filler(text, self._raw_encode) for text in texts.values()]
        sizes = np.array([len(filler) for filler in self.fillers], dtype=np.float64) ** 0.7
        self.shares = sizes / sizes.sum()
        self.keys = key_words("train")
        self.donors = self._rare_tokens()

    def _rare_tokens(self) -> NDArray[np.int64]:
        counts = np.zeros(self._tokenizer.get_vocab_size(), dtype=np.int64)
        for filler in self.fillers:
            counts += np.bincount(filler.ids, minlength=counts.size)
        common = np.argsort(-counts)[: self.NUM_COMMON].tolist()
        taken = {*common, *(self.encode(f" {word}")[0] for word in KEY_WORDS)}
        vocab = self._tokenizer.get_vocab()
        rare = [i for token, i in vocab.items() if i not in taken and _LETTERS.search(token)]
        return np.array(sorted(rare), dtype=np.int64)

    def _raw_encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def encode(self, text: str) -> list[int]:
        """Encode a short text, remembered."""
        if len(self._cache) > 200_000:
            self._cache.clear()
        if text not in self._cache:
            self._cache[text] = self._raw_encode(text)
        return self._cache[text]

    def sample(self, step: int, row: int, num_tokens: int) -> Sample:
        """Draw one sequence of num_tokens tokens."""
        rng = np.random.default_rng((self.seed, step, row))
        filler = self.fillers[int(rng.choice(len(self.fillers), p=self.shares))]
        kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
        if kind == "text":
            ids, _ = filler.take(num_tokens, rng=rng)
            weights = np.full(num_tokens, self.TEXT_WEIGHT / num_tokens, dtype=np.float32)
            return Sample(np.asarray(ids, dtype=np.int64), weights, kind)
        task = _draw_task(kind, filler, self, num_tokens, self.keys, rng)
        is_disturbed = kind not in ("passkey", "tracking") and rng.random() < self.DISTURBED_SHARE
        return self._weigh(task, rng, is_disturbed=is_disturbed)

    def _weigh(self, task: Task, rng: np.random.Generator, *, is_disturbed: bool) -> Sample:
        ids, starts = task.stream()
        is_answer = np.zeros(len(ids), dtype=np.bool_)
        answers = tuple(
            (start, start + len(query.answer_ids))
            for start, query in zip(starts, task.queries, strict=True)
        )
        for start, stop in answers:
            is_answer[start:stop] = True
        key_ids = {self.encode(f" {key}")[0] for key in task.record_positions}
        is_filler = ~is_answer & ~np.isin(ids, list(key_ids))  # no weight on guessing a key
        is_filler &= rng.random(len(ids)) < self.FILLER_SHARE
        weights = is_answer * (self.ANSWER_WEIGHT / int(is_answer.sum()))
        weights += is_filler * (self.FILLER_WEIGHT / max(1, int(is_filler.sum())))
        return Sample(
            np.asarray(ids, dtype=np.int64),
            weights.astype(np.float32),
            task.name,
            answers,
            tuple(sorted(key_ids)) if is_disturbed else (),
        )


_LETTERS = re.compile("[A-Za-z]{2}")
SHARES = {"late": 0.36, "seen": 0.08, "hot": 0.18, "passkey": 0.05, "tracking": 0.08, "text": 0.25}


def _draw_task(
    kind: str,
    filler: Filler,
    mix: Mix,
    num_tokens: int,
    keys: tuple[str, ...],
    rng: np.random.Generator,
) -> Task:
    most = max(2, num_tokens // 24)
    num_records = int(rng.integers(max(1, most // 6), most + 1))
    num_records = min(num_records, len(keys), 96)
    if kind == "seen":
        return question_seen(
            filler, mix.encode, num_tokens=num_tokens, keys=keys, rng=rng,
            num_records=num_records, is_first=bool(rng.random() < 0.5),
        )  # fmt: skip
    if kind == "hot":
        return hot_set(
            filler, mix.encode, num_tokens=num_tokens, keys=keys, rng=rng,
            num_records=min(num_records, max(2, num_tokens // 32)),
            num_queries=max(2, num_tokens // 24), exponent=float(rng.uniform(0.0, 1.2)),
        )  # fmt: skip
    if kind == "passkey" and num_tokens >= 64:
        return passkey(filler, mix.encode, num_tokens=num_tokens, rng=rng)
    if kind == "tracking":
        return variable_tracking(
            filler, mix.encode, num_tokens=num_tokens, keys=keys, rng=rng,
            num_records=min(num_records, num_tokens // 32), num_queries=num_records,
        )  # fmt: skip
    return late_query(
        filler, mix.encode, num_tokens=num_tokens, keys=keys, rng=rng,
        num_records=num_records, num_queries=num_records,
    )  # fmt: skip
