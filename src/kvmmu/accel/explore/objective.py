"""Price one point of a space: area, delay and energy of a whole run, or why it cannot be.

The full cache is priced on a chip of its own without KV-MMU, its chunk chosen where its prefill is
fastest. Its K and V must fit the DRAM as those of RCE must; only where they fit none of the space's
DRAMs is it priced as if they did, on the DRAMs that hold RCE, and every result says so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

from kvmmu.accel.chip.chip import build_chip
from kvmmu.accel.designs import Design, baselines
from kvmmu.accel.dram.spec import DramSpec, load_dram
from kvmmu.accel.explore.space import Point, Space
from kvmmu.accel.request import Request, our_design, settle
from kvmmu.accel.results import DesignResult, PhaseResult
from kvmmu.accel.runner import Runner
from kvmmu.accel.spec.accelerator import AcceleratorSpec
from kvmmu.accel.spec.load import load_model
from kvmmu.accel.workload import Workload
from kvmmu.errors import CapacityError, SpecError
from kvmmu.units import GB

__all__ = ["OBJECTIVES", "Evaluator", "Outcome", "Refusal"]

OBJECTIVES = {"edp": "edp_js", "delay": "delay_s", "energy": "energy_j"}
"""What may be made least -> the field of Outcome that holds it; all of the whole run."""


class Refusal(Exception):
    """Say in a few words why a point cannot be; equal words are counted together."""


@dataclass(frozen=True)
class Outcome:
    """What a point costs over the whole run, units overlapped. fits: weights, K and V, tables."""

    area_mm2: float
    delay_s: float
    energy_j: float
    decode_delay_s: float
    decode_energy_j: float
    chunk: int
    capacity_bytes: int
    dram_capacity_bytes: int
    fits: bool
    bound: dict[str, str]
    utilisation: dict[str, float]
    area_by_unit_mm2: dict[str, float]

    @property
    def edp_js(self) -> float:
        """Energy times delay."""
        return self.energy_j * self.delay_s

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self) | {"edp_js": self.edp_js}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Outcome:
        """Return what to_json wrote."""
        return cls(**{name: value for name, value in values.items() if name != "edp_js"})


class Evaluator:
    """Price points of a space for one run of one model under one budget."""

    def __init__(self, request: Request, space: Space, area_mm2: float) -> None:
        if not area_mm2 > 0:
            raise ValueError(f"area_mm2 must be above 0, got {area_mm2}")
        self.space, self.area_mm2 = space, area_mm2
        self.model = load_model(request.model)
        self.request = replace(request, trace=None, dram=None)
        self._dram = cache(load_dram)
        self._settled = cache(self._settle)
        self.is_as_if = not self._full_fits_some()

    def evaluate(self, point: Point, kind: str) -> Outcome:
        """Return a point's outcome for "rce" or "full". Raises Refusal."""
        try:
            spec = self.space.specification(point)
            return self._priced(spec, point, kind)
        except SpecError as error:
            raise Refusal(_cause(error)) from error
        except CapacityError as error:
            raise Refusal(str(error)) from error

    def filled(self, point: Point, kind: str, name: str) -> dict[str, Any]:
        """Return the point with one ordered axis at its largest value within the area, if any."""
        axis = next(axis for axis in self.space.axes if axis.name == name)
        least, most = 0, len(axis.values)
        while least < most:  # the area grows with the rank: the first that is too large
            middle = (least + most) // 2
            if self._area(dict(point) | {name: axis.values[middle]}, kind) <= self.area_mm2:
                least = middle + 1
            else:
                most = middle
        return dict(point) | {name: axis.values[max(least - 1, 0)]}

    def full_on(self, point: Point) -> Outcome:
        """Return the full cache on the hardware of an RCE point, its KV-MMU idle."""
        spec = self.space.specification(point)
        return self._run(spec, point, *self._design(spec, point, "full"))

    def original(self, kind: str) -> Outcome:
        """Return the accelerator as it is, with its own ports and DRAM. Raises SpecError."""
        point = self.space.own_point("rce") | {"dram": self.space.spec.dram}
        spec = self.space.spec
        return self._run(spec, point, *self._design(spec, point, kind))

    # One point --------------------------------------------------------------------------------

    def _priced(self, spec: AcceleratorSpec, point: Point, kind: str) -> Outcome:
        """Price within the budget and the DRAM."""
        design, workload, request = self._design(spec, point, kind)
        if kind == "full":
            spec = spec.model_copy(update={"mmu": None})
        if self._least_area(spec, kind) > self.area_mm2:
            raise Refusal("area over the budget")
        made = self._run(spec, point, design, workload, request)
        if made.area_mm2 > self.area_mm2 * (1 + 1e-9):
            raise Refusal("area over the budget")
        needs_to_fit = kind == "rce" or not self.is_as_if
        if not made.fits and needs_to_fit:
            raise Refusal(f"weights and KV over the {_gb(made.dram_capacity_bytes)} of the DRAM")
        if not needs_to_fit and not self._rce_fits(point):
            raise Refusal(f"not even RCE fits the {_gb(made.dram_capacity_bytes)} of the DRAM")
        return made

    def _area(self, point: Point, kind: str) -> float:
        """Return a point's area, score tables included; infinite where it cannot be built."""
        try:
            spec = self.space.specification(point)
            design, workload, request = self._design(spec, point, kind)
            if kind == "full":
                spec = spec.model_copy(update={"mmu": None})
            runner = Runner(request, spec, self._dram(point["dram"]), self.model)
            return runner.machine(design, workload).chip.total_area_mm2
        except SpecError:
            return float("inf")

    def _least_area(self, spec: AcceleratorSpec, kind: str) -> float:
        """Return the chip's area without score tables, before anything is simulated.

        The full cache's chip has no buffer in which logits wait, as Runner builds it.
        """
        chip = build_chip(spec, corner=self.request.corner)
        return (chip.without("logits_buffer") if kind == "full" else chip).total_area_mm2

    def _run(
        self,
        spec: AcceleratorSpec,
        point: Point,
        design: Design,
        workload: Workload,
        request: Request,
    ) -> Outcome:
        dram = self._dram(point["dram"])
        runner = Runner(request, spec, dram, self.model)
        run = runner.design if design.is_ours else runner.baseline
        return _outcome(run(design, workload), dram)

    def _design(
        self, spec: AcceleratorSpec, point: Point, kind: str
    ) -> tuple[Design, Workload, Request]:
        """Return what keeps K and V, and the run, both for a point's slots and widths."""
        slots = point.get("num_slots") or self._least("num_slots")
        workload, request = self._settled(slots, spec.bits.kv)
        request = replace(
            request, layout=spec.layout, softmax_form=point.get("softmax_form", "online")
        )
        ours = our_design(request, spec, workload)
        if kind == "rce":
            return ours, workload, request
        return baselines(ours, num_tokens=workload.longest_lane)[0], workload, request

    def _settle(self, slots: int, kv_bits: int) -> tuple[Workload, Request]:
        request = replace(self.request, num_slots=slots, kv_bits=kv_bits)
        return settle(request, self.model, self.space.spec)

    # What fits --------------------------------------------------------------------------------

    def _least(self, name: str) -> Any:
        return next(axis for axis in self.space.axes if axis.name == name).values[0]

    def _drams(self) -> list[DramSpec]:
        return [self._dram(v) for a in self.space.axes if a.name == "dram" for v in a.values]

    def _bytes(self, tokens: int, weight_bits: int, kv_bits: int) -> float:
        kv = self.request.batch * tokens * self.model.num_kv_per_token * kv_bits
        return (self.model.num_parameters * weight_bits + kv) / 8

    def _full_fits_some(self) -> bool:
        tokens = self.request.prompt + self.request.generate
        least = self._bytes(tokens, self._least("weight_bits"), self._least("kv_bits"))
        return any(least <= dram.capacity_bytes for dram in self._drams())

    def _rce_fits(self, point: Point) -> bool:
        need = self._bytes(self._least("num_slots"), point["weight_bits"], point["kv_bits"])
        return need <= self._dram(point["dram"]).capacity_bytes


def _outcome(result: DesignResult, dram: DramSpec) -> Outcome:
    whole = result.total
    decode: PhaseResult = result.phases.get("decode", whole)
    chip = whole.machine.chip
    return Outcome(
        area_mm2=chip.total_area_mm2,
        delay_s=whole.delay_s(),
        energy_j=whole.energy_j(),
        decode_delay_s=decode.delay_s(),
        decode_energy_j=decode.energy_j(),
        chunk=result.chunk,
        capacity_bytes=result.capacity_bytes,
        dram_capacity_bytes=dram.capacity_bytes,
        fits=result.fits,
        bound={name: part.bound for name, part in result.phases.items()},
        utilisation=whole.utilisation,
        area_by_unit_mm2=dict(chip.area_mm2),
    )


def _cause(error: SpecError) -> str:
    """Return what an error is about, without its figures and the name of the accelerator."""
    return str(error).split(" must", 1)[0].split(": ")[-1].split(" of ")[0]


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / GB:.1f} GB"
