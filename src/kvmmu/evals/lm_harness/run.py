"""Run lm-eval's tasks on one model and one cache, and keep what is worth keeping."""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvmmu.evals.lm_harness.arguments import CacheArguments
from kvmmu.hf.load import model_path

__all__ = ["evaluate", "table"]

_KEPT = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better", "date")
_BOOTSTRAP = 1000
"""Draws for the standard errors that have no closed form."""


def evaluate(
    model: str,
    tasks: Sequence[str],
    arguments: CacheArguments,
    *,
    include_path: str | os.PathLike[str] | None = None,
    include_defaults: bool = True,
    limit: int | None = None,
    num_fewshot: int | None = None,
    max_length: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> dict[str, Any]:
    """Score a model on lm-eval tasks and return lm-eval's results as JSON values.

    include_path is a folder of your own task files; without include_defaults they are the only
    ones known; metadata is what a task's generator of documents asks for. Raises
    MissingExtraError without lm-eval, ValueError for what is wrong.
    """
    if not tasks:
        raise ValueError("tasks must name at least one task of lm-eval, got none")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    if num_fewshot is not None and num_fewshot < 0:
        raise ValueError(f"num_fewshot must be at least 0, got {num_fewshot}")
    if include_path is not None and not Path(include_path).is_dir():
        raise ValueError(f"include_path must be a folder of task files, got {str(include_path)!r}")
    from kvmmu.evals.lm_harness.model import KVMMULM  # isort: skip # says what is missing

    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    folder = None if include_path is None else str(include_path)
    manager = TaskManager(
        include_path=folder,
        include_defaults=include_defaults,
        metadata={"pretrained": model_path(model)} | dict(metadata or {}),
    )
    _check_tasks(tasks, manager.all_tasks)
    lm = KVMMULM(
        model,
        device=device,
        dtype=dtype,
        max_length=max_length,
        **{name: getattr(arguments, name) for name in ("num_slots", "compression", "full")},
        **arguments.parts,
    )
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # a pool for the bootstrap: not worth a fork
    with contextlib.redirect_stdout(sys.stderr):
        made = simple_evaluate(
            lm,
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            num_fewshot=num_fewshot,
            batch_size=1,
            bootstrap_iters=_BOOTSTRAP,
            log_samples=False,
        )
    kept = {name: made[name] for name in _KEPT if name in made}
    kept["config"] = lm.get_model_info() | {"limit": limit, "num_fewshot": num_fewshot}
    result: dict[str, Any] = _plain(kept)
    return result


def table(results: dict[str, Any]) -> str:
    """Return lm-eval's own table of the results, in Markdown."""
    from lm_eval.utils import make_table

    text: str = make_table(results)
    return text


def _check_tasks(tasks: Sequence[str], known: list[str]) -> None:
    """Raise ValueError for a task that lm-eval does not have; thousands are not listed."""
    for name in tasks:
        if name in known:
            continue
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"unknown lm-eval task {name!r}{hint} ({len(known)} are known; `lm-eval ls tasks` "
            "lists its own, include_path adds yours)"
        )


def _plain(value: Any) -> Any:
    """Return a value as JSON takes it; a number that is not finite becomes None."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if not callable(item)}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) or hasattr(value, "__float__"):
        return float(value) if math.isfinite(value) else None
    return str(value)
