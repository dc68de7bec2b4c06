"""Peer profiles: each meets a published figure or is shown as a roofline; numbers have sources."""

from __future__ import annotations

import dataclasses
from importlib import resources

import pytest
import yaml

from kvmmu.accel.profiles import TOLERANCE, DecodeWorkload, list_profiles, load_profile
from kvmmu.accel.profiles.base import parse_profile
from kvmmu.errors import SpecError

PEERS = ["duplex", "fusemax", "h200", "pim_gpt", "spatten"]
FOLDER = resources.files("kvmmu.accel") / "configs" / "profiles"

# LLaMA-7B in int8: 6.6e9 weights; KV of a lane at 2,048 tokens, 2 x 32 layers x 4,096 values.
WORKLOAD = DecodeWorkload(
    weight_bytes=6.6e9,
    kv_bytes_per_lane=2 * 32 * 4096 * 2048.0,
    macs_per_lane=6.6e9,
    attention_macs_per_lane=2 * 32 * 4096 * 2048.0,
    batch=16,
    context=2048,
)


@pytest.fixture(params=PEERS)
def profile(request):
    return load_profile(request.param)


def content(name: str) -> dict:
    return yaml.safe_load(FOLDER.joinpath(f"{name}.yaml").read_text(encoding="utf-8"))


def mappings(value, path=""):
    if isinstance(value, dict):
        yield path, value
        for key, inner in value.items():
            yield from mappings(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from mappings(inner, path)


def holds_numbers(value) -> bool:
    if isinstance(value, list):
        return any(holds_numbers(inner) for inner in value)
    return isinstance(value, int | float)


# ------------------------------------------------------------------------------- the registry
def test_the_peers_are_listed():
    assert list_profiles() == PEERS


def test_unknown_profile_suggests_a_known_one():
    with pytest.raises(ValueError, match=r"unknown profile 'spaten'; did you mean 'spatten'\?"):
        load_profile("spaten")


def test_every_mapping_of_numbers_has_a_source():
    for name in PEERS:
        for path, mapping in mappings(content(name)):
            nested = path.endswith(".encoders")  # (heads, head_dim) by model, sourced one level up
            if any(map(holds_numbers, mapping.values())) and not nested:
                assert len(mapping.get("source", "")) >= 8, f"{name}{path}"


def test_number_without_source_is_refused_by_key():
    broken = content("spatten")
    del broken["parameters"]["pruning"]["source"]
    with pytest.raises(SpecError, match=r"spatten.yaml: pruning\.source: .*required"):
        parse_profile(broken, where="spatten.yaml")


def test_unknown_key_is_refused_by_name():
    broken = content("h200")
    broken["machine"]["boost_mhz"] = 1980
    with pytest.raises(SpecError, match=r"machine\.boost_mhz"):
        parse_profile(broken, where="h200.yaml")


def test_unknown_dataflow_is_refused_by_name():
    with pytest.raises(SpecError, match="unknown dataflow 'fusemix'; did you mean 'fusemax'"):
        parse_profile(content("fusemax") | {"dataflow": "fusemix"}, where="x.yaml")


def test_figure_that_nothing_computes_is_refused():
    extra = content("pim_gpt")
    extra["figures"]["energy"] = extra["figures"]["speedup"]
    with pytest.raises(SpecError, match="must be those its dataflow computes"):
        parse_profile(extra, where="x.yaml").reproduce()


# -------------------------------------------------------------------------- published figures
def test_profile_meets_a_published_figure_or_is_shown_as_roofline(profile):
    results = profile.reproduce()
    assert results
    for result in results:
        print(result.describe())
    met = any(abs(result.error) <= TOLERANCE for result in results)
    assert met or profile.shown_as == "roofline"


def test_which_profiles_are_rooflines():
    shown = {name: load_profile(name).shown_as for name in PEERS}
    assert shown == {
        "duplex": "duplex",
        "fusemax": "fusemax",
        "h200": "roofline",
        "pim_gpt": "roofline",
        "spatten": "spatten",
    }


# Own results, pinned when the models were written; the published figures stand in the files.
@pytest.mark.parametrize(
    ("name", "computed"),
    [
        ("spatten", [9.186, 1.088]),
        ("fusemax", [6.622, 7.4025, 0.99096]),
        ("duplex", [2.230, 2.958, 3.150, 1.822, 66.09]),
        ("pim_gpt", [12.8]),
        ("h200", [68.03, 8369.0]),
    ],
)
def test_computed_figures_do_not_drift(name, computed):
    results = load_profile(name).reproduce()
    assert [result.computed for result in results] == pytest.approx(computed, rel=5e-4)


def test_fusemax_latency_is_that_of_the_artifact():
    """Cycles of the same cascade are counted the same way: no tolerance beyond rounding."""
    latency, utilisation = load_profile("fusemax").reproduce()[1:]
    assert latency.error == pytest.approx(0.0, abs=1e-12)
    assert utilisation.error == pytest.approx(0.0, abs=1e-12)


def test_roofline_is_faster_than_what_was_measured():
    for result in load_profile("h200").reproduce():
        assert result.computed > result.published


def test_published_figures_do_not_enter_the_computation(profile):
    doubled = {
        key: figure.model_copy(update={"published": 2 * figure.published})
        for key, figure in profile.figures.items()
    }
    other = dataclasses.replace(profile, figures=doubled)
    for before, after in zip(profile.reproduce(), other.reproduce()):
        assert after.computed == before.computed
        assert after.error == pytest.approx((1 + before.error) / 2 - 1)


# --------------------------------------------------------------------------------- the balance
def test_balance_is_pes_over_bandwidth_times_batch_over_clock(profile):
    expected = profile.num_pes / (profile.bandwidth_gbps * 1e9 * 16 / (profile.clock_mhz * 1e6))
    assert profile.balance(16) == pytest.approx(expected)
    with pytest.raises(ValueError, match="batch must be >= 1, got 0"):
        profile.balance(0)


def test_logic_pim_has_eight_operations_a_byte():
    machine = load_profile("duplex").machine
    flops = 2e6 * machine.num_pes * machine.clock_mhz
    assert flops == pytest.approx(5 * 21.3e12, rel=1e-3)  # 21.3 TFLOPS a stack, section VI
    assert flops / (machine.bandwidth_gbps * 1e9) == pytest.approx(8, rel=0.01)


def test_banks_of_pim_gpt_give_its_bandwidth():
    profile = load_profile("pim_gpt")
    inside_gbps = profile.parameters.banks.bandwidth_gbps(profile.clock_mhz)
    assert inside_gbps == profile.bandwidth_gbps


# ------------------------------------------------------------------------------ one decode step
def test_step_is_not_shorter_than_its_bytes_take(profile):
    step = profile.decode_step(WORKLOAD)
    fastest_gbps = profile.bandwidth_gbps
    assert step.time_s >= step.dram_bytes / (fastest_gbps * 1e9) * (1 - 1e-12)


@pytest.mark.parametrize(
    "field",
    ["weight_bytes", "kv_bytes_per_lane", "macs_per_lane", "attention_macs_per_lane", "batch"],
)
def test_more_work_never_takes_less_time(profile, field):
    more = dataclasses.replace(WORKLOAD, **{field: 64 * getattr(WORKLOAD, field)})
    before, after = profile.decode_step(WORKLOAD), profile.decode_step(more)
    assert after.time_s >= before.time_s
    assert after.dram_bytes >= before.dram_bytes


def test_each_dataflow_counts_its_own_bytes():
    weights, kv = WORKLOAD.weight_bytes, WORKLOAD.batch * WORKLOAD.kv_bytes_per_lane
    read = {name: load_profile(name).decode_step(WORKLOAD).dram_bytes for name in PEERS}
    assert read["h200"] == read["fusemax"] == read["duplex"] == weights + kv
    assert read["spatten"] == pytest.approx(weights + kv / (3.8 * 1.1))  # tokens, heads
    assert read["pim_gpt"] == 16 * weights + kv  # a read serves one vector


def test_memory_bound_step_of_the_h200_is_bytes_over_bandwidth():
    step = load_profile("h200").decode_step(dataclasses.replace(WORKLOAD, batch=1))
    assert step.bound == "memory"
    assert step.time_s == pytest.approx((6.6e9 + 2 * 32 * 4096 * 2048) / 4.8e12)


def test_dense_prefill_like_batch_is_compute_bound_on_the_h200():
    many = dataclasses.replace(WORKLOAD, batch=100_000, kv_bytes_per_lane=0.0)
    assert load_profile("h200").decode_step(many).bound == "compute"


def test_duplex_runs_attention_at_four_times_the_bandwidth():
    profile = load_profile("duplex")
    few = profile.decode_step(WORKLOAD)
    more = profile.decode_step(
        dataclasses.replace(WORKLOAD, kv_bytes_per_lane=2 * WORKLOAD.kv_bytes_per_lane)
    )
    extra_bytes = more.dram_bytes - few.dram_bytes
    assert more.time_s - few.time_s == pytest.approx(extra_bytes / (4 * 3.352e12))


def test_wide_groups_make_logic_pim_compute_bound():
    """Beyond 4 MACs a byte, attention takes its MACs over 81,920 at 650 MHz."""
    wide = dataclasses.replace(
        WORKLOAD, weight_bytes=0.0, macs_per_lane=0.0, attention_macs_per_lane=1e12, batch=1
    )
    step = load_profile("duplex").decode_step(wide)
    assert step.bound == "compute"
    assert step.time_s == pytest.approx(1e12 / (81920 * 650e6))


def test_one_query_a_head_leaves_fusemax_one_column():
    lone = dataclasses.replace(WORKLOAD, weight_bytes=0.0, macs_per_lane=0.0, kv_bytes_per_lane=0.0)
    step = load_profile("fusemax").decode_step(lone)
    macs = WORKLOAD.batch * WORKLOAD.attention_macs_per_lane
    assert step.bound == "compute"
    assert step.time_s > macs / (256 * 940e6)  # one column of 256 PEs, before exponentials


@pytest.mark.parametrize(("field", "value"), [("batch", 0), ("context", 0), ("weight_bytes", -1.0)])
def test_impossible_workload_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"{field} must be >= [01], got {value}"):
        dataclasses.replace(WORKLOAD, **{field: value})
