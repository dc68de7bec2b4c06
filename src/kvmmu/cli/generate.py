"""kvmmu generate: continue a prompt with a cache of constant size, or with a full one."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvmmu.cli.lists import AsJson

if TYPE_CHECKING:
    from kvmmu.hf.lm import LM

__all__ = ["check_seed", "generate", "is_given", "load_model", "quieten"]

_EVICTING = ("policy", "window", "num_sinks", "granularity", "positions")
"""Options that say nothing of a full cache."""

Model = Annotated[
    str, typer.Argument(help="A shipped model, a local folder, or a hub name 'owner/name'.")
]
Prompt = Annotated[str | None, typer.Option(help="The text to continue.")]
PromptFile = Annotated[
    Path | None, typer.Option(help="A file with the text to continue; - is stdin.")
]
NumSlots = Annotated[int | None, typer.Option(help="C, the slots per layer and KV head.")]
Compression = Annotated[
    float | None, typer.Option(help="C = ceil((prompt + new tokens) / this), for instance 8.")
]
Full = Annotated[bool, typer.Option("--full", help="Keep every token: no eviction.")]
PolicyName = Annotated[
    str,
    typer.Option(help="Who leaves; with parameters as in rce:decay=0.99. See `kvmmu policies`."),
]
MaxNew = Annotated[int, typer.Option(help="New tokens at most.")]
Window = Annotated[
    int | None, typer.Option(help="Newest tokens that never leave (default C // 8).")
]
NumSinks = Annotated[int | None, typer.Option(help="First tokens that never leave (default 4).")]
GranularityName = Annotated[str, typer.Option(help="One victim per KV 'head' or per 'layer'.")]
PositionsName = Annotated[
    str, typer.Option(help="'original', or 'in_cache' for texts beyond the trained length.")
]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, cuda:1, ...")]
Temperature = Annotated[
    float | None, typer.Option(help="Sample at this temperature; 0, the default, is greedy.")
]
TopP = Annotated[
    float | None, typer.Option(help="Sample from the likeliest tokens of this total probability.")
]
Seed = Annotated[int, typer.Option(help="Seed of the sampling, in [0, 2**31).")]
TraceFile = Annotated[Path | None, typer.Option(help="Record the KV-MMU's events to this file.")]
TraceMasses = Annotated[
    bool,
    typer.Option(
        "--trace-masses",
        help="Record the attention mass of every slot too (rce:fixed_point=true).",
    ),
]


def generate(
    context: typer.Context,
    model: Model,
    *,
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    num_slots: NumSlots = None,
    compression: Compression = None,
    full: Full = False,
    policy: PolicyName = "rce",
    max_new_tokens: MaxNew = 100,
    window: Window = None,
    num_sinks: NumSinks = None,
    granularity: GranularityName = "head",
    positions: PositionsName = "original",
    dtype: Dtype = "float32",
    device: Device = "cpu",
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = 0,
    trace: TraceFile = None,
    trace_masses: TraceMasses = False,
    as_json: AsJson = False,
) -> None:
    """Continue a prompt with a KV cache of constant size.

    Give one of --num-slots, --compression and --full. Text goes to stdout, the rest to stderr.
    """
    _check(num_slots, compression, full, trace)
    given = [name for name in _EVICTING if is_given(context, name)]
    if full and given:
        raise ValueError(
            f"--full must go without --{given[0].replace('_', '-')}: a full cache evicts nothing"
        )
    if trace_masses and trace is None:
        raise ValueError("--trace-masses must go with --trace, got no file to write to")
    check_seed(seed)
    if max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens must be at least 1, got {max_new_tokens}")
    quieten(model)
    text = _prompt(prompt, prompt_file)
    sampling = _sampling(temperature, top_p)
    parts: dict[str, Any] = {}
    if not full:
        from kvmmu.cli.policy_text import parse_policy

        parts = {"window": window, "num_sinks": num_sinks}
        parts |= {"granularity": granularity, "positions": positions}
        parts["policy"] = parse_policy(policy)
        if trace_masses and not getattr(parts["policy"], "fixed_point", False):
            raise ValueError(
                f"--trace-masses must go with --policy rce:fixed_point=true, got {policy!r}"
            )
    lm = load_model(
        model, num_slots=num_slots, compression=compression, dtype=dtype, device=device, **parts
    )
    from kvmmu.cli.generation import describe_run, run

    is_streamed = not as_json and sys.stdout.isatty()
    done = run(
        lm,
        text,
        model_name=model,
        max_new_tokens=max_new_tokens,
        sampling=sampling | {"seed": seed},
        trace=trace,
        masses=trace_masses,
        write=_write if is_streamed else None,
    )
    if not as_json:
        typer.echo("" if is_streamed else done["text"])
    typer.echo(describe_run(done), err=True)
    if as_json:
        typer.echo(json.dumps(done))


def check_seed(seed: int) -> None:
    """Raise ValueError for a seed that not every generator takes."""
    if not 0 <= seed < 2**31:
        raise ValueError(f"--seed must lie in [0, 2**31), got {seed}")


def is_given(context: typer.Context, name: str) -> bool:
    """Tell whether an option was written on the command line, be it with its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def load_model(model: str, **options: Any) -> LM:
    """Load a model and its tokenizer, as kvmmu.load does. Raises ValueError for no such device."""
    from kvmmu.hf.load import load

    _check_device(options.get("device", "cpu"))
    return load(model, **options)


def _check_device(device: str) -> None:
    """Raise ValueError unless torch has the device here."""
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"--device must be one that torch has here, got {device!r}; try cpu"
        ) from error


def quieten(model: str) -> None:
    """Silence what others write to stderr; the loader's bar stays for a download to a terminal.

    To be called before torch and transformers are imported, which read these once.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if Path(model).exists() or "/" not in model or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _check(
    num_slots: int | None,
    compression: float | None,
    full: bool,  # noqa: FBT001
    trace: Path | None,
) -> None:
    """Refuse what contradicts itself before anything heavy is loaded. Raises ValueError."""
    given = {"--num-slots": num_slots, "--compression": compression, "--full": full or None}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise ValueError(
            "exactly one of --num-slots, --compression and --full must be given, got "
            f"{' and '.join(names) or 'none'}"
        )
    if trace is not None and full:
        raise ValueError("--trace must go with --num-slots or --compression, got --full")
    if trace is not None and not trace.parent.is_dir():
        raise ValueError(f"the folder of --trace must exist, got {str(trace)!r}")
    if trace is not None and trace.is_dir():
        raise ValueError(f"--trace must be a file, got the folder {str(trace)!r}")


def _prompt(prompt: str | None, file: Path | None) -> str:
    """Return the one prompt that was given. Raises ValueError if it is not one, or is empty."""
    if (prompt is None) == (file is None):
        raise ValueError(
            "exactly one of --prompt and --prompt-file must be given, got "
            f"{'none' if prompt is None else 'both'}"
        )
    if prompt is not None:
        text, source = prompt, "--prompt"
    elif str(file) != "-" and not Path(str(file)).is_file():
        raise ValueError(f"--prompt-file must be a readable file, got {str(file)!r}")
    else:
        text, source = _read(file), "stdin" if str(file) == "-" else str(file)
    try:
        text.encode("utf-8")  # bytes that are no text come from the shell as surrogates
    except UnicodeEncodeError as error:
        raise ValueError(f"the prompt must be UTF-8 text, got other bytes from {source}") from error
    if not text.strip():
        raise ValueError(f"the prompt must not be empty, got nothing but space from {source}")
    return text


def _read(file: Path | None) -> str:
    """Read a file, or stdin for "-". Raises ValueError for what is no UTF-8."""
    try:
        if str(file) == "-":
            return sys.stdin.read()
        return Path(str(file)).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompt-file must be UTF-8 text, got {str(file)!r}") from error


def _sampling(temperature: float | None, top_p: float | None) -> dict[str, Any]:
    """Turn the sampling flags into generate()'s arguments. Raises ValueError out of range."""
    if temperature is not None and not 0 <= temperature < float("inf"):
        raise ValueError(f"--temperature must be at least 0, got {temperature}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"--top-p must lie in (0, 1], got {top_p}")
    if temperature == 0 or (temperature is None and top_p is None):
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": 1.0 if temperature is None else temperature,
        "top_p": 1.0 if top_p is None else top_p,
        "top_k": 0,
    }


def _write(piece: str) -> None:
    """Stream a piece of text to a terminal."""
    typer.echo(piece, nl=False)
    sys.stdout.flush()
