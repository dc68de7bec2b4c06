"""Measure an exported model: python recipes/evaluate_reference.py --model DIR --text DIR.

Loads the files as any user would (AutoModelForCausalLM, float32), asks held-out keys in held-out
texts with a full cache, and prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from data import read_text
from scoring import Validation, perplexity
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXTS = ("frankenstein", "wikitext2_test")
LENGTHS = (256, 512, 1024, 2048, 4096)
TASKS = ("late_query", "question_seen", "hot_set", "passkey", "variable_tracking")
MORE_TASKS = (
    "niah_single",
    "niah_multivalue",
    "niah_multiquery",
    "babi_qa1",
    "babi_qa2",
    "babi_qa3",
    "common_words",
    "frequent_words",
    "key_value_8",
    "mixed",
)


def num_questions(task: str, length: int, *, most: int) -> int:
    """Ask fewer questions where each needs a text of its own, fewer still of the longest texts."""
    if task not in ("question_seen", "passkey"):
        return most
    return most // 2 if length <= 2048 else most // 5


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=200, help="questions a text and length")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS + MORE_TASKS, default=list(TASKS))
    parser.add_argument("--keys", choices=("train", "held_out"), default="held_out")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    AutoTokenizer.from_pretrained(args.model)  # must load without a network

    @torch.no_grad()
    def logits_of(ids: Tensor) -> Tensor:
        return model(ids, use_cache=False).logits[0]

    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    result: dict[str, dict[str, list[float]]] = {}
    for name in TEXTS:
        text = read_text(args.text / f"{name}.txt.xz")
        validation = Validation(text, tokenizer, split=args.keys)
        figures = result.setdefault(name, {})
        for task in args.tasks:
            for length in args.lengths:
                num = num_questions(task, length, most=args.queries)
                share, count = validation.exact_match(
                    logits_of, task, length, num_queries=num, seed=args.seed
                )
                figures[f"{task}_{length}"] = [round(share, 4), count]
                print(name, task, length, round(share, 4), count, file=sys.stderr, flush=True)
        ids = tokenizer.encode(text).ids
        for length in args.lengths:
            value = perplexity(logits_of, ids, num_tokens=length, num_windows=8192 * 2 // length)
            figures[f"perplexity_{length}"] = [round(value, 3), 8192 * 2 // length * (length - 1)]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
