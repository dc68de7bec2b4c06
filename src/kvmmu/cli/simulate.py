"""kvmmu simulate: what a KV-MMU is worth on an accelerator, in energy, delay and DRAM traffic."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvmmu.cli.generate import is_given
from kvmmu.cli.lists import AsJson

if TYPE_CHECKING:
    from kvmmu.accel.request import Request

__all__ = ["simulate"]

Accelerator = Annotated[
    str, typer.Option(help="An accelerator by name (`kvmmu accelerators`), or a YAML file.")
]
Model = Annotated[
    str,
    typer.Option(help="A model by name (`kvmmu accelerators`), or ./folder with its config.json."),
]
Batch = Annotated[int, typer.Option(help="Lanes: sequences that run together.")]
Prompt = Annotated[int, typer.Option(help="Tokens of each prompt.")]
Generate = Annotated[int, typer.Option(help="New tokens of each lane.")]
NumSlots = Annotated[int | None, typer.Option(help="C, the slots per layer and KV head.")]
Compression = Annotated[
    float, typer.Option(help="Without --num-slots, C = ceil((prompt + generate) / this).")
]
Chunk = Annotated[
    int | None, typer.Option(help="Tokens of a prefill's chunk (default min(256, C)).")
]
Window = Annotated[
    int | None, typer.Option(help="Newest tokens that never leave (default C // 8).")
]
NumSinks = Annotated[int, typer.Option(help="First tokens that never leave.")]
KvBits = Annotated[int | None, typer.Option(help="Bits of a value of K and V (default: chip's).")]
Granularity = Annotated[
    str | None, typer.Option(help="One victim per 'layer' or per KV 'head' (default: chip's).")
]
Layout = Annotated[
    str | None,
    typer.Option(help="How slots lie in DRAM: slot, split, head (default: chip's), or best."),
]
Softmax = Annotated[
    str | None, typer.Option(help="online, two_pass or three_pass (default: chip's).")
]
Dram = Annotated[
    str | None, typer.Option(help="A DRAM preset or YAML file (default: the accelerator's).")
]
AlsoDram = Annotated[
    list[str] | None,
    typer.Option(help="A further DRAM for the ratios; may be repeated (default: one other)."),
]
Corner = Annotated[str, typer.Option(help="Energy constants: low, nominal or high.")]
Staggered = Annotated[
    bool,
    typer.Option(
        "--staggered", help="Lanes join one after the other: one prefills, others decode."
    ),
]
Trace = Annotated[
    Path | None, typer.Option(help="Replay a recorded run; its geometry must be the model's.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a key of the accelerator: array.rows=64; may be repeated."),
]
Output = Annotated[
    Path | None, typer.Option(help="Write simulation.json, pictures and index.html to this folder.")
]

_OF_TRACE = ("batch", "prompt", "generate", "compression", "chunk", "window", "num_sinks",
             "granularity", "staggered")  # fmt: skip
"""Options that a trace settles by itself."""
_KEY_OF = {
    "dram": "dram",
    "layout": "layout",
    "kv_bits": "bits.kv",
    "softmax": "softmax.form",
    "granularity": "mmu.granularity",
}
"""Options that say the same as a key of --set."""


def simulate(
    context: typer.Context,
    *,
    accelerator: Accelerator = "jetcas65",
    model: Model = "llama_7b",
    batch: Batch = 16,
    prompt: Prompt = 2048,
    generate: Generate = 2048,
    num_slots: NumSlots = None,
    compression: Compression = 8.0,
    chunk: Chunk = None,
    window: Window = None,
    num_sinks: NumSinks = 4,
    kv_bits: KvBits = None,
    granularity: Granularity = None,
    layout: Layout = None,
    softmax: Softmax = None,
    dram: Dram = None,
    also_dram: AlsoDram = None,
    corner: Corner = "nominal",
    staggered: Staggered = False,
    trace: Trace = None,
    overrides: Set = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Simulate RCE with a KV-MMU beside full, paged, windowed and pruned caches on one chip.

    Prints the gain in energy and delay first, then energy by unit, DRAM bytes beside their lower
    bound, what binds, the KV-MMU's share, area, sensitivity and the resolved configuration. Every
    figure is simulated; every ratio says which accuracy belongs to it, or that none was measured.
    """
    _check(context, trace=trace, corner=corner)
    keys = _overrides(context, overrides or [])
    if output is not None and output.exists() and not output.is_dir():
        raise ValueError(f"--output must be a folder, got the file {str(output)!r}")
    from kvmmu.accel.request import Request

    request = Request(
        accelerator=accelerator, model=model, batch=batch, prompt=prompt, generate=generate,
        num_slots=num_slots, compression=compression, chunk=chunk, window=window,
        num_sinks=num_sinks, kv_bits=kv_bits, granularity=granularity, layout=layout,
        softmax_form=softmax, dram=dram, corner=corner,  # type: ignore[arg-type]
        is_staggered=staggered, trace=trace, overrides=keys,
    )  # fmt: skip
    _run(request, _others(also_dram or [], request), output, is_json=as_json)


def _run(request: Request, drams: tuple[str, ...], output: Path | None, *, is_json: bool) -> None:
    """Simulate, print and write."""
    from kvmmu.accel.study import study
    from kvmmu.cli.progress import bar

    began = time.perf_counter()
    with bar("simulate", 9 + max(len(drams), 1), has_count=False) as shown:

        def say(label: str) -> None:
            shown.say(label)
            shown.advance(1)

        made = study(request, drams=drams, say=say)
        result = json.loads(json.dumps(made.to_json()))
    seconds = time.perf_counter() - began
    written = ""
    if output is not None:
        from kvmmu.report.accelerator.write import write_study
        from kvmmu.report.joint import write_joint

        output.mkdir(parents=True, exist_ok=True)
        write_study(result, output)
        write_joint(output)
        written = f"; wrote simulation.json, pictures and index.html to {output}"
    if not is_json:
        print_study(result)
    typer.echo(f"simulated in {seconds:.1f} s{written}", err=True)
    if is_json:
        typer.echo(json.dumps(result))


def print_study(result: dict[str, Any]) -> None:
    """Print a study: the answer first."""
    from rich.console import Console

    from kvmmu.report.accelerator.terminal import terminal_parts

    console = Console(highlight=False, markup=False)
    for part in terminal_parts(result):
        console.print(part)


def _check(context: typer.Context, *, trace: Path | None, corner: str) -> None:
    """Refuse options that contradict each other. Raises ValueError."""
    if is_given(context, "num_slots") and is_given(context, "compression"):
        raise ValueError("at most one of --num-slots and --compression must be given, got both")
    if corner not in ("low", "nominal", "high"):
        raise ValueError(f"--corner must be low, nominal or high, got {corner!r}")
    if trace is None:
        return
    if not trace.is_file():
        raise ValueError(f"--trace must be a file that exists, got {str(trace)!r}")
    for name in _OF_TRACE:
        if is_given(context, name):
            option = name.replace("_", "-")
            raise ValueError(f"--trace must go without --{option}: the trace itself says it")


def _overrides(context: typer.Context, texts: Sequence[str]) -> dict[str, Any]:
    """Read key=value pairs; values are YAML. Raises ValueError."""
    import yaml

    made: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ValueError(f"--set must be key=value, as in array.rows=64, got {text!r}")
        if key in made:
            raise ValueError(f"--set must name each key once, got {key!r} twice")
        try:
            made[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--set {key} must have a YAML value, got {value!r}") from error
    for name, key in _KEY_OF.items():
        if key in made and is_given(context, name):
            option = name.replace("_", "-")
            raise ValueError(f"at most one of --{option} and --set {key} must be given, got both")
    return made


def _others(names: Sequence[str], request: Request) -> tuple[str, ...]:
    """Check the further DRAMs before anything runs. Raises SpecError or ValueError."""
    from kvmmu.accel.dram.spec import load_dram
    from kvmmu.accel.spec.load import load_accelerator

    spec = load_accelerator(request.accelerator).with_overrides(dict(request.overrides))
    seen = [load_dram(request.dram or spec.dram).name]
    for name in names:
        made = load_dram(name).name
        if made in seen:
            raise ValueError(f"--also-dram must name another DRAM each time, got {name!r} again")
        seen.append(made)
    return tuple(names)
