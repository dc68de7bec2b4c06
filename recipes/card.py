"""Put a trained model in its place: python recipes/card.py --run DIR --figures FILE --size SIZE.

Copies the exported files into src/kvmmu/models, thins the log, and writes the model card from
the run's checkpoint, its log and the figures of evaluate_reference.py (one JSON object).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from string import Template
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from safetensors import safe_open
from train_reference import RECIPES, Recipe

REPO = Path(__file__).resolve().parents[1]

LENGTHS = (256, 512, 1024, 2048, 4096)
LABELS = {
    "late_query": "late query (multi-key)",
    "question_seen": "question seen",
    "hot_set": "hot set",
    "passkey": "passkey, 5 digits",
    "variable_tracking": "variable tracking, held-out keys",
    "tracking_known": "variable tracking, training keys",
    "niah_single": "needle, one sentence",
    "niah_multivalue": "3 values of a key, in order",
    "niah_multiquery": "3 keys in one question",
    "babi_qa1": "story, 1 fact (chance 1/6)",
    "babi_qa2": "story, 2 facts (chance 1/6)",
    "babi_qa3": "story, 3 facts (chance 1/6)",
    "common_words": "3 common words, in order",
    "frequent_words": "3 frequent words, in order",
    "key_value_8": "key-value, 8 hexadecimal digits",
    "mixed": "records, needles and pass key",
}
TITLES = {"frankenstein": "*Frankenstein*", "wikitext2_test": "WikiText-2, test"}


def task_table(figures: dict[str, list[float]]) -> str:
    """Tabulate exact match by task and length, then perplexity."""
    lengths = [x for x in LENGTHS if f"perplexity_{x}" in figures]
    lines = [
        f"| task | {' | '.join(f'{x:,}' for x in lengths)} |",
        "|---" * (len(lengths) + 1) + "|",
    ]
    for task, label in LABELS.items():
        cells = [figures.get(f"{task}_{x}") for x in lengths]
        if any(cells):
            shown = " | ".join(f"{c[0]:.3f} ({c[1]:.0f})" if c else "-" for c in cells)
            lines.append(f"| {label} | {shown} |")
    cells = [figures[f"perplexity_{x}"] for x in lengths]
    shown = " | ".join(f"{c[0]:.1f} ({c[1]:,.0f})" for c in cells)
    return "\n".join([*lines, f"| perplexity (tokens scored) | {shown} |"])


def curve_table(rows: list[dict[str, Any]]) -> str:
    """Tabulate the validation at about a dozen steps."""
    rows = [row for row in rows if "validation" in row]
    rows = rows[:: max(1, len(rows) // 12)] + rows[-1:]
    names = [f"late_query_{x}" for x in (256, 512, 1024, 2048)] + ["hot_set_512"]
    lines = [
        "| step | tokens | longest | rate | 256 | 512 | 1,024 | 2,048 | hot set | perplexity |",
        "|---" * 10 + "|",
    ]
    for row in {row["step"]: row for row in rows}.values():
        found = row["validation"]
        cells = [f"{found[n]:.3f}" if n in found else "-" for n in names]
        lines.append(
            f"| {row['step']:,} | {row['tokens'] / 1e6:.1f} M | {row['curriculum']:,} | "
            f"{row['rate']:.2f} | {' | '.join(cells)} | {found['perplexity']:.0f} |"
        )
    return "\n".join(lines)


def read_log(run: Path, progress: dict[str, Any]) -> list[dict[str, Any]]:
    """Read the log, later lines of a step in the place of earlier ones; end at the last step."""
    rows = {}
    for line in (run / "log.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows[row["step"]] = row
    listed = [rows[step] for step in sorted(rows) if step <= progress["step"]]
    if listed[-1]["step"] != progress["step"]:
        listed.append(
            {
                "step": progress["step"],
                "tokens": progress["num_seen"],
                "seconds": round(progress["seconds"], 1),
                "curriculum": progress["curriculum"]["length"],
            }
        )
    return listed


def mix_words(recipe: Recipe) -> str:
    """Word the mix of tasks."""
    from mix import SHARES

    def words(shares: dict[str, float]) -> str:
        return ", ".join(f"{share:.0%} {kind}" for kind, share in shares.items())

    if recipe.broad_from is None:
        return words(SHARES["basic"])
    said = (
        f"{words(SHARES['basic'])} up to step {recipe.broad_from:,}, then {words(SHARES['broad'])}"
    )
    if recipe.last_from is None:
        return said
    return f"{said}; from step {recipe.last_from:,}: {words(SHARES['last'])}"


def main() -> None:
    """Parse the command line, copy, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--figures", type=Path, required=True)
    parser.add_argument("--size", choices=sorted(RECIPES), required=True)
    parser.add_argument("--notes", default="", help="a sentence for the section Training")
    args = parser.parse_args()
    recipe = RECIPES[args.size]
    name = f"kvmmu-ref-{args.size}"
    folder = REPO / "src" / "kvmmu" / "models" / name
    folder.mkdir(exist_ok=True)
    for path in sorted((args.run / "export").iterdir()):
        fresh = folder / f".{path.name}.new"
        shutil.copy(path, fresh)
        fresh.chmod(0o644)
        os.replace(fresh, folder / path.name)
    with safe_open(args.run / "checkpoint.safetensors", framework="pt") as file:
        progress = json.loads(file.metadata()["progress"])
    rows = read_log(args.run, progress)
    kept = [row for row in rows if row["step"] % 500 == 0 or row is rows[0] or row is rows[-1]]
    log = "".join(json.dumps(row) + "\n" for row in kept)
    (folder / "training_log.jsonl").write_text(log)
    weights = (folder / "model.safetensors").read_bytes()
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        count = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118
    figures = json.loads(args.figures.read_text().splitlines()[-1])
    model = recipe.model
    kv_bytes = 2 * model.num_layers * model.num_kv_heads * model.head_dim * 2
    template = Template((Path(__file__).parent / "card.md").read_text())
    text = template.substitute(
        name=name, size=args.size, parameters=f"{count:,}", vocabulary=f"{model.vocab_size:,}",
        width=model.hidden_size, layers=model.num_layers, heads=model.num_heads,
        kv_heads=model.num_kv_heads, head_dim=model.head_dim,
        feed_forward=model.intermediate_size, kv_bytes=f"{kv_bytes / 1024:g}",
        max_length=f"{recipe.max_length:,}", positions=f"{model.max_positions:,}",
        sha=hashlib.sha256(weights).hexdigest(), steps=f"{progress['step']:,}",
        tokens=f"{progress['num_seen']:,}", minutes=f"{progress['seconds'] / 60:.0f}",
        matrix_rate=recipe.matrix_rate, vector_rate=recipe.vector_rate, seed=recipe.seed,
        decay=f"{recipe.decay_share:.0%}", mix=mix_words(recipe), curve=curve_table(rows),
        notes=args.notes,
        tables="\n\n".join(f"{TITLES[t]}:\n\n{task_table(figures[t])}" for t in figures),
    )  # fmt: skip
    (folder / "README.md").write_text(text)
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
