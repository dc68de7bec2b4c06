"""A policy as it is written on the command line: a name, then parameters: rce:decay=0.99."""

from __future__ import annotations

import dataclasses
import sys
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from kvmmu.policies.base import POLICIES, Policy
from kvmmu.registry import unknown_name

__all__ = ["describe_policy", "parse_policy"]


def parse_policy(text: str) -> Policy:
    """Read "name" or "name:key=value,key=value". Raises ValueError that names what is known."""
    name, _, rest = text.partition(":")
    made = POLICIES.get(name.strip())
    known = [field.name for field in dataclasses.fields(made)]
    hints = get_type_hints(made)
    values: dict[str, Any] = {}
    for pair in filter(None, (part.strip() for part in rest.split(","))):
        key, sign, value = (part.strip() for part in pair.partition("="))
        if key not in known:
            raise ValueError(unknown_name(f"parameter of policy {name!r}", key, known or ["none"]))
        if not sign:
            raise ValueError(f"a policy's parameter must be given as key=value, got {pair!r}")
        values[key] = _value(value, hints[key], f"{key} of policy {name!r}")
    return made(**values)


def _value(text: str, hint: Any, what: str) -> Any:
    """Read a value of a type. Raises ValueError with what is allowed."""
    for kind in _arms(hint):
        if get_origin(kind) is Literal:
            for allowed in get_args(kind):
                if str(allowed) == text:
                    return allowed
        elif kind is type(None):
            if text.lower() == "none":
                return None
        elif kind is bool:
            if text.lower() in ("true", "false"):
                return text.lower() == "true"
        elif kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
        elif isinstance(kind, type) and issubclass(kind, Policy):
            return parse_policy(text)
    raise ValueError(f"{what} must be {_say(hint)}, got {text!r}")


def _arms(hint: Any) -> tuple[Any, ...]:
    """List the types of a union, or the one type."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _say(hint: Any) -> str:
    """Word a type for a message."""
    words = {type(None): "none", bool: "true or false", int: "an integer", float: "a number"}
    parts = []
    for kind in _arms(hint):
        if get_origin(kind) is Literal:
            parts += [repr(value) for value in get_args(kind)]
        else:
            parts.append(words.get(kind, "a policy"))
    return " or ".join(parts)


def describe_policy(name: str) -> dict[str, Any]:
    """Return a policy's name, kind, rule, needs and parameters as JSON values."""
    made = POLICIES.get(name)
    policy = made()
    doc = (sys.modules[made.__module__].__doc__ or made.__doc__ or "").strip()
    paper, rule = _paper_and_rule(doc)
    return {
        "name": name,
        "kind": policy.kind,
        "paper": paper,
        "rule": rule,
        "needs": sorted(policy.needs),
        "parameters": policy.params(),
    }


def _paper_and_rule(doc: str) -> tuple[str, str]:
    """Take the first line, and the sentence after "Rule:" up to the next section."""
    lines = doc.splitlines()
    paper = lines[0] if lines else ""
    rule: list[str] = []
    for line in lines[1:]:
        if line.startswith("Rule:"):
            rule = [line.removeprefix("Rule:").strip()]
        elif rule and (not line.strip() or line.startswith(("Parameters", "Differs from"))):
            break
        elif rule:
            rule.append(line.strip())
    return paper, " ".join(rule) or paper
