"""Read specification files: every number has a source, every key is known, errors name the file.

Contract: a mapping that directly holds a number, a band or a list with numbers holds `source:`
(text; "assumed: why" is a source). A band is {low, nominal, high} and belongs to the mapping that
holds it. Numbers are never read from text, and a key that stands twice is refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from kvmmu.errors import SpecError

__all__ = [
    "Band",
    "Corner",
    "Source",
    "SpecModel",
    "parse_spec",
    "read_yaml",
    "require_sources",
]

Corner = Literal["low", "nominal", "high"]
_BAND_KEYS = frozenset({"low", "nominal", "high"})


def _told(text: str) -> str:
    if not text.strip() or text.strip().lower().rstrip(":. ") == "assumed":
        raise ValueError(
            f'must say where the numbers come from, got {text!r}; cite it or write "assumed: why"'
        )
    return text


Source = Annotated[str, AfterValidator(_told)]


class SpecModel(BaseModel):
    """Hold checked keys: unknown ones are refused, text is no number, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Band(SpecModel):
    """A figure with its range, low <= nominal <= high, none negative."""

    low: float = Field(ge=0)
    nominal: float = Field(ge=0)
    high: float = Field(ge=0)

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if not self.low <= self.nominal <= self.high:
            raise ValueError(
                f"must be low <= nominal <= high, got {self.low}, {self.nominal}, {self.high}"
            )
        return self

    def at(self, corner: Corner) -> float:
        """Return the figure at a corner."""
        return {"low": self.low, "nominal": self.nominal, "high": self.high}[corner]


class _Loader(yaml.SafeLoader):
    """YAML in which no key stands twice."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Iterator[dict[Any, Any]]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} must stand once, got it twice", key_node.start_mark
            )
        seen.add(key)
    data: dict[Any, Any] = {}
    yield data
    data.update(loader.construct_mapping(node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping a YAML file holds. Raises SpecError that names the file."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise SpecError(f"{path} must be a readable file, got {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} must be YAML, got {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise SpecError(f"{path} must hold a mapping, got {type(raw).__name__}")
    return raw


def _holds_numbers(value: object) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, (int, float)):
        return True
    if isinstance(value, dict):
        return set(value) == _BAND_KEYS and not any(isinstance(v, dict) for v in value.values())
    return isinstance(value, list) and any(_holds_numbers(item) for item in value)


def require_sources(raw: object, file: str, where: str = "") -> None:
    """Refuse a mapping that holds numbers without `source`. Raises SpecError with file and key."""
    if isinstance(raw, list):
        for idx, item in enumerate(raw):
            require_sources(item, file, f"{where}[{idx}]")
    if not isinstance(raw, dict) or (where and _holds_numbers(raw)):  # a band: its owner's source
        return
    numbers = [str(key) for key, value in raw.items() if _holds_numbers(value)]
    source = raw.get("source")
    if numbers and not (isinstance(source, str) and source.strip()):
        raise SpecError(
            f"{file}: {where + '.' if where else ''}source must say where {', '.join(numbers)} "
            f'come from, got {source!r}; cite it or write "assumed: why"'
        )
    for key, value in raw.items():
        require_sources(value, file, f"{where}.{key}" if where else str(key))


M = TypeVar("M", bound=BaseModel)


def parse_spec(model: type[M], raw: dict[str, Any], file: str) -> M:
    """Return the checked specification. Raises SpecError: one line with file, key and rule."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise SpecError(f"{file}: {_worded(model, error)}") from None


def _worded(model: type[BaseModel], error: ValidationError) -> str:
    """Word the first of pydantic's errors as `key must ..., got ...`."""
    errors = error.errors(include_url=False)
    unknown = [e for e in errors if e["type"] == "extra_forbidden"]
    first = (unknown or errors)[0]
    loc = first["loc"]
    key = ".".join(str(part) for part in loc)
    if first["type"] == "extra_forbidden":
        known = _fields_at(model, loc[:-1])
        close = difflib.get_close_matches(str(loc[-1]), known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"unknown key {key!r}{hint} (known: {', '.join(known)})"
    if first["type"] == "missing":
        return f"{key} must be given"
    if first["type"] == "value_error":
        told = first["msg"].removeprefix("Value error, ")
        joint = " " if told.startswith("must") else "."  # else it names a key of its own
        return f"{key}{joint}{told}" if key else told
    return f"{key} must be {first['msg'].removeprefix('Input should be ')}, got {first['input']!r}"


def _fields_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """List the fields of the (nested) model at a location."""
    for part in loc:
        field = model.model_fields.get(str(part))
        inner = _inner_model(field.annotation) if field else None
        model = inner or model  # else an index or a key of a dict: the model stays
    return sorted(model.model_fields)


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_inner_model(inner) for inner in getattr(annotation, "__args__", ()))
    return next((inner for inner in found if inner is not None), None)
