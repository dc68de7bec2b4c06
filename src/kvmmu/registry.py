"""Registries of exchangeable parts: one file each, found by listing a package, named on a typo.

Contract: a part registers under a lower-case key with the decorator; `get` imports the
package's modules once, then third-party entry points of the same name as the group; looking
a part up has no other effect. A key is registered once: a second registration is an error, and
the names of the package's own modules are taken before they are imported. An entry point that
cannot be loaded is skipped with a warning, so that one broken package does not break the others.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import re
import warnings
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Generic, TypeVar

__all__ = ["Registry", "unknown_name"]

T = TypeVar("T")

_KEY = re.compile(r"[a-z][a-z0-9_]*\Z")


def unknown_name(kind: str, name: object, known: list[str]) -> str:
    """Word the error for a name that is not registered, with the nearest known one."""
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {name!r}{hint} (known: {', '.join(known)})"


class Registry(Generic[T]):
    """Map names to classes of one kind, each of them one file of `package`."""

    def __init__(self, kind: str, base: type[T], package: str, *, group: str | None = None) -> None:
        self.kind = kind
        self._base = base
        self._package = package
        self._group = group
        self._items: dict[str, type[T]] = {}
        self._is_loaded = False

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Return a decorator that files a class under `name`.

        Raises ValueError if the name is not lower case with underscores, or is taken, TypeError
        for what is no subclass of the kind's abstract class.
        """
        if not _KEY.match(name):
            raise ValueError(f"{self.kind} name must match [a-z][a-z0-9_]*, got {name!r}")

        def file(item: type[T]) -> type[T]:
            if not (isinstance(item, type) and issubclass(item, self._base)):
                raise TypeError(
                    f"{self.kind} {name!r} must be a subclass of {self._base.__name__}, "
                    f"got {item!r}"
                )
            taken: object = self._items.get(name)
            if taken is None and not item.__module__.startswith(f"{self._package}."):
                taken = importlib.util.find_spec(f"{self._package}.{name}")
            if taken is not None and _place(taken) != _place(item):
                raise ValueError(f"{self.kind} name must be new, got {name!r}; it is {taken!r}")
            self._items[name] = item
            item.name = name  # type: ignore[attr-defined]
            return item

        return file

    def get(self, name: str) -> type[T]:
        """Return the class filed under `name`. Raises ValueError that suggests a known name."""
        self._load()
        if name not in self._items:
            raise ValueError(unknown_name(self.kind, name, self.names()))
        return self._items[name]

    def make(self, item: str | T) -> T:
        """Return an instance: of the class filed under a name, or the instance itself.

        Raises ValueError for an unknown name, TypeError for anything else unregistered.
        """
        if isinstance(item, str):
            return self.get(item)()
        if not isinstance(item, self._base) or "name" not in vars(type(item)):
            raise TypeError(
                f"{self.kind} must be a name or a registered {self._base.__name__}, got {item!r}"
            )
        return item

    def names(self) -> list[str]:
        """List the registered names in alphabetical order."""
        self._load()
        return sorted(self._items)

    def _load(self) -> None:
        if self._is_loaded:
            return
        self._is_loaded = True  # first: a module that is being imported may ask for names
        try:
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self._package}.{module.name}")
        except BaseException:
            self._is_loaded = False
            raise
        if self._group is None:
            return
        for point in entry_points(group=self._group):
            try:
                self.register(point.name)(point.load())
            except Exception as error:
                warnings.warn(
                    f"skipped {self.kind} {point.name!r} of the entry point {point.value!r}: "
                    f"{type(error).__name__}: {error}",
                    RuntimeWarning,
                    stacklevel=3,
                )


def _place(item: object) -> tuple[str, str]:
    """Name where a class is written, so that a module imported again replaces its own."""
    return getattr(item, "__module__", ""), getattr(item, "__qualname__", "")
