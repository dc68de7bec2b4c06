"""A policy as it is written in text: a name, then parameters: rce:decay=0.99.

A policy within a policy that has parameters of its own stands in parentheses:
snapkv:then=(rce:decay=0.9,normalize=age),kernel_size=7. What write_policy writes, parse_policy
reads back.
"""

from __future__ import annotations

import dataclasses
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from kvmmu.policies.base import POLICIES, Policy
from kvmmu.registry import unknown_name

__all__ = ["parse_policies", "parse_policy", "write_policy"]


def write_policy(policy: Policy) -> str:
    """Write a policy with what differs from its defaults."""
    values = {field.name: getattr(policy, field.name) for field in dataclasses.fields(policy)}
    parts = [f"{name}={_write(values[name])}" for name in _own(policy, values)]
    return f"{policy.name}:{','.join(parts)}" if parts else policy.name


def _own(policy: Policy, values: dict[str, Any]) -> list[str]:
    """List the parameters without which another policy would be read.

    One that equals the default is among them where others would settle it differently.
    """
    own: list[str] = []
    while True:
        made = type(policy)(**{name: values[name] for name in own})
        more = [n for n in values if n not in own and getattr(made, n) != values[n]]
        if not more:
            return [name for name in values if name in own]
        own += more


def _write(value: Any) -> str:
    """Write a parameter; a policy that has parameters stands in parentheses."""
    if not isinstance(value, Policy):
        return str(value)
    text = write_policy(value)
    return f"({text})" if ":" in text else text


def parse_policy(text: str) -> Policy:
    """Read "name" or "name:key=value,key=value". Raises ValueError that names what is known."""
    name, _, rest = text.partition(":")
    made = POLICIES.get(name.strip())
    known = [field.name for field in dataclasses.fields(made)]
    hints = get_type_hints(made)
    values: dict[str, Any] = {}
    for pair in filter(None, _split(rest, ",")):
        key, sign, value = (part.strip() for part in pair.partition("="))
        if key not in known:
            raise ValueError(unknown_name(f"parameter of policy {name!r}", key, known or ["none"]))
        if not sign:
            raise ValueError(f"a policy's parameter must be given as key=value, got {pair!r}")
        values[key] = _value(value, hints[key], f"{key} of policy {name!r}")
    return made(**values)


def parse_policies(text: str) -> list[Policy]:
    """Read several policies, parted by spaces, or by commas before a name.

    "rce:decay=0.99,normalize=age,keydiff" is two: what has no "=" begins a policy.
    """
    parts: list[str] = []
    for piece in _split(text, ", "):
        head, sign, _ = piece.partition("=")
        is_parameter = bool(sign) and ":" not in head
        if is_parameter and parts:
            parts[-1] += ("," if ":" in parts[-1] else ":") + piece
        elif piece:
            parts.append(piece)
    if not parts:
        raise ValueError(f"policies must name at least one, got {text!r}")
    return [parse_policy(part) for part in parts]


def _split(text: str, marks: str) -> list[str]:
    """Split at any of some characters that stand outside of parentheses."""
    parts, depth = [""], 0
    for char in text:
        depth += (char == "(") - (char == ")")
        if char in marks and depth <= 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]


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
            is_wrapped = text.startswith("(") and text.endswith(")")
            return parse_policy(text[1:-1] if is_wrapped else text)
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
