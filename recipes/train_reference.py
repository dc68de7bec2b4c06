"""Train a reference model: python recipes/train_reference.py --size 1m --text DIR --out DIR.

DIR of --text holds the xz-compressed books; its sibling `tasks` holds GSM8K. --resume goes on from
the checkpoint in --out, with another --tokens if wished: the last part of the budget decays.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
# Batches differ in their number of predictions; oneDNN would keep a kernel for each.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

import numpy as np
import torch
import torch.nn.functional as F
from curriculum import Curriculum
from data import HELD_OUT, check_held_out, read_text, training_texts
from export import export_model
from init import initialise
from mix import Breadth, Mix, Sample
from model import Llama, ModelConfig
from muon import Muon
from numpy.typing import NDArray
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from scoring import Validation
from store import load_checkpoint, save_checkpoint
from tokenizer import save_tokenizer, train_tokenizer
from tokenizers import Tokenizer
from torch import Tensor


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on besides the text."""

    model: ModelConfig = field(default_factory=ModelConfig)
    seed: int = 1
    num_tokens: int = 14_000_000
    tokens_per_step: int = 2048
    max_length: int = 4096
    matrix_rate: float = 0.01
    vector_rate: float = 1e-3
    epsilon: float = 3e-5
    decay_share: float = 0.3
    warmup_steps: int = 150
    broad_from: int | None = None  # step from which the mix holds more tasks of evals/tasks
    last_from: int | None = None  # step from which it leaves out what was not learnt

    def breadth(self, step: int) -> Breadth:
        """Name the mix of a step."""
        if self.last_from is not None and step >= self.last_from:
            return "last"
        return "broad" if self.broad_from is not None and step >= self.broad_from else "basic"


BROAD_LONG_SHARE = 0.35
"""While many tasks are new, most steps hold many short sequences; the decay is long again."""
KEY_NOISE = 0.03  # beside embeddings of standard deviation 0.1

RECIPES = {
    "1m": Recipe(),
    "1m-mha": Recipe(model=ModelConfig(num_kv_heads=4)),
    "4m": Recipe(
        model=ModelConfig(hidden_size=256, intermediate_size=704, num_layers=6),
        num_tokens=32_000_000,
        matrix_rate=0.005,
        vector_rate=5e-4,
        broad_from=2_200,
        last_from=7_300,
    ),
}


def make_optimizers(model: Llama, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Give matrices to Muon, embeddings and norms to AdamW."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        Muon(matrices, lr=recipe.matrix_rate, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=recipe.vector_rate, betas=(0.9, 0.95), eps=recipe.epsilon),
    ]


def rate_factor(step: int, num_seen: int, recipe: Recipe) -> float:
    """Warm up by steps, hold, then fall linearly to 2 % by tokens."""
    left = (recipe.num_tokens - num_seen) / (recipe.decay_share * recipe.num_tokens)
    return min(1.0, (step + 1) / recipe.warmup_steps, max(0.02, left))


@torch.no_grad()
def key_noise(
    model: Llama, samples: list[Sample], donors: NDArray[np.int64], *, rng: np.random.Generator
) -> Tensor | None:
    """Turn each disturbed key's embedding into a donor's, near enough; [B,T,d] or None.

    A donor is a rare token that is never a key: what it learns, it learns from the text alone, as
    a held-out key does.
    """
    if not any(sample.key_ids for sample in samples):
        return None
    table = model.embed_tokens.weight
    noise = torch.zeros(len(samples), samples[0].ids.size - 1, table.shape[1])
    for row, sample in zip(noise, samples, strict=True):
        chosen = rng.choice(donors, size=len(sample.key_ids), replace=False)
        vectors = table[chosen] - table[list(sample.key_ids)]
        vectors += KEY_NOISE * torch.from_numpy(rng.standard_normal(vectors.shape, np.float32))
        vectors[:, 0] = 0  # the constant channel
        for key, vector in zip(sample.key_ids, vectors, strict=True):
            row[torch.from_numpy(sample.ids[:-1] == key)] = vector
    return noise


def batch_loss(
    model: Llama, samples: list[Sample], noise: Tensor | None, held_out: list[int]
) -> tuple[Tensor, list[tuple[str, int, int]]]:
    """Return the weighted loss of a batch and (kind, exact answers, answers) of each row.

    Where an answer holds keys, the tokens held_out are left out of the softmax.
    """
    ids = torch.from_numpy(np.stack([s.ids for s in samples]))  # [B,T]
    weights = torch.from_numpy(np.stack([s.weights for s in samples]))[:, 1:].reshape(-1)
    places = weights.nonzero().squeeze(1)  # [N], the predictions that count
    targets = ids[:, 1:].reshape(-1)[places]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model(ids[:, :-1], noise)
        logits = model.logits(hidden.flatten(0, 1)[places])  # [N,V]
    is_written = torch.zeros(len(samples), ids.shape[1] - 1, dtype=torch.bool)
    for row, sample in zip(is_written, samples, strict=True):
        for start, stop in sample.answers if sample.is_written else ():
            row[start - 1 : stop - 1] = True
    silent = torch.zeros(logits.shape[1], dtype=torch.bool)
    silent[held_out] = True
    left_out = is_written.view(-1)[places][:, None] & silent  # [N,V]
    logits = logits.float().masked_fill(left_out, -1e9)
    losses = F.cross_entropy(logits, targets, reduction="none")
    right = torch.zeros(weights.shape, dtype=torch.bool)
    right[places] = logits.argmax(-1) == targets
    rows = right.view(len(samples), -1).numpy()
    return (losses * weights[places]).sum() / len(samples), [
        (s.kind, *s.count_exact(row)) for s, row in zip(samples, rows, strict=True)
    ]


class Run:
    """One training run and all its state."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, texts: dict[str, str]) -> None:
        self.recipe = recipe
        self.model = Llama(recipe.model)
        initialise(self.model, seed=recipe.seed)
        self.optimizers = make_optimizers(self.model, recipe)
        self.mix = Mix(texts, tokenizer, seed=recipe.seed)
        self.curriculum = Curriculum(max_length=recipe.max_length)
        self.step = self.num_seen = 0
        self.seconds = 0.0

    def progress(self) -> dict[str, Any]:
        """Describe what a resumed run must know besides tensors."""
        return {
            "step": self.step,
            "num_seen": self.num_seen,
            "seconds": self.seconds,
            "curriculum": asdict(self.curriculum),
        }

    def restore(self, progress: dict[str, Any]) -> None:
        """Take up the state that progress() described."""
        self.step, self.num_seen = progress["step"], progress["num_seen"]
        self.seconds = progress["seconds"]
        max_length = self.recipe.max_length
        self.curriculum = Curriculum(**{**progress["curriculum"], "max_length": max_length})

    def train_step(self) -> dict[str, Any]:
        """Draw a batch, learn from it, and describe it."""
        begin = time.monotonic()
        factor = rate_factor(self.step, self.num_seen, self.recipe)
        is_broad = self.recipe.breadth(self.step) == "broad"
        length = self.curriculum.draw_length(
            self.recipe.seed,
            self.step,
            long_share=BROAD_LONG_SHARE if is_broad and factor == 1.0 else None,
        )
        rows = max(1, self.recipe.tokens_per_step // length)
        breadth = self.recipe.breadth(self.step)
        samples = [self.mix.sample(self.step, row, length, breadth=breadth) for row in range(rows)]
        rng = np.random.default_rng((self.recipe.seed, self.step, 2_000_003))
        noise = key_noise(self.model, samples, self.mix.donors, rng=rng)
        for optimizer, rate in zip(
            self.optimizers, (self.recipe.matrix_rate, self.recipe.vector_rate), strict=True
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        loss, counts = batch_loss(self.model, samples, noise, self.mix.held_out)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.curriculum.observe(length, counts)
        self.step += 1
        self.num_seen += rows * length
        self.seconds += time.monotonic() - begin
        return {"loss": loss.item(), "length": length, "rate": factor, "counts": counts}


def train(run: Run, validation: Validation, out: Path, tokenizer: Tokenizer) -> None:
    """Run to the end of the token budget; log, validate, checkpoint on the way."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    saved = time.monotonic()
    with (out / "log.jsonl").open("a") as log, Progress(*columns) as bar:
        task = bar.add_task("train", total=run.recipe.num_tokens, completed=run.num_seen)
        window: list[dict[str, Any]] = []
        while run.num_seen < run.recipe.num_tokens:
            window.append(run.train_step())
            bar.update(task, completed=run.num_seen)
            if run.step % 100 == 0:
                entry = summarise(run, window)
                window = []
                if run.step % 500 == 0:
                    entry["validation"] = validation.score(run.model, run.curriculum.length)
                log.write(json.dumps(entry) + "\n")
                log.flush()
            if time.monotonic() - saved > 120 or run.num_seen >= run.recipe.num_tokens:
                save_checkpoint(out, run.model, run.optimizers, run.progress())
                export_model(run.model, tokenizer, out / "export")
                saved = time.monotonic()


def summarise(run: Run, window: list[dict[str, Any]]) -> dict[str, Any]:
    """Average a window of steps for the log."""
    exact: dict[str, list[int]] = {}
    length = max(entry["length"] for entry in window)
    for entry in window:
        for kind, right, total in entry["counts"]:
            if total and entry["length"] == length:
                sums = exact.setdefault(kind, [0, 0])
                sums[0] += right
                sums[1] += total
    return {
        "step": run.step,
        "tokens": run.num_seen,
        "seconds": round(run.seconds, 1),
        "curriculum": run.curriculum.length,
        "rate": round(window[-1]["rate"], 4),
        "loss": round(float(np.mean([entry["loss"] for entry in window])), 4),
        "length": length,
        "exact": {kind: [round(a / b, 3), b] for kind, (a, b) in sorted(exact.items())},
    }


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(RECIPES), default="1m")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, help="token budget instead of the recipe's")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    changes = {"num_tokens": args.tokens, "seed": args.seed, "max_length": args.max_length}
    recipe = RECIPES[args.size]
    recipe = Recipe(**{**vars(recipe), **{k: v for k, v in changes.items() if v is not None}})
    args.out.mkdir(parents=True, exist_ok=True)
    texts = training_texts(args.text)
    tokenizer_path = args.out / "tokenizer.json"
    if not tokenizer_path.exists():
        tokenizer = train_tokenizer(list(texts.values()), vocab_size=recipe.model.vocab_size)
        save_tokenizer(tokenizer, args.out, max_length=recipe.model.max_positions)
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    held_out = {name: read_text(args.text / f"{name}.txt.xz") for name in HELD_OUT}
    check_held_out(texts, held_out, lambda text: tokenizer.encode(text).ids)
    run = Run(recipe, tokenizer, texts)
    validation = Validation(held_out["wikitext2_valid"], tokenizer)
    if args.resume:
        run.restore(load_checkpoint(args.out, run.model, run.optimizers))
    train(run, validation, args.out, tokenizer)


if __name__ == "__main__":
    main()
