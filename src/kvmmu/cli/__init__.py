"""The command line: kvmmu demo, generate, eval, bench, report, simulate, plan, explore, rtl, lists.

Results go to stdout, messages and progress to stderr. Exit 0: done; 2: bad input, said in one
line; 1: a fault of ours, with its traceback; 130: interrupted. Nothing heavy is imported before
a command runs.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kvmmu import __version__
from kvmmu.cli import (
    accelerators,
    bench,
    demo,
    eval,
    explore,
    generate,
    lists,
    lm_eval,
    plan,
    report,
    rtl,
    rtl_energy,  # noqa: F401  # adds `kvmmu rtl energy`
    simulate,
)
from kvmmu.errors import IntegrityError, KVMMUError

__all__ = ["app", "main"]

_INTERRUPTED = 130
"""128 + SIGINT, as a shell says it."""


class _Group(TyperGroup):
    """Run a command and turn what it raises into an exit code and one line."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run; exits unless standalone_mode=False asks to return."""
        is_whole = extra.pop("standalone_mode", True)
        run = partial(super().main, *args, **extra | {"standalone_mode": False})
        if not is_whole:
            return run()
        sys.exit(_exit_code(run))


def _exit_code(run: Callable[[], Any]) -> int:
    """Call run and return 0, 2 or 1; 130 where the user interrupts."""
    try:
        code = run()
        if code == _INTERRUPTED:  # what typer makes of a KeyboardInterrupt
            return _say("interrupted", code=_INTERRUPTED)
        sys.stdout.flush()  # a reader that has gone is noticed here
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        sys.stdout = None  # the interpreter would flush it once more
        return 0
    except KeyboardInterrupt:
        return _say("interrupted", code=_INTERRUPTED)
    except IntegrityError:
        traceback.print_exc()
        return 1
    except (KVMMUError, ValueError, OSError) as error:
        return _say(str(error), code=2)
    except Exception as error:
        if hasattr(error, "format_message"):  # the command line itself is wrong
            return _say(error.format_message(), code=2)
        if type(error).__name__ == "Abort":
            return _say("interrupted", code=_INTERRUPTED)
        traceback.print_exc()
        return 1


def _say(message: str, *, code: int) -> int:
    """Print one line to stderr and return the code."""
    typer.echo("kvmmu: " + " ".join(message.split()), err=True)
    return code


app = typer.Typer(
    name="kvmmu",
    cls=_Group,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_asked: bool) -> None:  # noqa: FBT001
    if is_asked:
        typer.echo(f"kvmmu {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True, epilog="Example: kvmmu demo --quick")
def _root(
    context: typer.Context,
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Hold a transformer's KV cache at constant size.

    When the cache is full, the least relevant token leaves and the new one takes its slot.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command(
    "demo", epilog="Example: kvmmu demo --output kvmmu-demo (add --quick for a shorter run)"
)(demo.demo)
app.command(
    "generate",
    epilog=(
        "Example: kvmmu generate kvmmu-ref-1m --prompt-file story.txt --num-slots 256 "
        "--policy rce:decay=0.99 --max-new-tokens 100"
    ),
)(generate.generate)
app.command(
    "eval",
    epilog=(
        "Example: kvmmu eval kvmmu-ref-1m --suite standard --policies rce,keydiff "
        "--compression 4,8 --output results"
    ),
)(eval.evaluate)
app.command(
    "bench",
    epilog=(
        "Examples: kvmmu bench --quick.  kvmmu bench random:88m --contexts 1024,16384 "
        "--batch-sizes 1,8 --num-slots 512 --baselines transformers,openvino-genai "
        "--peer-python openvino-genai=ov/bin/python --output speed"
    ),
)(bench.bench)
app.command("report", epilog="Example: kvmmu report results")(report.report)
app.command(
    "simulate",
    epilog=(
        "Example: kvmmu simulate --accelerator jetcas65 --model llama_7b --batch 16 "
        "--prompt 2048 --generate 2048 --num-slots 512 --output simulation"
    ),
)(simulate.simulate)
app.command("accelerators", epilog="Example: kvmmu accelerators --json")(accelerators.accelerators)
app.command(
    "lm-eval",
    epilog=(
        "Example: kvmmu lm-eval kvmmu-ref-1m --tasks my_task --include-path my_tasks "
        "--compression 4 --policy rce --limit 100"
    ),
)(lm_eval.lm_eval)
app.command(
    "plan", epilog="Example: kvmmu plan --model llama_7b --num-slots 512 --contexts 4096,32768"
)(plan.plan)
app.command(
    "explore",
    epilog="Example: kvmmu explore --model llama_7b --area-mm2 7.5 --trials 100 --output search",
)(explore.explore)
app.add_typer(rtl.app, name="rtl")
app.command("policies", epilog="Example: kvmmu policies --json")(lists.policies)
app.command("models", epilog="Example: kvmmu models")(lists.models)


def main() -> None:
    """Run the command line and exit."""
    app()
