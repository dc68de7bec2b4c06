"""kvmmu policies and kvmmu models: what there is to choose from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["AsJson", "models", "policies"]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, last on stdout.")]


def policies(*, as_json: AsJson = False) -> None:
    """List the policies: who leaves when the cache is full."""
    from kvmmu.cli.policy_text import describe_policy
    from kvmmu.policies.base import list_policies

    rows = [describe_policy(name) for name in list_policies()]
    if as_json:
        typer.echo(json.dumps({"policies": rows}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 1, 0), pad_edge=False)
    for title in ("policy", "rule", "needs", "parameters"):
        table.add_column(title, overflow="fold", no_wrap=title == "policy")
    for row in rows:
        parameters = "\n".join(f"{key}={_plain(value)}" for key, value in row["parameters"].items())
        table.add_row(row["name"], row["rule"], ", ".join(row["needs"]) or "-", parameters or "-")
    Console(highlight=False, markup=False).print(table)
    typer.echo("Give parameters after a colon: --policy rce:decay=0.99", err=True)


def models(*, as_json: AsJson = False) -> None:
    """List the models that are shipped in the package."""
    from kvmmu.hf.load import list_models, model_path

    rows: list[dict[str, Any]] = []
    for name in list_models():
        folder = Path(model_path(name))
        size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        rows.append({"name": name, "bytes": size, "path": str(folder)})
    if as_json:
        typer.echo(json.dumps({"models": rows}))
        return
    for row in rows:
        typer.echo(f"{row['name']}  {row['bytes'] / 1e6:.1f} MB  {row['path']}")
    typer.echo("A local folder or a hub name 'owner/name' serves as well.", err=True)


def _plain(value: Any) -> str:
    """Word a parameter; a policy within a policy by its name."""
    return str(value["name"]) if isinstance(value, dict) else str(value)
