"""Truth tables of Liberty expressions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmmu.errors import SpecError
from kvmmu.rtl.gates.boolean import parse_expression


def table(text: str, *names: str) -> list[int]:
    return [int(level) for level in parse_expression(text).table(names)]


@pytest.mark.parametrize(
    ("text", "names", "rows"),
    [
        ("!A", "A", [1, 0]),
        ("A'", "A", [1, 0]),
        ("!(A*B)", "AB", [1, 1, 1, 0]),
        ("A & !B", "AB", [0, 1, 0, 0]),
        ("A B", "AB", [0, 0, 0, 1]),  # a blank is an AND
        ("A (B + C)'", "ABC", [0, 1, 0, 0, 0, 0, 0, 0]),
        ("A + B * C", "ABC", [0, 1, 0, 1, 0, 1, 1, 1]),
        ("A ^ B * C", "ABC", [0, 0, 0, 0, 0, 1, 1, 0]),  # ^ binds before *
        ("A | B & C", "ABC", [0, 1, 0, 1, 0, 1, 1, 1]),
        ("(!S*A)+(S*B)", "ABS", [0, 1, 0, 1, 0, 0, 1, 1]),
        ("1", "", [1]),
        ("0", "A", [0, 0]),
    ],
)
def test_table_follows_libertys_precedence(text: str, names: str, rows: list[int]) -> None:
    assert table(text, *names) == rows


def test_variable_i_is_bit_i_of_the_row() -> None:
    assert table("A", "A", "B") == [0, 1, 0, 1]
    assert table("A", "B", "A") == [0, 0, 1, 1]


def test_bus_bits_are_names() -> None:
    assert parse_expression("A_ADDR[3] & !A_MEN").names == ("A_ADDR[3]", "A_MEN")


@pytest.mark.parametrize("text", ["", "A +", "(A", "A)", "A ** B", "A $ B", "!", "A==B"])
def test_broken_expression_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="must"):
        parse_expression(text)


def test_unknown_variable_is_refused() -> None:
    with pytest.raises(SpecError, match="'B'"):
        parse_expression("A*B").table(("A",))


_TREES = st.recursive(
    st.sampled_from("ABC"),
    lambda inner: st.tuples(st.just("!"), inner) | st.tuples(st.sampled_from("*+^"), inner, inner),
    max_leaves=12,
)


def _text(tree: object) -> str:
    if isinstance(tree, str):
        return tree
    assert isinstance(tree, tuple)
    if tree[0] == "!":
        return f"!({_text(tree[1])})"
    return f"({_text(tree[1])}) {tree[0]} ({_text(tree[2])})"


def _value(tree: object, row: dict[str, int]) -> int:
    if isinstance(tree, str):
        return row[tree]
    assert isinstance(tree, tuple)
    values = [_value(part, row) for part in tree[1:]]
    if tree[0] == "!":
        return 1 - values[0]
    operators = {"*": int.__and__, "+": int.__or__, "^": int.__xor__}
    return operators[tree[0]](*values)


@given(_TREES)
def test_table_equals_evaluating_the_tree(tree: object) -> None:
    rows = [_value(tree, {"A": r & 1, "B": r >> 1 & 1, "C": r >> 2 & 1}) for r in range(8)]
    assert table(_text(tree), "A", "B", "C") == rows
