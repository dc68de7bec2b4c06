"""Boolean expressions of Liberty (`function`, `when`, `next_state`) as truth tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvmmu.errors import SpecError

__all__ = ["MAX_VARIABLES", "Expression", "parse_expression"]

MAX_VARIABLES = 16
"""A table of more inputs than this is refused: 2 ** n rows."""

_TOKEN = re.compile(r"\s*(?:([A-Za-z_][A-Za-z0-9_.]*(?:\[\d+\])?)|([01])|([!'*&+|^()]))")

# A node is ("var", name), ("const", 0 or 1), ("not", a), or (operator, a, b).
_Node = tuple[object, ...]
_BINARY: tuple[frozenset[str], ...] = (frozenset("+|"), frozenset("*&"), frozenset("^"))
"""Operators from the loosest to the tightest; Liberty binds `^` before `*` before `+`."""


@dataclass(frozen=True)
class Expression:
    """Hold one parsed expression; names are its variables in order of appearance."""

    text: str
    names: tuple[str, ...]
    node: _Node

    def table(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """Return the truth table over `names`, [2 ** n]; variable i is bit i of the row.

        Raises SpecError if the expression uses another variable or n is too large.
        """
        if len(names) > MAX_VARIABLES:
            raise SpecError(f"variables must be at most {MAX_VARIABLES}, got {len(names)}")
        rows = np.arange(1 << len(names))
        columns = {name: (rows >> i & 1).astype(np.bool_) for i, name in enumerate(names)}
        return self.over(columns, len(rows))

    def over(self, columns: Mapping[str, NDArray[np.bool_]], rows: int) -> NDArray[np.bool_]:
        """Return the value in each row of `columns`, variable -> [rows]. Raises SpecError."""
        missing = [name for name in self.names if name not in columns]
        if missing:
            raise SpecError(f"{self.text!r} must use only {list(columns)}, got {missing[0]!r}")
        return _evaluate(self.node, columns, rows)


def _evaluate(
    node: _Node, columns: Mapping[str, NDArray[np.bool_]], rows: int
) -> NDArray[np.bool_]:
    kind = node[0]
    if kind == "var":
        return columns[str(node[1])]
    if kind == "const":
        return np.full(rows, node[1] == 1, dtype=np.bool_)
    left = _evaluate(_child(node, 1), columns, rows)
    if kind == "not":
        return ~left
    right = _evaluate(_child(node, 2), columns, rows)
    if kind == "+":
        return left | right
    return left & right if kind == "*" else left ^ right


def _child(node: _Node, position: int) -> _Node:
    child = node[position]
    assert isinstance(child, tuple)
    return child


def parse_expression(text: str) -> Expression:
    """Parse `text`; a blank between two operands is an AND. Raises SpecError."""
    tokens = _tokens(text)
    parser = _Parser(text, tokens)
    node = parser.binary(0)
    if parser.position != len(tokens):
        raise SpecError(f"expression must end after an operand, got {text!r}")
    names = dict.fromkeys(t for t in tokens if t[0].isalpha() or t[0] == "_")
    return Expression(text=text, names=tuple(names), node=node)


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    position = 0
    stripped = text.rstrip()
    while position < len(stripped):
        match = _TOKEN.match(stripped, position)
        if match is None:
            raise SpecError(f"expression must be names, 0, 1 and ! ' * & + | ^ ( ), got {text!r}")
        tokens.append(match.group(1) or match.group(2) or match.group(3))
        position = match.end()
    if not tokens:
        raise SpecError(f"expression must not be empty, got {text!r}")
    return tokens


class _Parser:
    """Parse by recursive descent, one level an operator's strength."""

    def __init__(self, text: str, tokens: list[str]) -> None:
        self.text = text
        self.tokens = tokens
        self.position = 0

    def peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.position += 1
        return token

    def binary(self, level: int) -> _Node:
        if level == len(_BINARY):
            return self.unary()
        node = self.binary(level + 1)
        while True:
            token = self.peek()
            if token and token in _BINARY[level]:
                self.take()
            elif not (level == 1 and (token[:1].isalnum() or token[:1] in ("_", "(", "!"))):
                return node
            kind = ("+", "*", "^")[level]
            node = (kind, node, self.binary(level + 1))

    def unary(self) -> _Node:
        if self.peek() == "!":
            self.take()
            return ("not", self.unary())
        node = self.primary()
        while self.peek() == "'":
            self.take()
            node = ("not", node)
        return node

    def primary(self) -> _Node:
        token = self.take()
        if token == "(":
            node = self.binary(0)
            if self.take() != ")":
                raise SpecError(f"every ( must be closed, got {self.text!r}")
            return node
        if token in ("0", "1"):
            return ("const", int(token))
        if token[:1].isalpha() or token[:1] == "_":
            return ("var", token)
        raise SpecError(f"expression must have an operand where {token!r} is, got {self.text!r}")
