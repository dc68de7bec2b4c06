"""Where accounting could go wrong: bounds, corners, chunks of one, capacity, ignored settings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import kvmmu
from kvmmu.accel.bounds import attention_bound
from kvmmu.accel.company import context_curve, iso_capacity, sensitivity
from kvmmu.accel.designs import baselines
from kvmmu.accel.dram.energy import command_energy
from kvmmu.accel.pipeline.attention import plan_attention
from kvmmu.accel.pipeline.counts import INDEX
from kvmmu.accel.pricing import GROUPS, UNITS, make_prices
from kvmmu.accel.request import Request
from kvmmu.accel.simulate import simulate
from kvmmu.accel.summary import simulation_json
from kvmmu.accel.workload import RegularRun, read_workload, regular_events, regular_header
from kvmmu.errors import SpecError
from kvmmu.geometry import CacheGeometry
from kvmmu.trace import LaneEvent, TraceWriter

SMALL = Request(model="gpt2", batch=4, prompt=200, generate=56, num_slots=64)


@settings(max_examples=30, deadline=None)
@given(
    model=st.sampled_from(["gpt2", "kvmmu-ref-4m"]),
    batch=st.integers(1, 4),
    prompt=st.integers(1, 300),
    generate=st.integers(1, 60),
    slots=st.sampled_from([16, 64]),
    chunk=st.sampled_from([1, 2, 33, 100]),
    staggered=st.booleans(),
    granularity=st.sampled_from(["layer", "head"]),
)
def test_no_design_moves_less_than_its_lower_bound(
    model, batch, prompt, generate, slots, chunk, staggered, granularity
):
    request = Request(
        model=model,
        batch=batch,
        prompt=prompt,
        generate=generate,
        num_slots=slots,
        chunk=max(chunk, 2) if staggered else chunk,
        is_staggered=staggered,
        granularity=granularity,
    )
    made = simulate(request)
    for result in (made.ours, made.unscored, *made.others):
        bound = attention_bound(result)
        assert bound.compulsory_bytes.keys() == bound.moved_bytes.keys()
        for phase, least in bound.compulsory_bytes.items():
            assert least <= bound.moved_bytes[phase] * (1 + 1e-9), (result.name, phase)
        assert result.total.tokens == made.ours.total.tokens


def test_decode_of_the_full_cache_moves_exactly_its_bound():
    made = simulate(SMALL)
    for name in ("full_8bit", "varying"):
        result = next(o for o in made.others if o.name == name)
        bound = attention_bound(result)
        assert bound.moved_bytes["decode"] == pytest.approx(
            bound.compulsory_bytes["decode"], rel=1e-3
        )


@pytest.mark.parametrize("chunk", [1, 25, 199])
def test_prompt_fed_token_by_token_is_prefill_and_sampled_once(chunk):
    made = simulate(replace(SMALL, chunk=chunk), names=("full_8bit",))
    assert made.ours.phases["decode"].tokens == 4 * 55
    assert made.ours.phases["prefill"].tokens == 4 * 200
    sampled = sum(p.count * sum(p.step.logits) for p in made.workload.segments)
    assert sampled == 4 * 56
    full = made.others[0]
    assert full.phases["decode"].tokens == 4 * 55
    if chunk == 1:  # the full cache is free to take larger chunks, and does
        assert full.chunk > 1
        assert full.phases["prefill"].delay_s() < made.ours.phases["prefill"].delay_s()


def test_a_corner_moves_every_byte_of_a_group_of_heads_too():
    """Sensitivity prices counts anew; simulating at the corner must give the same energy."""
    request = Request(model="gpt2", batch=2, prompt=600, generate=40, num_slots=200, chunk=200)
    made = simulate(request, names=("full_8bit",))
    assert made.ours.total.cost.counts[INDEX["kv_read_chunk_dram_bytes"]] > 0
    low = simulate(replace(request, corner="low"), names=("full_8bit",))
    rows = {row["group"]: row for row in sensitivity(made)}
    moved = low.ours.total.energy_by_unit_j()
    base = made.ours.total.energy_by_unit_j()
    units = GROUPS["DRAM, switching"]
    expected = sum(moved[u] if u in units else value for u, value in base.items())
    assert rows["DRAM, switching"]["low"]["energy_j"] == pytest.approx(expected, rel=1e-9)


def test_context_curve_counts_bytes_read_by_groups_of_heads():
    made = simulate(
        Request(model="llama_7b", batch=1, prompt=4096, generate=4096, num_slots=2048),
        names=("full_8bit",),
    )
    mine = [row for row in context_curve(made) if row["design"] == "rce"]
    assert mine[-1]["kv_read_bytes"] == 32 * 2047 * 8192


def test_iso_capacity_averages_generation_and_fits():
    made = simulate(Request(model="gpt2", batch=4, prompt=512, generate=512, num_slots=128))
    rows = {row["design"]: row for row in iso_capacity(made)}
    assert rows["rce"]["batch"] >= rows["full_8bit"]["batch"]
    full = next(o for o in made.others if o.name == "full_8bit")
    if rows["full_8bit"]["batch"] == made.request.batch:
        rate = full.phases["decode"].tokens / full.phases["decode"].delay_s()
        assert rows["full_8bit"]["tokens_per_s"] == pytest.approx(rate)


def test_iso_capacity_at_the_same_batch_is_the_run_itself(monkeypatch):
    from kvmmu.accel import company

    monkeypatch.setattr(company, "MAX_BATCH", 4)
    made = simulate(Request(model="gpt2", batch=4, prompt=512, generate=512, num_slots=128))
    for row in iso_capacity(made):
        result = made.ours if row["design"] == "rce" else None
        result = result or next(o for o in made.others if o.name == row["design"])
        decode = result.phases["decode"]
        assert row["batch"] == 4
        assert row["tokens_per_s"] == pytest.approx(decode.tokens / decode.delay_s(), rel=1e-3)
        assert row["energy_j_per_token"] == pytest.approx(
            decode.energy_j() / decode.tokens, rel=1e-3
        )


def test_pages_are_taken_as_tokens_come(tmp_path):
    """Three lanes leave after 60 tokens, one runs on: no more than its tokens are ever held."""
    geometry = CacheGeometry(12, 4, 12, 64, (64,) * 12, "int8", 1)
    header = regular_header(
        geometry, granularity="layer", chunk=32, num_sinks=4, window=8, model="gpt2"
    )
    events = list(regular_events(header, RegularRun(32, 29, 32)))[:-1]
    events.append(LaneEvent("release", 100, np.array([1, 2, 3])))
    block = events[-2]
    only = np.array([1, 0, 0, 0])
    for n in range(15):
        events.append(
            replace(
                block,
                steps=block.steps + 200 + 100 * n,
                num_queries=block.num_queries * only,
                slots=np.where(only[None, None, :, None], block.slots, -1),
                evicted=np.where(only[None, None, :, None], block.evicted, -2),
            )
        )
    path = tmp_path / "t.trace"
    with TraceWriter(path, header) as writer:
        for event in events:
            writer.write(event)
    made = simulate(Request(model="gpt2", trace=path))
    sizes = {o.name: o.capacity_bytes for o in made.others}
    row, weights = 12 * 2 * 12 * 64, made.model.num_parameters
    longest = made.workload.longest_lane
    assert longest == 32 + 28 + 15 * 28
    assert sizes["full_8bit"] == weights + 4 * longest * row  # a region for the longest, each
    assert sizes["paged"] <= weights + (longest + 16) * row


def test_dram_faster_than_the_ports_is_said():
    made = simulate(
        Request(model="opt_1.3b", prompt=256, generate=64, batch=4, num_slots=64, dram="hbm2_256"),
        names=("full_8bit",),
    )
    assert made.others[0].phases["decode"].bound == "on-chip ports"


def test_wider_kv_multiplies_dearer():
    made = simulate(SMALL)
    array = {o.kv_bits: o.phases["decode"].machine.chip.attention_mac_pj for o in made.others}
    assert array[4] < array[8] < array[16]


def test_a_kv_mmu_s_logits_buffer_is_not_the_baseline_s():
    made = simulate(replace(SMALL, overrides={"process.sram_flavour": "hp"}), names=("full_8bit",))
    leak = made.others[0].total.energy_by_unit_j()
    assert leak["leak_logits_buffer"] == leak["leak_mmu_logic"] == 0
    mine = made.ours.total.energy_by_unit_j()["leak_logits_buffer"]
    assert made.mmu_share()["with_collection"] > mine / made.ours.total.energy_j()


def test_sums_are_rescaled_once_a_tile_that_a_query_sees():
    from small_machines import make_machine

    machine = make_machine(form="online", has_scores=False)
    plan = plan_attention(machine, 1, 511, 1)
    tiles = -(-511 // 8)  # eight rows of 8 KiB a tile of 64 KiB
    assert plan.counts[INDEX["softmax_mul"]] == 32 * 128 * tiles


def test_json_of_a_simulation_without_baselines_is_whole():
    made = simulate(SMALL, names=())
    assert "decode_kv_bytes" not in simulation_json(made)["reduction"]
    assert simulation_json(made)["reduction"]["compression"] == 4.0


# Nothing is ignored, nothing is guessed -----------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_slots": 0}, "num_slots must be at least 1, got 0"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"kv_bits": 0}, "kv_bits must be at least 2, got 0"),
        ({"kv_bits": 3}, "kv_bits must be one of 2, 4, 8, 16, got 3"),
        ({"kv_bits": 7.5}, "kv_bits must be a whole number, got 7.5"),
        ({"window": -1}, "window must be at least 1, got -1"),
        ({"num_sinks": -4}, "num_sinks must be at least 0, got -4"),
        ({"compression": float("nan")}, "compression must be at least 1, got nan"),
        ({"compression": float("inf")}, "compression must be at least 1, got inf"),
        ({"batch": 1.5}, "batch must be a whole number, got 1.5"),
        ({"batch": "4"}, "batch must be a whole number, got '4'"),
        ({"batch": True}, "batch must be a whole number, got True"),
        ({"is_staggered": True, "chunk": 1}, "chunk must be at least 2 where lanes are staggered"),
        ({"trace": "/no/such.trace"}, "trace must be a file that exists, got '/no/such.trace'"),
    ],
)
def test_wrong_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


@pytest.fixture
def trace(tmp_path):
    geometry = CacheGeometry(12, 4, 12, 64, (64,) * 12, "int8", 1)
    header = regular_header(
        geometry, granularity="layer", chunk=32, num_sinks=4, window=8, model="gpt2"
    )
    path = tmp_path / "t.trace"
    with TraceWriter(path, header) as writer:
        for event in regular_events(header, RegularRun(40, 10, 32)):
            writer.write(event)
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"batch": 2},
        {"chunk": 7},
        {"window": 63},
        {"granularity": "head"},
        {"prompt": 100},
        {"compression": 4.0},
        {"is_staggered": True},
    ],
)
def test_settings_beside_a_trace_are_refused(trace, changes):
    name = next(iter(changes))
    with pytest.raises(SpecError, match=f"{name} must be left to the trace"):
        simulate(Request(model="gpt2", trace=trace, **changes))
    with pytest.raises(ValueError, match=f"{name} must be left to the trace"):
        kvmmu.simulate(model="gpt2", trace=trace, **changes)


def test_settings_that_the_trace_has_are_taken(trace):
    made = simulate(Request(model="gpt2", trace=trace, batch=4, chunk=32, num_slots=64))
    assert (made.request.prompt, made.request.generate) == (40, 9)  # of a lane


def test_public_door_refuses_two_sizes():
    with pytest.raises(ValueError, match="at most one of num_slots and compression"):
        kvmmu.simulate(model="gpt2", num_slots=64, compression=4)


def test_recorded_policy_is_named(tmp_path):
    geometry = CacheGeometry(12, 4, 12, 64, (64,) * 12, "int8", 1)
    header = replace(
        regular_header(
            geometry, granularity="layer", chunk=32, num_sinks=4, window=8, model="gpt2"
        ),
        policy="streaming_llm",
    )
    with TraceWriter(tmp_path / "t.trace", header) as writer:
        for event in regular_events(header, RegularRun(40, 10, 32)):
            writer.write(event)
    made = simulate(Request(model="gpt2", trace=tmp_path / "t.trace"), names=())
    assert made.ours.title == "streaming_llm, 64 slots"


def test_workload_of_a_trace_leaves_prompts_fed_token_by_token_to_decode():
    geometry = CacheGeometry(12, 1, 12, 64, (64,) * 12, "int8", 1)
    header = regular_header(
        geometry, granularity="layer", chunk=1, num_sinks=4, window=8, model="gpt2"
    )
    made = read_workload(header, regular_events(header, RegularRun(20, 5, 1)))
    assert {part.step.phase for part in made.segments} == {"decode"}


def test_baselines_have_distinct_names():
    made = simulate(SMALL)
    designs = baselines(made.ours.total.machine.design, num_tokens=255)
    assert len({design.name for design in designs}) == len(designs)


# What mutations of the code showed to be untested -------------------------------------------


def test_both_serial_compares_serial_with_serial():
    made = simulate(SMALL)
    for other in made.others:
        for scope in ("decode", "end_to_end"):
            theirs, mine = other.scope(scope), made.ours.scope(scope)
            got = made.ratios[other.name][scope]
            assert got["serial"]["delay"] == theirs.delay_s("serial") / mine.delay_s("serial")
            assert got["serial"]["energy"] == theirs.energy_j("serial") / mine.energy_j("serial")
            assert got["baseline_serial"]["delay"] == theirs.delay_s("serial") / mine.delay_s()
            assert got["overlapped"]["delay"] == theirs.delay_s() / mine.delay_s()
            assert theirs.delay_s("serial") > theirs.delay_s()


def test_reads_by_groups_of_heads_cost_activation_columns_and_pins():
    from small_machines import make_machine

    machine = make_machine(form="online", num_slots=2048)
    matrix = make_prices(machine).matrix
    bursts, opened = INDEX["kv_chunk_bursts"], INDEX["kv_chunk_activates"]
    energy = command_energy(machine.dram)
    units = {UNITS[i]: v for i, v in enumerate(matrix[:, bursts]) if v}
    assert units == {"dram_column": energy.read_pj, "dram_io": energy.io_read_pj}
    assert matrix[UNITS.index("dram_activate"), opened] == energy.activate_pj
    plan = plan_attention(machine, 1, 2047, 1)
    assert plan.counts[bursts] == pytest.approx(2047 * 8192 / machine.dram.burst_bytes, rel=0.01)


def test_a_chunk_s_losers_are_searched_for_one_by_one():
    from small_machines import make_machine

    machine = make_machine(num_slots=512)
    plan = plan_attention(machine, 256, 512, 256)
    accumulate = -(-plan.counts[INDEX["mmu_beats"]] // 16)
    scans = 256 * (768 // 16)
    assert plan.mmu_cycles == accumulate + scans + machine.chip.loser_search_cycles(16)
    assert plan.counts[INDEX["mmu_rows"]] == 256 * 768
    assert plan.counts[INDEX["mmu_steps"]] == 256
    assert plan.counts[INDEX["mmu_images"]] == 2 * (768 + 16)  # one table, moved once


@pytest.mark.parametrize(("granularity", "tables"), [("layer", 1), ("head", 32)])
@pytest.mark.parametrize("store", ["sram", "dram"])
def test_score_tables_are_read_written_filled_and_written_back(store, granularity, tables):
    """Whole rows of 16 + 1 + 24 bits a slot; words are written back, one position a table."""
    from small_machines import make_machine

    machine = make_machine(num_slots=500, granularity=granularity, overrides={"mmu.store": store})
    plan = plan_attention(machine, 1, 499, 1)
    slots = tables * 32 * 16  # 500 of them in 32 rows of 16
    # Per head, the tables of two lanes wait in SRAM: into the two that work and out again.
    moves = 0 if store == "sram" else 1 if granularity == "layer" else 3
    header = 0 if store == "dram" else 5 + 24 + 9
    read = slots * 41 + moves * slots * 41 + tables * header
    written = slots * 17 + moves * slots * 41 + tables * (24 + header)
    assert plan.counts[INDEX["score_read_bytes"]] == read / 8
    assert plan.counts[INDEX["score_write_bytes"]] == written / 8
    image = tables * (500 * 5 + 8)
    assert plan.counts[INDEX["score_dram_bytes"]] == (2 * image if store == "dram" else 0)
    beats = 2 * tables * (32 + 1) if store == "dram" else 0  # a header and 32 rows, out and in
    assert plan.counts[INDEX["mmu_images"]] == beats * 16


def test_a_decode_step_of_the_kv_mmu_is_beats_rows_and_one_address_a_table():
    from small_machines import make_machine

    for granularity, tables in (("layer", 1), ("head", 32)):
        machine = make_machine(num_slots=500, granularity=granularity)
        plan = plan_attention(machine, 1, 499, 1)
        assert plan.counts[INDEX["mmu_beats"]] == 32 * 32 * 16  # heads, rows, ways
        assert plan.counts[INDEX["mmu_rows"]] == tables * 32 * 16
        assert plan.counts[INDEX["mmu_steps"]] == tables  # reads are streams: no address each


def test_rows_of_a_chunk_wait_are_read_again_and_moved():
    from small_machines import make_machine

    machine = make_machine(num_slots=512)
    plan = plan_attention(machine, 256, 512, 200)
    row = 8192
    again = 256 * (plan.region_passes - 1) / 2 * row  # earlier rows of the chunk, by later queries
    assert plan.region_passes > 1
    assert plan.counts[INDEX["kv_stage_dram_bytes"]] == 256 * row + again + 200 * row
    plain = make_machine(num_slots=512, has_scores=False)
    assert plan_attention(plain, 256, 512, 200).counts[INDEX["kv_stage_dram_bytes"]] == again


def test_order_of_any_schedule_is_the_published_one():
    """q n d^2 / S elements for each head: n of 64 slots and the chunk's own causal part."""
    made = simulate(SMALL, names=())
    bound = attention_bound(made.ours)
    chip = made.ours.total.machine.chip
    elements = chip.memories["kv"].capacity_bytes + chip.memories["activation"].capacity_bytes
    pairs = sum(
        part.count * run.count * (q * live + q * (q + 1) / 2)
        for part in made.workload.segments
        if part.step.phase == "prefill"
        for run in part.step.runs
        for q, live in zip(part.step.queries, run.live)
    )
    assert bound.order_bytes["prefill"] == pytest.approx(12 * pairs * 64**2 / elements)


@pytest.mark.parametrize(
    ("policy", "scores"),
    [("rce", True), ("h2o", True), ("tova", True), ("streaming_llm", False), ("random", False)],
)
def test_policies_that_rank_by_attention_have_score_hardware(tmp_path, policy, scores):
    geometry = CacheGeometry(12, 1, 12, 64, (64,) * 12, "int8", 1)
    header = replace(
        regular_header(
            geometry, granularity="layer", chunk=32, num_sinks=4, window=8, model="gpt2"
        ),
        policy=policy,
    )
    with TraceWriter(tmp_path / "t.trace", header) as writer:
        for event in regular_events(header, RegularRun(40, 10, 32)):
            writer.write(event)
    made = simulate(Request(model="gpt2", trace=tmp_path / "t.trace"))
    assert (made.ours.total.cost.counts[INDEX["mmu_beats"]] > 0) == scores
    for name in ("irregular", "irregular_head", "varying"):  # they choose by attention regardless
        other = next(o for o in made.others if o.name == name)
        assert other.total.cost.counts[INDEX["mmu_beats"]] > 0
    window = next(o for o in made.others if o.name == "window")
    assert window.total.cost.counts[INDEX["mmu_beats"]] == 0


@pytest.mark.parametrize("corner", ["low", "nominal", "high"])
def test_sensitivity_is_about_nominal_whatever_the_run_s_corner(corner):
    rows = sensitivity(simulate(replace(SMALL, corner=corner), names=("full_8bit",)))
    nominal = simulate(SMALL, names=("full_8bit",))
    for row in rows:
        assert row["nominal"]["energy_j"] == pytest.approx(nominal.ours.total.energy_j())
        assert row["low"]["energy_j"] <= row["nominal"]["energy_j"] <= row["high"]["energy_j"]
    moved = {row["group"]: row["high"]["energy_j"] > row["nominal"]["energy_j"] for row in rows}
    assert all(moved.values()), moved


def test_iso_capacity_leaves_room_for_the_weights():
    made = simulate(Request(model="llama_7b", batch=4, prompt=1024, generate=64, num_slots=512))
    row = next(r for r in iso_capacity(made) if r["design"] == "full_8bit")
    lane = 1087 * 32 * 8192  # the last token generated is never fed back
    room = made.dram.capacity_bytes - made.model.num_parameters
    assert row["batch"] == room // lane


def test_slots_that_no_lane_fills_are_not_there():
    made = simulate(replace(SMALL, num_slots=100_000))
    assert made.request.num_slots == 256
    assert (
        made.ours.capacity_bytes
        < 1.1 * next(o for o in made.others if o.name == "full_8bit").capacity_bytes
    )
    assert "256 slots are simulated of 100000" in made.notes[0]


def test_best_layout_is_no_slower_than_any_other():
    request = Request(model="llama_3_8b", prompt=512, generate=64, num_slots=128, batch=2)
    request = replace(request, dram="ddr4_3200_x64")
    best = simulate(replace(request, layout="best"), names=()).ours.phases["decode"].delay_s()
    for layout in ("slot", "split", "head"):
        other = simulate(replace(request, layout=layout), names=())
        assert best <= other.ours.phases["decode"].delay_s() * 1.002


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"dataflow": "zzz"}, "dataflow must be 'kvmmu' to be simulated, got 'zzz'"),
        ({"array.cols": 0}, "array.cols"),
    ],
)
def test_accelerators_that_cannot_be_simulated_are_refused(overrides, message):
    with pytest.raises(SpecError, match=message):
        simulate(replace(SMALL, overrides=overrides))


def test_all_in_energy_is_refused_by_name(tmp_path):
    from kvmmu.accel.spec.load import load_accelerator

    raw = load_accelerator("jetcas65").model_dump(mode="json", exclude_none=True)
    raw.pop("overheads")
    raw["all_in"] = {
        "pj_per_mac": {"low": 1.0, "nominal": 1.5, "high": 2.0},
        "source": "assumed: for this test",
    }
    path = tmp_path / "all_in.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    with pytest.raises(SpecError, match="energy must be given by parts"):
        simulate(replace(SMALL, accelerator=path))


def test_width_of_logits_is_the_specification_s():
    from small_machines import make_machine

    plans = [
        plan_attention(
            make_machine(form="online", num_slots=512, overrides={"bits.logits": bits}), 1, 511, 1
        )
        for bits in (16, 32)
    ]
    held = [plan.counts[INDEX["logits_write_bytes"]] for plan in plans]
    assert held == [32 * 512 * 2, 32 * 512 * 4]


def test_run_too_long_to_time_is_refused():
    with pytest.raises(ValueError, match="at most 1,048,576 tokens a lane, got 1,000,000,056"):
        replace(SMALL, prompt=10**9)


def test_granularity_of_the_chip_beside_a_trace_is_refused(trace):
    with pytest.raises(SpecError, match=r"mmu\.granularity must be left to the trace"):
        simulate(Request(model="gpt2", trace=trace, overrides={"mmu.granularity": "head"}))


def test_the_grid_takes_the_layout_that_is_fastest_for_rce():
    """Not the one with the larger ratio: the baseline has no say in it."""
    from kvmmu.accel import claim

    made = {lay: claim._price_layout("llama_3_8b", 16, 512, 8.0, lay) for lay in ("slot", "head")}
    delays = {layout: delay for layout, (delay, _) in made.items()}
    taken = claim.price_decode("llama_3_8b", 16, 512)["layout"]
    assert delays[taken] == min(delays.values())
