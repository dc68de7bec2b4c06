"""kvmmu bench: our decoding against what a user would pick instead, in one run, in turns."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvmmu.cli.lists import AsJson
from kvmmu.cli.plan import numbers_of

if TYPE_CHECKING:
    from kvmmu.evals.bench.run import Plan

__all__ = ["bench"]

CACHE_DIR = Path("~/.cache/kvmmu/bench")

ModelName = Annotated[
    str,
    typer.Argument(
        help="random:88m, random:layers=4,hidden=256, or a Hugging Face folder (safetensors)."
    ),
]
Ours = Annotated[
    str | None, typer.Option(help="Ours, by name with commas (default: all; see below).")
]
Baselines = Annotated[
    str | None, typer.Option(help="Peers, by name or family with commas; 'none' for none.")
]
Contexts = Annotated[str, typer.Option(help="Tokens of the prompt, with commas.")]
Batches = Annotated[str, typer.Option(help="Requests at once, with commas.")]
Slots = Annotated[str, typer.Option(help="Slots a layer of ours and budgets of peers: C,C.")]
Policy = Annotated[str, typer.Option(help="The policy of ours, with its parameters.")]
Caps = Annotated[
    str, typer.Option(help="Memory caps in tokens of K and V for 12 x (1,024 + 384); 'none'.")
]
PeerPython = Annotated[
    list[str] | None,
    typer.Option(help="FAMILY=PATH: a peer's own Python; may be given more than once."),
]
Output = Annotated[Path, typer.Option(help="The folder to write to; goes on where it ended.")]
ConvertDir = Annotated[
    Path | None, typer.Option(help=f"Where models and conversions are kept ({CACHE_DIR}).")
]
NumRounds = Annotated[int, typer.Option(help="Rounds that must count, of at most twice as many.")]
TurnS = Annotated[float, typer.Option(help="Seconds of a candidate's turn.")]
Threads = Annotated[int | None, typer.Option(help="Threads of all (default: one a core).")]
MaxPrefillS = Annotated[
    float, typer.Option(help="Skip a point whose prefill is known to take longer (said so).")
]
Quick = Annotated[bool, typer.Option("--quick", help="One small point, no caps: some minutes.")]


_GRID = {
    "contexts": "1024,4096,16384,32768",
    "batch_sizes": "1,8,16",
    "num_slots": "512,1024",
    "caps": "3200,1536",
}


def _check_quick(**given: str) -> None:
    """Raise ValueError for a part of the grid that --quick would ignore."""
    for name, value in given.items():
        if value != _GRID[name]:
            option = "--" + name.replace("_", "-")
            raise ValueError(
                f"{option} must be left out with --quick, which sets it, got {value!r}"
            )


def bench(
    model: ModelName = "random:88m",
    *,
    baselines: Baselines = None,
    ours: Ours = None,
    contexts: Contexts = _GRID["contexts"],
    batch_sizes: Batches = _GRID["batch_sizes"],
    num_slots: Slots = _GRID["num_slots"],
    policy: Policy = "rce",
    caps: Caps = _GRID["caps"],
    peer_python: PeerPython = None,
    output: Output = Path("kvmmu-bench"),
    convert_dir: ConvertDir = None,
    rounds: NumRounds = 7,
    turn_s: TurnS = 0.3,
    threads: Threads = None,
    max_prefill_s: MaxPrefillS = 300.0,
    quick: Quick = False,
    as_json: AsJson = False,
) -> None:
    """Time decode, prefill and memory against the caches that a user would pick instead.

    Every candidate runs in a process of its own on the same weights and takes its turn in every
    round; rounds in which others used the machine are void. A candidate that is not installed or
    fails is listed with its reason. Greedy tokens of full fp32 caches must equal transformers'.

    Ours: engine, engine-int8, library (SlotCache in transformers), library-native
    (with native kernels), library-bf16, and *-no-scores.
    Families of peers: transformers (dynamic, static, static-compiled), kvpress, openvino-genai
    (fp32, int8, with and without eviction), llama.cpp (f32, f16, q8_0). openvino-genai's Python
    needs optimum-intel for the conversion, llama.cpp's the gguf package.
    """
    if quick:
        _check_quick(contexts=contexts, batch_sizes=batch_sizes, num_slots=num_slots, caps=caps)
        contexts, batch_sizes, num_slots, caps = "1024", "1", "256", "none"
        rounds, turn_s = min(rounds, 5), min(turn_s, 0.2)
    where = (convert_dir or CACHE_DIR).expanduser()
    plan = make_plan(
        baselines=baselines, ours=ours, contexts=contexts, batch_sizes=batch_sizes,
        num_slots=num_slots, policy=policy, caps=caps, peer_python=peer_python or [],
        rounds=rounds, turn_s=turn_s, threads=threads or os.cpu_count() or 1,
        max_prefill_s=max_prefill_s, convert_dir=where, output=output,
    )  # fmt: skip
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output must be a folder, got the file {str(output)!r}")
    from kvmmu.cli.progress import bar
    from kvmmu.evals.bench.model import BenchModel
    from kvmmu.evals.bench.run import Bench
    from kvmmu.report.bench import write_bench

    job = Bench(BenchModel.open(model, where), plan, output)
    with bar("bench", job.total) as shown:
        result = job.run(advance=shown.advance, say=shown.say)
    (output / "bench.json").write_text(json.dumps(result, indent=1))
    files = write_bench(result, output)
    if not as_json:
        _print(result)
    names = ", ".join(["bench.json", *(file.name for file in files)])
    typer.echo(f"wrote {names} to {output}", err=True)
    if as_json:
        typer.echo(json.dumps(result))


def make_plan(
    *,
    baselines: str | None,
    ours: str | None,
    contexts: str,
    batch_sizes: str,
    num_slots: str,
    policy: str,
    caps: str,
    peer_python: list[str],
    rounds: int,
    turn_s: float,
    threads: int,
    max_prefill_s: float,
    convert_dir: Path,
    output: Path,
) -> Plan:
    """Read the options. Raises ValueError for what is unknown or out of range."""
    from kvmmu.evals.bench.candidates import pick
    from kvmmu.evals.bench.run import Plan
    from kvmmu.evals.bench.worker import Point, Timing
    from kvmmu.evals.policy_text import parse_policy

    parse_policy(policy)
    for name, value in (("--rounds", rounds), ("--threads", threads)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    for name, seconds in (("--turn-s", turn_s), ("--max-prefill-s", max_prefill_s)):
        if not seconds > 0:
            raise ValueError(f"{name} must exceed 0, got {seconds}")
    points = [
        Point(batch, context, slots)
        for slots in _positive(num_slots, "--num-slots", 8)
        for batch in _positive(batch_sizes, "--batch-sizes", 1)
        for context in _positive(contexts, "--contexts", 16)
    ]
    candidates = (*pick(ours, is_ours=True), *pick(baselines, is_ours=False))
    if not candidates:
        raise ValueError("--ours and --baselines must name at least one candidate, got none")
    return Plan(
        points=tuple(dict.fromkeys(points)),
        candidates=candidates,
        how=Timing(
            rounds=rounds,
            turn_s=turn_s,
            max_prefill_s=max_prefill_s,
            threads=threads,
            policy=policy,
            pythons=_pythons(peer_python),
            convert_dir=convert_dir,
            log_dir=output / "logs",
        ),
        caps=() if caps == "none" else _positive(caps, "--caps", 256),
    )


def _positive(text: str, option: str, least: int) -> tuple[int, ...]:
    """Read whole numbers of at least `least`. Raises ValueError."""
    found = numbers_of(text, option)
    if min(found) < least:
        raise ValueError(f"{option} must be numbers of at least {least}, got {text!r}")
    return found


def _pythons(given: list[str]) -> dict[str, str]:
    """Read FAMILY=PATH. Raises ValueError for a family that there is not, or no file."""
    from kvmmu.evals.bench.candidates import CANDIDATES
    from kvmmu.registry import unknown_name

    families = sorted({c.family for c in CANDIDATES.values() if not c.is_ours})
    found: dict[str, str] = {}
    for text in given:
        name, _, path = text.partition("=")
        if name not in families and name not in CANDIDATES:
            raise ValueError(unknown_name("peer", name, families))
        if not Path(path).is_file():
            raise ValueError(f"--peer-python {name} must name a Python, got {path!r}")
        found[name] = str(Path(path).absolute())
    return found


def _print(result: dict[str, Any]) -> None:
    """Print the tables and what they do not say."""
    from rich.console import Console

    from kvmmu.report.bench import bench_notes, cap_table, point_tables
    from kvmmu.report.tables import bullets

    console = Console(highlight=False, markup=False)
    for table in point_tables(result):
        console.print(table)
    made = cap_table(result)
    if made is not None:
        console.print(made)
    console.print(bullets(bench_notes(result), style="dim"))
