"""Liberty text to a tree of groups and attributes; nothing is dropped or interpreted here."""

from __future__ import annotations

import gzip
import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kvmmu.errors import SpecError

__all__ = ["Group", "parse_groups", "read_text"]

_TOKEN = re.compile(
    r"""(?P<skip>(?:[ \t\r]|\\[ \t]*\r?\n|/\*.*?\*/|//[^\n]*)+)
    |(?P<newline>\n)
    |"(?P<string>(?:[^"\\]|\\.|\\[ \t]*\r?\n)*)"
    |(?P<mark>[(){}:;,])
    |(?P<word>(?:[^\s(){}:;,"\\\[]|\[[^\]\n]*\])+)""",
    re.VERBOSE | re.DOTALL,
)


@dataclass
class Group:
    """Hold one group: its kind, arguments, simple and complex attributes, groups inside.

    A simple attribute `a : b;` is in `values`; `a (b, c);` is in `lists`, which may repeat.
    """

    kind: str
    arguments: tuple[str, ...]
    line: int
    values: dict[str, str] = field(default_factory=dict)
    lists: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The first argument, or ""."""
        return self.arguments[0] if self.arguments else ""

    def children(self, *kinds: str) -> Iterator[Group]:
        """Yield the groups inside of one of these kinds, in the file's order."""
        return (group for group in self.groups if group.kind in kinds)

    def list_of(self, name: str) -> tuple[str, ...] | None:
        """Return the arguments of the last complex attribute of this name."""
        found = [arguments for key, arguments in self.lists if key == name]
        return found[-1] if found else None


def read_text(path: Path) -> str:
    """Read a .lib, .lib.gz or .lib.xz. Raises SpecError if it cannot be read."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8") as file:
                return file.read()
        if path.suffix == ".xz":
            with lzma.open(path, "rt", encoding="utf-8") as file:
                return file.read()
        return path.read_text(encoding="utf-8")
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError) as error:
        raise SpecError(f"liberty must be a readable text file, got {str(path)!r}: {error}") from (
            error
        )


@dataclass(frozen=True)
class _Token:
    kind: str  # "word", "string", "mark", "newline"
    text: str
    line: int


def _tokens(text: str, source: str) -> list[_Token]:
    tokens: list[_Token] = []
    position, line = 0, 1
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise SpecError(
                f"{source} line {line} must be Liberty text, got {text[position : position + 20]!r}"
            )
        kind = str(match.lastgroup)
        if kind != "skip":
            body = match.group(kind)
            if kind == "string":
                body = re.sub(r"\\[ \t]*\r?\n", " ", body)
            tokens.append(_Token(kind, body, line))
        line += match.group().count("\n")
        position = match.end()
    return tokens


class _Parser:
    """Parse statements; a newline ends a simple attribute too, as files lack semicolons."""

    def __init__(self, tokens: list[_Token], source: str) -> None:
        self.tokens = tokens
        self.source = source
        self.position = 0

    def refuse(self, rule: str) -> SpecError:
        last = min(self.position, len(self.tokens) - 1)
        line = self.tokens[last].line if self.tokens else 1
        text = self.tokens[last].text if self.tokens else ""
        return SpecError(f"{self.source} line {line} must {rule}, got {text!r}")

    def skip(self, *, semicolons: bool) -> None:
        while self.position < len(self.tokens):
            token = self.tokens[self.position]
            blank = token.kind == "newline" or (semicolons and _is_mark(token, ";"))
            if not blank:
                return
            self.position += 1

    def take(self) -> _Token:
        if self.position >= len(self.tokens):
            raise self.refuse("close every group")
        self.position += 1
        return self.tokens[self.position - 1]

    def is_mark(self, text: str) -> bool:
        return self.position < len(self.tokens) and _is_mark(self.tokens[self.position], text)

    def body(self, group: Group) -> None:
        while True:
            self.skip(semicolons=True)
            if self.is_mark("}"):
                self.position += 1
                return
            self.statement(group)

    def statement(self, group: Group) -> None:
        head = self.take()
        if head.kind not in ("word", "string"):
            self.position -= 1
            raise self.refuse("start a statement with a name")
        self.skip(semicolons=False)
        if self.is_mark(":"):
            self.position += 1
            self.simple(group, head.text)
        elif self.is_mark("("):
            self.position += 1
            self.complex(group, head)
        else:
            raise self.refuse(f"go on with : or ( after {head.text!r}")

    def simple(self, group: Group, name: str) -> None:
        self.skip(semicolons=False)
        words: list[str] = []
        while self.position < len(self.tokens):
            token = self.tokens[self.position]
            if token.kind == "newline" or _is_mark(token, ";") or _is_mark(token, "}"):
                break
            if token.kind == "mark":
                raise self.refuse(f"end {name!r} with ;")
            words.append(token.text)
            self.position += 1
        if len(words) != 1:
            raise self.refuse(f"give one value to {name!r}, not {len(words)}")
        if group.values.get(name, words[0]) != words[0]:
            raise self.refuse(f"say {name!r} once in a {group.kind}")
        group.values[name] = words[0]

    def complex(self, group: Group, head: _Token) -> None:
        arguments: list[str] = []
        while True:
            self.skip(semicolons=False)
            token = self.take()
            if _is_mark(token, ")"):
                break
            if token.kind == "mark" and token.text != ",":
                self.position -= 1
                raise self.refuse(f"close the ( of {head.text!r}")
            if token.kind != "mark":
                arguments.append(token.text)
        self.skip(semicolons=False)
        if self.is_mark("{"):
            self.position += 1
            inner = Group(head.text, tuple(arguments), head.line)
            group.groups.append(inner)
            self.body(inner)
        else:
            group.lists.append((head.text, tuple(arguments)))


def _is_mark(token: _Token, text: str) -> bool:
    return token.kind == "mark" and token.text == text


def parse_groups(text: str, source: str) -> Group:
    """Parse Liberty text into its library group. Raises SpecError naming source and line."""
    parser = _Parser(_tokens(text, source), source)
    root = Group("file", (), 1)
    parser.skip(semicolons=True)
    while parser.position < len(parser.tokens):
        parser.statement(root)
        parser.skip(semicolons=True)
    libraries = list(root.children("library"))
    if len(libraries) != 1 or len(root.groups) != 1 or root.values or root.lists:
        raise SpecError(f"{source} must hold one library group, got {len(libraries)}")
    return libraries[0]
