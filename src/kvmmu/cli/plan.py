"""kvmmu plan: how many users fit, what prefill, decode and a context switch cost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvmmu.cli.lists import AsJson

if TYPE_CHECKING:
    from kvmmu.accel.plan import Plan

__all__ = ["numbers_of", "plan"]

ModelName = Annotated[
    str, typer.Option(help="A model by name, or a folder with a Hugging Face config.json.")
]
Accelerator = Annotated[
    str, typer.Option(help="An accelerator or a published profile by name, or a YAML file.")
]
Dram = Annotated[
    str | None, typer.Option(help="A DRAM by name or a YAML file (default: the accelerator's).")
]
Contexts = Annotated[str, typer.Option(help="Tokens of each user, with commas.")]
NumSlots = Annotated[int | None, typer.Option(help="Slots a layer, the same at every context.")]
Compression = Annotated[
    float | None, typer.Option(help="Slots = context / this (default 8, unless --num-slots).")
]
KvBits = Annotated[
    int | None, typer.Option(help="Bits of K and V: 16, 8 or 4 (default: the machine's).")
]
Users = Annotated[
    int | None, typer.Option(help="Time the step of all users with this many (default: all).")
]
LinkGbps = Annotated[
    float, typer.Option(help="GB/s at which a switch moves K and V (assumed: PCIe 4.0 x16).")
]


def plan(
    *,
    model: ModelName = "llama_7b",
    accelerator: Accelerator = "jetcas65",
    dram: Dram = None,
    contexts: Contexts = "4096,16384,32768,131072",
    num_slots: NumSlots = None,
    compression: Compression = None,
    kv_bits: KvBits = None,
    users: Users = None,
    link_gbps: LinkGbps = 20.0,
    as_json: AsJson = False,
) -> None:
    """Plan how many users fit, and what prefill, decode and a context switch cost.

    The four costs of long context for a model on a machine, with the full cache and with a
    constant number of slots. Everything is simulated; accuracy is not measured here.
    """
    if num_slots is not None and compression is not None:
        raise ValueError("--num-slots and --compression must not be given together")
    if num_slots is not None and num_slots < 1:
        raise ValueError(f"--num-slots must be at least 1, got {num_slots}")
    if kv_bits not in (None, 4, 8, 16):
        raise ValueError(f"--kv-bits must be 4, 8 or 16, got {kv_bits}")
    lengths = numbers_of(contexts, "--contexts")
    from kvmmu.accel.request import Request

    request = Request(
        accelerator=accelerator,
        model=model,
        dram=dram,
        num_slots=num_slots,
        compression=8.0 if compression is None else compression,
        kv_bits=kv_bits,
    )
    made = _plan(request, lengths, link_gbps, users).to_json()
    if as_json:
        typer.echo(json.dumps(made))
    else:
        _print(made)


def _plan(request: Any, contexts: tuple[int, ...], link_gbps: float, users: int | None) -> Plan:
    """Plan on an accelerator or on a profile. Raises SpecError for what is neither."""
    from kvmmu.accel.profiles import list_profiles

    options: dict[str, Any] = {"contexts": contexts, "link_gbps": link_gbps, "users": users}
    if request.accelerator in list_profiles():
        from kvmmu.accel.profile_plan import plan_profile

        return plan_profile(request, **options)
    from kvmmu.accel.plan import plan as plan_accelerator
    from kvmmu.accel.spec.load import list_accelerators
    from kvmmu.errors import SpecError
    from kvmmu.registry import unknown_name

    name = request.accelerator
    known = list_accelerators()
    is_file = "/" in name or name.endswith((".yaml", ".yml", ".json"))
    if not is_file and name.lower().replace("-", "_") not in known:
        raise SpecError(unknown_name("accelerator", name, sorted([*known, *list_profiles()])))
    return plan_accelerator(request, **options)


def numbers_of(text: str, option: str) -> tuple[int, ...]:
    """Read whole numbers with commas between them. Raises ValueError."""
    try:
        found = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        found = ()
    if not found:
        raise ValueError(f"{option} must be whole numbers with commas between them, got {text!r}")
    return found


def _print(made: dict[str, Any]) -> None:
    """Print the answer, the table and what must be known of it."""
    from rich.console import Console

    from kvmmu.report.plan import plan_answer, plan_notes, plan_table
    from kvmmu.report.tables import bullets

    console = Console(highlight=False, markup=False)
    console.print(plan_answer(made))
    console.print()
    console.print(plan_table(made))
    console.print()
    console.print(bullets(plan_notes(made), style="dim"))
