"""kvmmu lm-eval: lm-eval's tasks, scored and generated through a cache of constant size."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kvmmu.cli.generate import Device, Dtype, Full, Model, NumSinks, NumSlots, Window, quieten
from kvmmu.cli.lists import AsJson

__all__ = ["lm_eval"]

Tasks = Annotated[str, typer.Option(help="Tasks of lm-eval, with commas between them.")]
IncludePath = Annotated[
    Path | None, typer.Option(help="A folder with task files (YAML) of your own.")
]
Compression = Annotated[
    float | None,
    typer.Option(help="C = ceil(N / this) for a request of N tokens, its answer included."),
]
PolicyName = Annotated[
    str | None,
    typer.Option(help="Who leaves (default rce); with parameters as in rce:decay=0.99."),
]
Granularity = Annotated[
    str | None, typer.Option(help="One victim per KV 'head' (the default) or per 'layer'.")
]
Positions = Annotated[
    str | None,
    typer.Option(help="'original' (the default), or 'in_cache' for texts beyond the trained ones."),
]
Limit = Annotated[int | None, typer.Option(help="Only the first documents of each task.")]
Fewshot = Annotated[int | None, typer.Option(help="Examples before each question.")]
MaxLength = Annotated[
    int | None, typer.Option(help="Longer requests lose their beginning (default: as trained).")
]
Metadata = Annotated[
    str | None,
    typer.Option(help="What some tasks ask for, as JSON: '{\"max_seq_lengths\": [4096]}'."),
]
Output = Annotated[Path | None, typer.Option(help="Write the results to this file, as JSON.")]


def lm_eval(
    model: Model,
    *,
    tasks: Tasks,
    include_path: IncludePath = None,
    num_slots: NumSlots = None,
    compression: Compression = None,
    full: Full = False,
    policy: PolicyName = None,
    window: Window = None,
    num_sinks: NumSinks = None,
    granularity: Granularity = None,
    positions: Positions = None,
    limit: Limit = None,
    num_fewshot: Fewshot = None,
    max_length: MaxLength = None,
    metadata: Metadata = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Score a model on lm-eval's tasks with a KV cache of constant size.

    Both scoring and generation go through the cache: a context is read in chunks and evicted,
    what is scored is fed token by token. Give one of --num-slots, --compression and --full.
    """
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    _check_output(output)
    extra = _metadata(metadata)
    quieten(model)
    if not sys.stderr.isatty():  # lm-eval's bars, and those of its data sets
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    from kvmmu.evals.lm_harness.arguments import CacheArguments
    from kvmmu.evals.lm_harness.run import evaluate, table

    arguments = CacheArguments(
        num_slots=num_slots,
        compression=compression,
        full=full,
        policy=policy,
        granularity=granularity,
        positions=positions,
        num_sinks=num_sinks,
        window=window,
    )
    results: dict[str, Any] = evaluate(
        model,
        names,
        arguments,
        include_path=include_path,
        limit=limit,
        num_fewshot=num_fewshot,
        max_length=max_length,
        metadata=extra,
        dtype=dtype,
        device=device,
    )
    if output is not None:
        output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        typer.echo(f"wrote {output}", err=True)
    typer.echo(f"{model}, {arguments.label}", err=True)
    typer.echo(json.dumps(results) if as_json else table(results))


def _check_output(output: Path | None) -> None:
    """Refuse a place that cannot be written before anything is run. Raises ValueError."""
    if output is not None and not output.parent.is_dir():
        raise ValueError(f"the folder of --output must exist, got {str(output)!r}")
    if output is not None and output.is_dir():
        raise ValueError(f"--output must be a file, got the folder {str(output)!r}")


def _metadata(text: str | None) -> dict[str, Any]:
    """Read --metadata. Raises ValueError for what is no JSON object."""
    try:
        made = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"--metadata must be a JSON object, got {text!r}: {error}") from error
    if not isinstance(made, dict):
        raise ValueError(f"--metadata must be a JSON object, got {text!r}")
    return made
