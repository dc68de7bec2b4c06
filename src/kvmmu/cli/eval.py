"""kvmmu eval: what a policy costs in quality, over many tasks, resumable."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvmmu.cli.generate import Device, Dtype, Model, load_model, quieten
from kvmmu.cli.lists import AsJson
from kvmmu.cli.report import print_summary

if TYPE_CHECKING:
    from kvmmu.evals.cases import Case, Suite
    from kvmmu.evals.evaluate import Plan
    from kvmmu.evals.settings import Setting

__all__ = ["evaluate"]

Tasks = Annotated[
    str | None,
    typer.Option(help="Tasks of the suite, with commas: niah_multikey or niah_multikey/late."),
]
Data = Annotated[
    Path | None,
    typer.Option(help="A folder with your copy of the benchmarks in --tasks (gsm8k, ruler, ...)."),
]
Size = Annotated[
    int | None,
    typer.Option(
        help="Answers of each task, in place of the suite's own number; documents of each data "
        "set of a benchmark (else 100)."
    ),
]
Policies = Annotated[
    str | None,
    typer.Option(help="Policies with commas or spaces: 'rce,keydiff' or 'rce:decay=0.99 keydiff'."),
]
Compression = Annotated[
    str | None, typer.Option(help="Each C = ceil(N / this), with commas: 2,4,8.")
]
Seeds = Annotated[
    str | None, typer.Option(help="Seeds of the texts and questions, with commas; pooled.")
]
SuiteName = Annotated[str, typer.Option(help="quick, standard, full or grid; see below.")]
Output = Annotated[Path, typer.Option(help="The folder to write to; goes on where it ended.")]
GranularityName = Annotated[str, typer.Option(help="One victim per KV 'head' or per 'layer'.")]
Jobs = Annotated[int | None, typer.Option(help="Processes (default: one per core, CPU only).")]
BatchSize = Annotated[int, typer.Option(help="Contexts read at once.")]
NoSpeed = Annotated[bool, typer.Option("--no-speed", help="Do not time the decode steps.")]


def evaluate(
    model: Model = "kvmmu-ref-1m",
    *,
    suite: SuiteName = "standard",
    tasks: Tasks = None,
    data: Data = None,
    size: Size = None,
    policies: Policies = None,
    compression: Compression = None,
    seeds: Seeds = None,
    output: Output = Path("kvmmu-eval"),
    granularity: GranularityName = "head",
    jobs: Jobs = None,
    batch_size: BatchSize = 64,
    no_speed: NoSpeed = False,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Measure what policies keep of a model's accuracy on a suite of tasks.

    Every task is first put to a full cache; where that fails, the task is listed as not
    measurable. Results are appended to results.jsonl as they come: run the same command again
    after an interruption, or with more policies, and only what is missing is measured. Ends with
    a table, pictures and one HTML page. Suites: quick (under 3 minutes), standard (every task at
    1,024 tokens), full (all lengths, three seeds: hours), grid (a needle by depth and length).
    """
    began = time.perf_counter()
    quieten(model)
    plan = make_plan(
        suite=suite, tasks=tasks, data=data, size=size, policies=policies,
        compression=compression, seeds=seeds,
        granularity=granularity, batch_size=batch_size, has_speed=not no_speed,
        jobs=_jobs(jobs, device),
    )  # fmt: skip
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output must be a folder, got the file {str(output)!r}")
    from kvmmu.cli.progress import bar
    from kvmmu.evals.evaluate import Evaluation
    from kvmmu.report.evaluation import write_report

    job = Evaluation(partial(load_model, model, dtype=dtype, device=device), plan, output)
    with bar("eval", job.total, has_count=False) as shown:
        job.run(advance=shown.advance, say=shown.say)
        shown.say("report")
        write_samples(output, job.file.done.values())
        summary = write_report(output)
    if not as_json:
        print_summary(summary)
    seconds = time.perf_counter() - began
    typer.echo(f"wrote results.jsonl, index.html, plots to {output} in {seconds:.0f} s", err=True)
    if as_json:
        typer.echo(json.dumps(summary))


def write_samples(output: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write answers that another tool must judge (HumanEval's programs), one file a cache."""
    from kvmmu.evals.loaders.humaneval import write_samples as write
    from kvmmu.report.evaluation.published import samples_file

    for line in lines:
        if not line.get("samples"):
            continue
        file = output / samples_file(line)
        file.parent.mkdir(exist_ok=True)
        write(file, [(task_id, text) for task_id, text in line["samples"]])


def make_plan(
    *,
    suite: str,
    tasks: str | None,
    data: Path | None,
    size: int | None,
    policies: str | None,
    compression: str | None,
    seeds: str | None,
    granularity: str,
    batch_size: int,
    has_speed: bool,
    jobs: int,
) -> Plan:
    """Read the options. Raises ValueError for what is unknown or out of range."""
    if granularity not in ("head", "layer"):
        raise ValueError(f"--granularity must be head or layer, got {granularity!r}")
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}")
    from kvmmu.evals.cases import SUITES
    from kvmmu.evals.evaluate import Plan

    chosen = SUITES[suite]
    cases = _cases(chosen, [t.strip() for t in (tasks or "").split(",") if t.strip()], data, size)
    settings = _settings(chosen, policies, compression, granularity)
    _check_slots(cases, settings)
    numbers = _numbers(seeds, "--seeds", int) or chosen.seeds
    if any(not 0 <= seed < 2**31 for seed in numbers):
        raise ValueError(f"--seeds must lie in [0, 2**31), got {seeds!r}")
    return Plan(
        cases,
        settings,
        tuple(int(n) for n in dict.fromkeys(numbers)),
        suite=suite,
        batch_size=batch_size,
        jobs=jobs,
        has_speed=has_speed,
    )


def _cases(suite: Suite, names: list[str], data: Path | None, size: int | None) -> tuple[Case, ...]:
    """Choose cases: benchmarks of --data, and tasks of the suite. Raises ValueError."""
    from kvmmu.evals.cases import pick, resized
    from kvmmu.evals.loaders.base import LOADERS
    from kvmmu.evals.published import published_cases

    known = LOADERS.names()
    published = [name for name in names if name in known]
    if published and data is None:
        raise ValueError(
            f"--tasks {published[0]} must go with --data, the folder that holds your copy of it"
        )
    if data is not None and not published:
        raise ValueError(
            f"--data must go with --tasks that name benchmarks ({', '.join(known)}), got "
            f"{', '.join(names) or 'none'}"
        )
    if size is not None and size < 1:
        raise ValueError(f"--size must be at least 1, got {size}")
    own = [name for name in names if name not in known]
    found = pick(suite, own) if own or not published else ()
    if size is not None:
        found = tuple(resized(case, size) for case in found)
    return found if data is None else found + published_cases(published, data, size or 100)


def _settings(
    suite: Suite, policies: str | None, compression: str | None, granularity: str
) -> tuple[Setting, ...]:
    """Make every policy at every compression, each once. Raises ValueError."""
    from kvmmu.evals.policy_text import parse_policies
    from kvmmu.evals.settings import Setting
    from kvmmu.policies.base import list_policies

    names = list_policies() if policies is None else [policies]
    made = [policy for text in names for policy in parse_policies(text)]
    ratios = _numbers(compression, "--compression", float) or suite.compressions
    if any(ratio < 1 for ratio in ratios):
        raise ValueError(f"--compression must be at least 1, got {compression!r}")
    settings = [
        Setting("slots", policy, ratio, granularity)  # type: ignore[arg-type]
        for policy in made
        for ratio in ratios
    ]
    return tuple(dict.fromkeys(settings))


def _check_slots(cases: tuple[Case, ...], settings: tuple[Setting, ...]) -> None:
    """Raise ValueError where a setting leaves too few slots to the shortest case.

    Published documents are not among them: how long they are depends on the model.
    """
    lengths = [case.num_tokens for case in cases if case.num_tokens]
    for setting in settings if lengths else ():
        setting.check(min(lengths))


def _numbers(text: str | None, option: str, kind: type) -> tuple[Any, ...]:
    """Read numbers with commas between them. Raises ValueError."""
    try:
        return tuple(kind(part) for part in (text or "").split(",") if part.strip())
    except ValueError as error:
        raise ValueError(
            f"{option} must be numbers with commas between them, got {text!r}"
        ) from error


def _jobs(jobs: int | None, device: str) -> int:
    if jobs is None:
        return len(os.sched_getaffinity(0)) if device == "cpu" and _has_affinity() else 1
    if jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {jobs}")
    return jobs


def _has_affinity() -> bool:
    return hasattr(os, "sched_getaffinity")
