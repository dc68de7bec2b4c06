"""Do registries find every part, name the nearest on a typo, and refuse a name twice?"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import kvmmu
from kvmmu import registry as registry_module
from kvmmu.budgets.base import BUDGETS
from kvmmu.codecs.base import CODECS
from kvmmu.policies.base import NEEDS, POLICIES, Policy
from kvmmu.policies.h2o import H2O
from kvmmu.policies.rce import RCE
from kvmmu.policies.snapkv import SnapKV
from kvmmu.policies.tova import TOVA
from kvmmu.registry import Registry, unknown_name

REGISTRIES = {"policy": POLICIES, "budget": BUDGETS, "codec": CODECS}
PARTS = [
    pytest.param(registry, name, id=f"{kind}-{name}")
    for kind, registry in REGISTRIES.items()
    for name in registry.names()
]


@dataclass(frozen=True)
class Mine(Policy):
    """A third party's policy."""

    def priority(self, view: Any) -> Any:
        """Rank nobody."""
        return view.scores


@pytest.fixture
def fresh() -> Registry[Policy]:
    """A registry of policies that has found nothing yet; kvmmu's own are registered elsewhere."""
    return Registry("policy", Policy, "kvmmu.policies", group="kvmmu.policies")


# Discovery --------------------------------------------------------------------------------------


def test_issue_2_policies_are_registered():
    known = {"rce", "h2o", "streaming_llm", "tova", "keydiff", "novelty", "random", "snapkv"}
    assert known <= set(POLICIES.names())
    assert "uniform" in BUDGETS.names()
    assert "plain" in CODECS.names()


@pytest.mark.parametrize("registry", REGISTRIES.values(), ids=REGISTRIES.keys())
def test_names_are_sorted_and_one_file_each(registry):
    assert registry.names() == sorted(registry.names())
    folder = Path(sys.modules[registry._package].__file__ or "").parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "base"}
    assert files == set(registry.names())


@pytest.mark.parametrize(("registry", "name"), PARTS)
def test_part_is_a_frozen_dataclass_that_knows_its_name(registry, name):
    part = registry.get(name)
    assert part.name == name
    assert is_dataclass(part)
    assert part.__dataclass_params__.frozen
    assert part.__module__.rpartition(".")[2] == name
    assert part() == registry.make(name)


def test_list_policies_is_the_registry():
    assert kvmmu.list_policies() == POLICIES.names()


# Parameters and documents -----------------------------------------------------------------------


def rebuilt(registry: Any, name: str, params: dict[str, Any]) -> Any:
    """Make a part from plain JSON values, the parts inside it first."""
    made = {
        key: rebuilt(registry, value.pop("name"), value) if isinstance(value, dict) else value
        for key, value in params.items()
    }
    return registry.get(name)(**made)


@pytest.mark.parametrize(("registry", "name"), PARTS)
def test_parameters_survive_json(registry, name):
    part = registry.make(name)
    params = json.loads(json.dumps(part.params()))
    assert params.keys() == {field.name for field in fields(part)}
    again = rebuilt(registry, name, params)
    assert again.params() == part.params()


@pytest.mark.parametrize(
    "policy",
    [
        RCE(decay=0.9375, normalize="none", fixed_point=True),
        SnapKV(then=RCE(decay=0.5), observation_window=7, kernel_size=3, pooling="max"),
        SnapKV(then="tova"),
        SnapKV(then=H2O()).bind(num_slots=64, num_sinks=4, window=8),
    ],
    ids=repr,
)
def test_parameters_survive_json_with_the_policy_inside(policy):
    params = json.loads(json.dumps(policy.params()))
    again = rebuilt(POLICIES, policy.name, params)
    assert type(again) is type(policy)
    assert again.params() == policy.params()


@pytest.mark.parametrize("name", POLICIES.names())
def test_policy_declares_what_it_needs_and_keeps(name):
    policy = POLICIES.make(name)
    assert policy.needs <= set(NEEDS)
    assert policy.kind in ("step", "selector")
    assert policy.ops_per_slot >= 1
    assert 0 < policy.query_decay <= 1
    assert policy.num_last >= 1
    assert all(spec.per in ("slot", "head", "vector") for spec in policy.state.values())


@pytest.mark.parametrize(("registry", "name"), PARTS)
def test_file_opens_with_rule_and_parameters(registry, name):
    text = sys.modules[registry.get(name).__module__].__doc__ or ""
    assert "\nRule: " in text
    assert "\nParameters: " in text or "\nParameters:\n" in text


@pytest.mark.parametrize("name", POLICIES.names())
def test_policy_file_opens_with_its_paper_and_what_differs(name):
    text = sys.modules[POLICIES.get(name).__module__].__doc__ or ""
    title, rest = text.split("\n", 1)
    assert "arXiv:" in title or "doi " in title or name == "random"  # random has no paper
    order = [
        rest.index(word) for word in ("\nRule: ", "\nParameters:", "\nDiffers from the paper: ")
    ]
    assert order == sorted(order)


@pytest.mark.parametrize("name", POLICIES.names())
def test_policy_file_names_every_parameter_with_its_default(name):
    policy = POLICIES.make(name)
    text = sys.modules[type(policy).__module__].__doc__ or ""
    for field in fields(policy):
        default = json.dumps(field.default) if isinstance(field.default, str) else field.default
        assert f"{field.name} = {default}" in text
    if not fields(policy):
        assert "Parameters: none" in text


# Errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "meant"), [("rec", "rce"), ("snap_kv", "snapkv"), ("streamingllm", "streaming_llm")]
)
def test_typo_is_answered_with_the_nearest_name(wrong, meant):
    known = ", ".join(POLICIES.names())
    with pytest.raises(ValueError) as error:
        POLICIES.get(wrong)
    message = f"unknown policy {wrong!r}; did you mean {meant!r}? (known: {known})"
    assert str(error.value) == message


def test_name_like_no_other_is_answered_with_all():
    assert unknown_name("policy", "zzz", ["a", "b"]) == "unknown policy 'zzz' (known: a, b)"


@pytest.mark.parametrize("bad", ["RCE", "snap-kv", "", "2fast", "a b", "rce\n"])
def test_name_must_be_lower_case_with_underscores(fresh, bad):
    with pytest.raises(ValueError, match="policy name must match"):
        fresh.register(bad)


def test_name_is_registered_once(fresh):
    fresh.register("mine")(Mine)
    assert fresh.get("mine") is Mine
    other = type("Other", (Mine,), {"__module__": __name__})
    with pytest.raises(ValueError, match="policy name must be new, got 'mine'; it is <class"):
        fresh.register("mine")(other)
    assert fresh.get("mine") is Mine


def test_class_of_the_same_name_elsewhere_is_another_class(fresh):
    fresh.register("mine")(Mine)
    twin = type("Mine", (Policy,), {"__module__": "elsewhere", "priority": Mine.priority})
    with pytest.raises(ValueError, match="name must be new"):
        fresh.register("mine")(twin)


def test_module_imported_again_registers_its_class_again(fresh):
    fresh.register("mine")(Mine)
    again = type("Mine", (Policy,), {"__module__": __name__, "priority": Mine.priority})
    fresh.register("mine")(again)
    assert fresh.get("mine") is again


def test_own_names_are_taken_before_they_are_imported(fresh):
    with pytest.raises(ValueError, match="policy name must be new, got 'h2o'"):
        fresh.register("h2o")(Mine)  # nothing has been looked up yet
    with pytest.raises(ValueError, match="name must be new"):
        kvmmu.register("h2o")(Mine)
    assert POLICIES.get("h2o") is H2O


def test_only_a_subclass_is_registered(fresh):
    for item in (object, Mine(), len):
        with pytest.raises(TypeError, match="policy 'mine' must be a subclass of Policy, got "):
            fresh.register("mine")(item)


def test_make_takes_a_name_or_a_registered_instance():
    tova = TOVA()
    assert POLICIES.make(tova) is tova
    assert POLICIES.make("tova") == tova
    unregistered = type("Heir", (RCE,), {})()
    for wrong in (3, None, TOVA, {"name": "tova"}, BUDGETS.make("uniform"), unregistered):
        with pytest.raises(TypeError, match="policy must be a name or a registered Policy, got "):
            POLICIES.make(wrong)


# Third parties ----------------------------------------------------------------------------------


def offer(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    """Pretend that installed packages offer these entry points."""

    def found(*, group: str) -> list[EntryPoint]:
        return [point for point in points if point.group == group]

    monkeypatch.setattr(registry_module, "entry_points", found)


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, "kvmmu.policies")


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A third party's module that holds a policy."""
    module = ModuleType("third_party")
    theirs = type("Theirs", (Mine,), {"__module__": "third_party"})
    module.Theirs, module.rubbish = theirs, 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "third_party", module)
    return module


def test_entry_point_is_found(fresh, package, monkeypatch):
    offer(monkeypatch, point("theirs", "third_party:Theirs"))
    assert "theirs" in fresh.names()
    assert fresh.get("theirs") is package.Theirs
    assert fresh.get("theirs").name == "theirs"


@pytest.mark.parametrize(
    "broken",
    [
        point("theirs", "no_such_module:Theirs"),
        point("theirs", "third_party:Missing"),
        point("theirs", "third_party:rubbish"),
        point("rce", "third_party:Theirs"),
        point("Theirs", "third_party:Theirs"),
    ],
    ids=lambda p: f"{p.name}={p.value}",
)
def test_broken_entry_point_is_skipped_by_name(fresh, package, monkeypatch, broken):
    offer(monkeypatch, broken, point("good", "third_party:Theirs"))
    with pytest.warns(RuntimeWarning, match=f"skipped policy '{broken.name}'"):
        names = fresh.names()
    assert names == ["good"]
    assert fresh.names() == names  # and warns no more: warnings are errors here
