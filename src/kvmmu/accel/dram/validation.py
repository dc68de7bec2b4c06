"""Turn a mapping into a specification; name what is unknown, missing or impossible in it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from kvmmu.errors import SpecError
from kvmmu.registry import unknown_name

__all__ = ["check_keys", "validated"]

_Model = TypeVar("_Model", bound=BaseModel)


def check_keys(names: Iterable[str], known: list[str], *, what: str) -> None:
    """Raise SpecError for the first name that is not known, with the nearest known one."""
    for name in names:
        if name not in known:
            raise SpecError(unknown_name(what, name, known))


def validated(model: type[_Model], data: Any, origin: str) -> _Model:
    """Return `data` as `model`. Raises SpecError with the path of the first thing wrong."""
    if not isinstance(data, dict):
        raise SpecError(f"{origin} must be a mapping, got {type(data).__name__}")
    _refuse_all_in(data.get("energy"), origin)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise SpecError(_message(error, model, origin)) from None


def _refuse_all_in(energy: Any, origin: str) -> None:
    """Refuse an all-in figure beside a split: it would be counted twice."""
    if isinstance(energy, dict):
        for key in energy:
            if "all_in" in str(key) and key != "cross_check_all_in_pj_per_bit":
                raise SpecError(
                    f"{origin}: energy must be a split (core and io), got the all-in {key!r} "
                    "beside it; keep it as cross_check_all_in_pj_per_bit, which is never added"
                )


def _message(error: ValidationError, model: type[BaseModel], origin: str) -> str:
    first = error.errors()[0]
    kinds = ("idd", "per_command")  # pydantic puts the chosen alternative into the path
    place = [part for part in first["loc"] if part not in kinds]
    path = ".".join(str(part) for part in place)
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(place[-1]), sorted(_keys_of(model)), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{origin}: unknown key {path!r}{hint}"
    if first["type"] == "missing":
        return f"{origin}: {path} must be given, got nothing"
    text = first["msg"].removeprefix("Value error, ")
    where = f"{path}: " if path else ""
    shown = "" if isinstance(first["input"], dict | BaseModel) else f", got {first['input']!r}"
    return f"{origin}: {where}{text}{shown if 'got' not in text else ''}"


def _keys_of(model: Any) -> set[str]:
    """Return every key of a model and of the models inside it."""
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return {key for part in get_args(model) for key in _keys_of(part)}
    inner = [field.annotation for field in model.model_fields.values()]
    return set(model.model_fields) | {key for part in inner for key in _keys_of(part)}
