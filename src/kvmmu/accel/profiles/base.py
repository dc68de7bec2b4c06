"""What a profile is: sourced facts, a dataflow by name, published figures, and how it is found.

Contract: a dataflow is pure; it computes from the profile's facts and the workload alone, never
from the published figure. Its parameters are a pydantic model, so that an unknown or missing key
is refused by name. No parameter may be fitted: each has a source or says that it is assumed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kvmmu.errors import SpecError
from kvmmu.registry import Registry, unknown_name
from kvmmu.units import GB

__all__ = [
    "DATAFLOWS",
    "TOLERANCE",
    "Dataflow",
    "DecodeWorkload",
    "Figure",
    "Machine",
    "Profile",
    "Reproduction",
    "Section",
    "StepEstimate",
    "list_profiles",
    "load_profile",
    "parse_profile",
]

TOLERANCE = 0.15  # assumed: beyond it an analytical model says little about a simulated machine


class Section(BaseModel):
    """Be a mapping of facts: unknown keys are refused, and the source is part of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(min_length=8)


class Machine(Section):
    """State what every profile must say of its hardware."""

    num_pes: int = Field(gt=0)
    clock_mhz: float = Field(gt=0)
    bandwidth_gbps: float = Field(gt=0)
    on_chip_bytes: int | None = Field(gt=0)
    memory_bytes: int | None = Field(default=None, gt=0)  # where the source says
    precision_bits: int = Field(gt=0)
    node_nm: int | None = Field(gt=0)


class Figure(Section):
    """State one published figure that the dataflow computes under the same key."""

    what: str = Field(min_length=8)
    published: float
    unit: str = Field(min_length=1)


class _File(BaseModel):
    """Be one file of configs/profiles, its parameters still unread."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    dataflow: str
    machine: Machine
    parameters: dict[str, Any]
    figures: dict[str, Figure]


@dataclass(frozen=True)
class DecodeWorkload:
    """One decode step of a batch: weights are shared, KV and MACs are each lane's."""

    weight_bytes: float
    kv_bytes_per_lane: float
    macs_per_lane: float  # with the weights
    attention_macs_per_lane: float
    batch: int
    context: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 1 if field.name in ("batch", "context") else 0
            if not value >= least:  # NaN too
                raise ValueError(f"{field.name} must be >= {least}, got {value!r}")


@dataclass(frozen=True)
class StepEstimate:
    """What one decode step costs under a dataflow; `dram_bytes` are all bytes read from cells."""

    time_s: float
    dram_bytes: float
    bound: Literal["memory", "compute"]


@dataclass(frozen=True)
class Reproduction:
    """A published figure beside what the dataflow computes for it."""

    profile: str
    what: str
    computed: float
    published: float
    unit: str
    source: str

    @property
    def error(self) -> float:
        """Return the relative error, signed."""
        return self.computed / self.published - 1.0

    def describe(self) -> str:
        """Return one line: what, computed, published, error."""
        return (
            f"{self.profile}: {self.what}: computed {self.computed:.4g} {self.unit}, "
            f"published {self.published:.4g} {self.unit}, error {self.error:+.1%} [{self.source}]"
        )


class Dataflow(ABC):
    """How a machine orders its work: what its paper measured, and one decode step."""

    name: ClassVar[str]
    parameters: ClassVar[type[BaseModel]]

    @abstractmethod
    def figures(self, machine: Machine, parameters: Any) -> dict[str, float]:
        """Return, by key, what the facts give for each figure the file publishes."""

    @abstractmethod
    def decode_step(
        self, machine: Machine, parameters: Any, workload: DecodeWorkload
    ) -> StepEstimate:
        """Return time, bytes and bound of one decode step."""


DATAFLOWS: Registry[Dataflow] = Registry("dataflow", Dataflow, __package__)  # type: ignore[type-abstract]


@dataclass(frozen=True)
class Profile:
    """A published machine with its dataflow; build it with `load_profile`."""

    name: str
    title: str
    dataflow: str
    machine: Machine
    parameters: BaseModel
    figures: Mapping[str, Figure]

    @property
    def num_pes(self) -> int:
        """Return how many MACs a cycle the machine does at most."""
        return self.machine.num_pes

    @property
    def clock_mhz(self) -> float:
        """Return the clock of those PEs."""
        return self.machine.clock_mhz

    @property
    def bandwidth_gbps(self) -> float:
        """Return the bandwidth, in 1e9 bytes a second, that feeds those PEs."""
        return self.machine.bandwidth_gbps

    @property
    def facts(self) -> dict[str, Any]:
        """Return machine and parameters as plain data, sources included."""
        return {"machine": self.machine.model_dump(), **self.parameters.model_dump()}

    @property
    def is_roofline(self) -> bool:
        """Say whether it is no more than a bound: no published figure is met within TOLERANCE."""
        met = any(abs(result.error) <= TOLERANCE for result in self.reproduce())
        return self.dataflow == "roofline" or not met

    @property
    def shown_as(self) -> str:
        """Return the dataflow's name, or "roofline" where nothing published is met."""
        return "roofline" if self.is_roofline else self.dataflow

    def balance(self, batch: int) -> float:
        """Return PEs / (BW * B / f): below 1 a step of int8 weights is compute-bound."""
        if batch < 1:
            raise ValueError(f"batch must be >= 1, got {batch!r}")
        return self.num_pes * self.clock_mhz * 1e6 / (self.bandwidth_gbps * GB * batch)

    def reproduce(self) -> list[Reproduction]:
        """Compute every published figure from the facts, in the file's order."""
        computed = DATAFLOWS.make(self.dataflow).figures(self.machine, self.parameters)
        if computed.keys() != self.figures.keys():
            raise SpecError(
                f"figures of profile {self.name!r} must be those its dataflow computes "
                f"({', '.join(computed)}), got {', '.join(self.figures)}"
            )
        return [
            Reproduction(
                self.name, figure.what, computed[key], figure.published, figure.unit, figure.source
            )
            for key, figure in self.figures.items()
        ]

    def decode_step(self, workload: DecodeWorkload) -> StepEstimate:
        """Estimate one decode step of `workload` under the profile's dataflow."""
        dataflow = DATAFLOWS.make(self.dataflow)
        return dataflow.decode_step(self.machine, self.parameters, workload)


def list_profiles() -> list[str]:
    """List the names of the shipped profiles in alphabetical order."""
    return sorted(path.name.removesuffix(".yaml") for path in _folder().iterdir())


def load_profile(name: str) -> Profile:
    """Return a shipped profile. Raises ValueError that suggests a known name."""
    if name not in list_profiles():
        raise ValueError(unknown_name("profile", name, list_profiles()))
    text = _folder().joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return parse_profile(yaml.safe_load(text), where=f"{name}.yaml")


def parse_profile(content: object, *, where: str) -> Profile:
    """Read a profile from plain data. Raises SpecError that names the wrong key."""
    try:
        file = _File.model_validate(content)
        parameters = DATAFLOWS.get(file.dataflow).parameters.model_validate(file.parameters)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "content"
        raise SpecError(f"{where}: {key}: {first['msg']}, got {first['input']!r}") from error
    except ValueError as error:  # an unknown dataflow
        raise SpecError(f"{where}: {error}") from error
    return Profile(file.name, file.title, file.dataflow, file.machine, parameters, file.figures)


def _folder() -> Traversable:
    return resources.files("kvmmu.accel") / "configs" / "profiles"
