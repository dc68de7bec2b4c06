"""A made-up evaluation: the lines that `kvmmu eval` writes, with figures that look like its own."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from kvmmu.report.evaluation import parse_results, summarise

POLICIES: dict[str, tuple[float, float, int]] = {  # kept at 8x: late, seen; operations a slot
    "rce": (0.55, 0.99, 3),
    "rce:decay=0.9": (0.47, 0.99, 3),
    "h2o": (0.12, 0.35, 1),
    "tova": (0.2, 0.8, 1),
    "keydiff": (0.5, 0.52, 2),
    "knorm": (0.3, 0.3, 2),
    "snapkv": (0.1, 0.99, 2),
    "expected_attention": (0.42, 0.66, 6),
    "r_kv": (0.3, 0.82, 5),
    "lacache": (0.17, 0.2, 0),
    "streaming_llm": (0.1, 0.14, 0),
    "random": (0.1, 0.1, 0),
}
TASKS: tuple[tuple[str, str, str], ...] = (
    ("niah_single", "late", "string retrieval"),
    ("niah_single", "seen", "string retrieval"),
    ("niah_multikey", "late", "string retrieval"),
    ("niah_multikey", "seen", "string retrieval"),
    ("niah_multivalue", "late", "string retrieval"),
    ("niah_multiquery", "late", "string retrieval"),
    ("passkey", "seen", "string retrieval"),
    ("key_value", "late", "string retrieval"),
    ("hot_set", "online", "string retrieval"),
    ("babi_qa1", "late", "semantic retrieval"),
    ("variable_tracking", "seen", "semantic retrieval"),
    ("common_words", "late", "global information"),
    ("frequent_words", "seen", "global information"),
    ("mixed", "online", "multi-tasking"),
    ("hold", "online", "long generation"),
)
COMPRESSIONS = (2, 4, 8, 16)
LENGTHS = (256, 512, 1024)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
TEXTS = ("frankenstein", "wikitext2_test")
CHANCE = {"babi_qa1": 1 / 6}

FEW: dict[str, Any] = {
    "policies": ("rce", "rce:decay=0.9", "snapkv", "streaming_llm"),
    "tasks": (TASKS[0], TASKS[1], TASKS[8], TASKS[9]),
    "compressions": (4, 8),
    "num_contexts": 12,
}
"""Arguments of a small evaluation."""

Line = dict[str, Any]


def fake_lines(
    *,
    policies: tuple[str, ...] = tuple(POLICIES),
    tasks: tuple[tuple[str, str, str], ...] = TASKS,
    compressions: tuple[float, ...] = COMPRESSIONS,
    num_contexts: int = 24,
    seeds: tuple[int, ...] = (0,),
) -> list[Line]:
    """Make all lines of an evaluation: the same for the same arguments."""
    host = {"machine": "x86_64", "system": "Linux", "python": "3.12.3", "torch": "2.11.0",
            "transformers": "5.23.0", "threads": 1}  # fmt: skip
    lines: list[Line] = [
        {"kind": "about", "model": "kvmmu-ref-4m", "num_parameters": 4_200_000, "dtype": "float32",
         "suite": "standard", "num_kv_heads": 4, "num_heads": 8, "seeds": list(seeds),
         "texts": list(TEXTS), "kvmmu_version": "0.1.0", "host": host}
    ]  # fmt: skip
    caches = [("full", 1.0), *((p, float(c)) for p in policies for c in compressions)]
    for seed in seeds:
        for task, mode, capability in tasks:
            for num_tokens, params in _cells(task):
                cell = (task, mode, num_tokens, params, seed)
                ease = _ease(cell, num_contexts)
                for cache in caches:
                    lines.append(_answers(cell, capability, cache, ease))
        lines += [_pages(text, 512, cache, seed) for text in TEXTS for cache in caches]
    for cache in caches:
        lines += [_speed(cache), _survivors(cache)]
    lines.append({"kind": "skipped", "task": "recite", "mode": "online", "num_tokens": 512,
                  "params": {}, "reason": "the full cache scores below the floor",
                  "full_score": 0.31, "floor": 0.6})  # fmt: skip
    lines.append({"kind": "skipped", "task": "babi_qa3", "mode": "late", "num_tokens": 1024,
                  "params": {}, "reason": "the full cache scores below the floor",
                  "full_score": 0.22, "floor": 0.6})  # fmt: skip
    return lines


def summary_of(lines: list[Line]) -> dict[str, Any]:
    """Summarise lines as if they came from a file; its first line is added if there is none."""
    if not any(line.get("kind") == "about" for line in lines):
        lines = [{"kind": "about"}, *lines]
    return summarise(parse_results(as_text(lines).splitlines()))


def answers(
    policy: str,
    rows: list[list[float]],
    *,
    compression: float = 8.0,
    seed: int = 0,
    chance: float = 0.0,
    task: str = "a_task",
    num_tokens: int = 64,
) -> Line:
    """Make one line of answers."""
    return {
        "kind": "answers", "key": f"{task}/{policy}/{compression}/{seed}/{num_tokens}",
        "task": task, "mode": "late", "capability": "c", "num_tokens": num_tokens, "params": {},
        "policy": policy, "label": policy, "compression": 1.0 if policy == "full" else compression,
        "granularity": "head", "chance": chance, "seed": seed, "rows": rows,
    }  # fmt: skip


def published(
    policy: str,
    rows: list[list[float]],
    *,
    task: str = "gsm8k",
    data_set: str = "",
    num_tokens: int = 900,
    **more: Any,
) -> Line:
    """Make one line of a published benchmark's documents; num_tokens is the longest text's."""
    line = answers(policy, rows, task=task, num_tokens=num_tokens)
    line |= {"mode": "published", "params": {"data_set": data_set} if data_set else {}}
    return line | {"key": line["key"] + data_set, "samples": [], "log_likelihoods": []} | more


def as_text(lines: list[Line]) -> str:
    """Write lines as a file's text."""
    return "".join(json.dumps(line) + "\n" for line in lines)


def _cells(task: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for num_tokens in LENGTHS:
        if task == "niah_single":
            yield from ((num_tokens, {"depth": depth}) for depth in DEPTHS)
        elif num_tokens != 256:
            yield num_tokens, {}


def _rng(*names: Any) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(names).encode()))


def _ease(cell: tuple[Any, ...], num_contexts: int) -> np.ndarray:
    """Draw how easy each question is, the same for every cache. [K,4]"""
    return _rng("ease", cell).random((num_contexts, 4))


def _share(cell: tuple[Any, ...], policy: str, compression: float) -> float:
    """Return the share of the full cache's answers that a made-up policy keeps."""
    if policy == "full":
        return 1.0
    task, mode, num_tokens, params, _ = cell
    late, seen, _ = POLICIES[policy]
    at_8 = {"late": late, "seen": seen, "online": (late + seen) / 2}[mode]
    at_8 = float(np.clip(at_8 + 0.08 * _rng(task, policy).normal(), 0.02, 0.999))
    share = at_8 ** (np.log2(compression) / 3) ** 1.6
    if "depth" in params and policy in ("streaming_llm", "lacache"):
        return 0.99 if params["depth"] > 1 - 1 / compression else 0.05
    return float(share ** (1 + 0.2 * (num_tokens > 512)))


def _answers(
    cell: tuple[Any, ...], capability: str, cache: tuple[str, float], ease: np.ndarray
) -> Line:
    task, mode, num_tokens, params, seed = cell
    chance = CHANCE.get(task, 0.0)
    share = chance + (0.96 - chance) * _share(cell, *cache)
    right = (ease < share).sum(axis=1)
    return {
        "kind": "answers", "key": f"answers/{cell!r}/{cache!r}", "task": task, "mode": mode,
        "capability": capability, "num_tokens": num_tokens, "params": params,
        **_cache(cache, num_tokens), "chance": chance, "seed": seed,
        "rows": [[float(n), 4] for n in right], "seconds": 1.5,
    }  # fmt: skip


def _cache(cache: tuple[str, float], num_tokens: int) -> Line:
    label, compression = cache
    slots = int(np.ceil(num_tokens / compression))
    chunk = max(16, slots // 4)
    selects = label in ("snapkv", "expected_attention")
    return {
        "policy": label.split(":")[0], "label": label, "policy_params": {},
        "compression": compression, "granularity": "" if label == "full" else "head",
        "num_slots": slots, "chunk_size": num_tokens if selects else chunk,
        "peak_tokens": num_tokens if selects or label == "full" else slots + chunk,
        "kv_bytes": slots * 4096,
        "ops_per_slot": 0 if label == "full" else POLICIES[label][2],
    }  # fmt: skip


def _pages(text: str, num_tokens: int, cache: tuple[str, float], seed: int) -> Line:
    label, compression = cache
    harm = 0.0
    if label != "full":
        late, seen, _ = POLICIES[label]
        harm = 0.03 * np.log2(compression) * (1.25 - (late + seen) / 2)
        harm *= 4.0 if label == "random" else 1.0
    num = num_tokens // 2
    hard = _rng(text, seed).normal(3.4, 0.2, size=24)
    own = harm * (1 + 0.2 * _rng(text, seed, label, compression).normal(size=24))
    return {
        "kind": "pages", "key": f"pages/{text}/{cache!r}/{seed}", "task": "perplexity",
        "text": text, "num_tokens": num_tokens, "params": {}, **_cache(cache, num_tokens),
        "seed": seed, "rows": [[float(v) * num, num] for v in hard + own], "seconds": 2.0,
    }  # fmt: skip


def _speed(cache: tuple[str, float]) -> Line:
    label, compression = cache
    ratio = 1.0
    if label != "full":
        ratio = 0.9 + 0.35 * np.log2(compression) - 0.06 * POLICIES[label][2]
    return {
        "kind": "speed", "policy": label.split(":")[0], "label": label,
        "compression": compression, "granularity": "" if label == "full" else "head",
        "num_tokens": 1024, "batch": 8, "tokens_per_s": 310 * ratio, "ratio_to_static": ratio,
        "ratio_quartiles": [0.97 * ratio, 1.04 * ratio],
    }  # fmt: skip


def _survivors(cache: tuple[str, float]) -> Line:
    label, compression = cache
    edges = [0, 8, 16, 32, 64, 128, 256, 512, 768, 1024]
    middle = (np.array(edges[:-1]) + np.array(edges[1:])) / 2
    flat = _rng("age", label).random()
    aged = 1 / (1 + (middle * compression / 1024) ** (3 - 2 * flat))
    kept = (
        np.where(middle <= 1024 / compression / 8, 1.0, aged) if label != "full" else aged * 0 + 1
    )
    if label == "streaming_llm":
        kept = (middle < 1024 / compression).astype(float)
    return {
        "kind": "survivors", "policy": label.split(":")[0], "label": label,
        "compression": compression, "num_tokens": 1024, "edges": edges,
        "kept": [float(v) for v in kept],
    }  # fmt: skip
