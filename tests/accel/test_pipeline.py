"""One step on the machine: closed forms, conservation, bounds."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_machines import make_machine

from kvmmu.accel.designs import baselines
from kvmmu.accel.pipeline.attention import plan_attention
from kvmmu.accel.pipeline.counts import CYCLES, INDEX, WAITS
from kvmmu.accel.pipeline.gemm import plan_gemm
from kvmmu.accel.pipeline.maxplus import COLUMNS, DRAM, MMU, SINGLE, STREAM
from kvmmu.accel.pipeline.program import layer_program
from kvmmu.accel.pipeline.timing import StepTimer, derive_step
from kvmmu.accel.pricing import GROUPS, UNITS, energy_j, make_prices
from kvmmu.accel.request import Request
from kvmmu.accel.simulate import simulate
from kvmmu.accel.workload import LayerRun, Step
from kvmmu.errors import SpecError

FORMS = ("online", "two_pass", "three_pass")


def step_of(queries, live, written, *, num_layers, logits=None):
    logits = tuple(int(q > 0) for q in queries) if logits is None else logits
    return Step(tuple(queries), logits, (LayerRun(num_layers, tuple(live), tuple(written)),))


def decode_step(machine, live, batch=None):
    batch = batch or machine.batch
    ones = (1,) * batch
    rows = (machine.num_tables,) * batch
    return step_of(ones, (live,) * batch, rows, num_layers=machine.model.num_layers)


def count(cost, name):
    return cost.counts[INDEX[name]]


# Closed forms -------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["llama_7b", "opt_125m", "llama_3_8b", "opt_350m"])
@pytest.mark.parametrize("batch", [1, 16])
def test_decode_bytes_equal_the_closed_form(model, batch):
    machine = make_machine(model=model, batch=batch)
    cost = StepTimer(machine).step(decode_step(machine, 511))
    shape = machine.model
    row = 2 * shape.num_kv_heads * shape.head_dim
    # OPT-350M's embedding is narrower than the model: a projection on the way in, one out.
    weights = shape.num_weights_per_step + shape.num_projection_weights
    assert count(cost, "weight_dram_bytes") == weights  # int8; once for the batch
    assert count(cost, "kv_read_dram_bytes") == batch * shape.num_layers * 511 * row
    assert count(cost, "kv_write_dram_bytes") == batch * shape.num_layers * row
    assert count(cost, "kv_read_chunk_dram_bytes") == 0
    assert count(cost, "embedding_dram_bytes") == batch * shape.embedding_size


@pytest.mark.parametrize("model", ["llama_7b", "llama_3_8b", "gpt2"])
def test_decode_macs_equal_the_closed_form(model):
    machine = make_machine(model=model)
    cost = StepTimer(machine).step(decode_step(machine, 511))
    shape = machine.model
    assert count(cost, "gemm_macs") == 16 * shape.num_weights_per_step
    assert count(cost, "attention_macs") == 16 * shape.num_layers * 2 * shape.q_size * 512


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_kv_bits_scale_bytes_read(bits):
    machine = make_machine(kv_bits=bits)
    cost = StepTimer(machine).step(decode_step(machine, 511))
    assert count(cost, "kv_read_dram_bytes") == 16 * 32 * 511 * 8192 * bits / 8


def test_chunk_attends_to_each_earlier_token_of_itself_once():
    machine = make_machine(num_slots=64)
    plan = plan_attention(machine, 32, 64, 32)
    pairs = 32 * 64 + 32 * 33 / 2
    assert plan.counts[INDEX["attention_macs"]] == 2 * machine.model.q_size * pairs


# Conservation -------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    layout=st.sampled_from(["slot", "split", "head"]),
    granularity=st.sampled_from(["layer", "head"]),
    store=st.sampled_from(["dram", "sram"]),
    queries=st.lists(st.sampled_from([0, 1, 1, 5, 64]), min_size=2, max_size=2),
    live=st.lists(st.integers(0, 63), min_size=2, max_size=2),
)
def test_units_work_as_long_as_their_tasks_take(form, layout, granularity, store, queries, live):
    machine = make_machine(
        model="gpt2",
        batch=2,
        num_slots=64,
        form=form,
        layout=layout,
        granularity=granularity,
        overrides={"mmu.store": store},
    )
    if not any(queries):
        queries = [1, 0]
    rows = [min(q, 64) * machine.num_tables for q in queries]
    step = step_of(queries, [n if q else 0 for n, q in zip(live, queries)], rows, num_layers=12)
    cost = StepTimer(machine).step(step)
    busy = [count(cost, name) for name in CYCLES]
    assert cost.serial_cycles == sum(busy)  # the program's tasks, the plans' counts
    assert max(busy) <= cost.overlapped_cycles <= cost.serial_cycles


def test_energy_by_unit_adds_up_to_the_priced_counts():
    machine = make_machine()
    cost = StepTimer(machine).step(decode_step(machine, 511))
    prices = make_prices(machine)
    by_unit = energy_j(prices, cost.counts, cycles=cost.overlapped_cycles)
    seconds = cost.overlapped_cycles / 500e6
    expected = prices.matrix.sum(axis=0) @ cost.counts / 1e12
    expected += seconds * sum(prices.static_w.values())
    assert sum(by_unit.values()) == pytest.approx(expected, rel=1e-12)


def test_every_count_is_priced_or_is_time():
    machine = make_machine()
    prices = make_prices(machine)
    unpriced = {name for name, i in INDEX.items() if not prices.matrix[:, i].any()}
    # Reads by groups of heads are priced by their commands (kv_chunk_*).
    assert unpriced == {*CYCLES, *WAITS, "kv_read_chunk_dram_bytes"}


def test_every_unit_belongs_to_one_group_of_the_sensitivity_study():
    named = [unit for units in GROUPS.values() for unit in units]
    assert len(named) == len(set(named))
    assert set(UNITS) <= set(named)


def test_a_dram_byte_is_priced_as_its_pattern_says():
    machine = make_machine()
    prices = make_prices(machine)
    cost = machine.pattern("weight")
    column = prices.matrix[:, INDEX["weight_dram_bytes"]]
    assert column.sum() == pytest.approx(
        cost.activate_pj_per_byte + cost.column_pj_per_byte + cost.io_pj_per_byte
    )


# Time ---------------------------------------------------------------------------------------


def test_memory_bound_step_takes_the_dram_s_time_and_little_more():
    machine = make_machine()
    cost = StepTimer(machine).step(decode_step(machine, 511))
    assert cost.overlapped_cycles < 1.03 * count(cost, "dram_cycles")


def test_decode_time_is_flat_for_rce_and_linear_for_the_full_cache():
    ours = make_machine()
    full = make_machine(**vars_of(baselines(ours.design, num_tokens=4096)[0]))
    slots = (512,) * 32
    shape = Step((1,) * 16, (1,) * 16, ())
    for machine, grows in ((ours, False), (full, True)):
        timer = StepTimer(machine)
        times = [
            timer.step(
                derive_step(shape, (n,) * 16, machine.design, slots, num_tables=1)
            ).overlapped_cycles
            for n in (1023, 2047, 3071, 4095)
        ]
        steps = np.diff(times)
        if grows:
            assert steps.min() > 0
            assert np.ptp(steps) < 1e-3 * steps.mean()
        else:
            assert (steps == 0).all()


def vars_of(design):
    """Return the fields of a design as make_machine takes them."""
    names = ("name", "title", "keeps", "reads", "has_scores", "share")
    return {name: getattr(design, name) for name in names} | {"form": design.softmax_form}


def test_larger_buffers_and_more_bandwidth_never_slow_a_step():
    base = StepTimer(make_machine()).step(decode_step(make_machine(), 511))
    wide = make_machine(dram="hbm2_256")
    assert StepTimer(wide).step(decode_step(wide, 511)).overlapped_cycles < base.overlapped_cycles
    large = make_machine(overrides={"buffers.kv_kib": 256, "buffers.weight_kib": 256})
    cost = StepTimer(large).step(decode_step(large, 511))
    assert cost.overlapped_cycles <= 1.001 * base.overlapped_cycles


# Products -----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    M=st.integers(1, 5000),
    K=st.sampled_from([64, 768, 4096, 11008]),
    N=st.sampled_from([64, 768, 4096, 22016]),
)
def test_product_moves_no_less_than_each_operand_once(M, K, N):
    machine = make_machine()
    plan = plan_gemm(machine, M, K, N)
    assert plan.counts[INDEX["weight_dram_bytes"]] == plan.weight_passes * K * N
    assert plan.counts[INDEX["gemm_macs"]] == M * K * N
    assert plan.array_cycles * 1024 >= M * K * N  # no faster than all PEs
    spilled = plan.counts[INDEX["activation_dram_bytes"]]
    least = (M * K if not machine.stays(M * K) else 0) + (M * N if not machine.stays(M * N) else 0)
    assert spilled >= least


def test_vectors_that_stay_on_chip_let_weights_pass_once():
    plan = plan_gemm(make_machine(), 16, 4096, 4096)
    assert (plan.loop, plan.weight_passes) == ("inputs", 1)
    assert plan.counts[INDEX["activation_dram_bytes"]] == 0


def test_few_vectors_use_the_array_by_splitting_the_sum():
    machine = make_machine(overrides={"buffers.weight_port_bytes": 64})
    full, half = (plan_gemm(machine, m, 4096, 4096) for m in (32, 16))
    assert full.array_cycles == 32 * 4096 * 4096 // 1024
    assert half.array_cycles == full.array_cycles // 2


# Scores -------------------------------------------------------------------------------------


def test_final_pass_gives_scores_and_an_online_softmax_needs_a_second_look():
    kept = plan_attention(make_machine(form="two_pass"), 1, 511, 1)
    again = plan_attention(make_machine(form="online"), 1, 511, 1)
    assert kept.collects_from == "final pass"
    assert kept.counts[INDEX["collect_exp"]] == 0
    assert again.collects_from == "logits buffer"
    assert again.counts[INDEX["collect_exp"]] == 32 * 512


def test_logits_that_do_not_fit_are_taken_by_groups_of_heads():
    """64 KiB hold 32 heads' logits of 1,024 slots; of 2,048, 16 heads' at a time."""
    whole = plan_attention(make_machine(form="online", num_slots=1024), 1, 1023, 1)
    parts = plan_attention(make_machine(form="online", num_slots=2048), 1, 2047, 1)
    assert (whole.head_group, parts.head_group) == (32, 16)
    assert parts.collects_from == "logits buffer"
    assert parts.counts[INDEX["kv_read_chunk_dram_bytes"]] == 2047 * 8192  # nothing twice
    assert parts.counts[INDEX["collect_macs"]] == 0


def test_logits_of_one_head_that_do_not_fit_are_made_again():
    machine = make_machine(form="online", num_slots=40000)
    plan = plan_attention(machine, 1, 39999, 1)
    assert plan.collects_from == "second product"
    assert plan.counts[INDEX["kv_read_dram_bytes"]] == 1.5 * 39999 * 8192
    assert plan.counts[INDEX["collect_macs"]] == plan.counts[INDEX["attention_macs"]] / 2


def test_tables_in_dram_are_fetched_and_written_back():
    machine = make_machine(overrides={"mmu.store": "dram"})
    plan = plan_attention(machine, 1, 511, 1)
    # Scores of 16 bits, positions of 24, a header of 8 bytes.
    assert plan.counts[INDEX["score_dram_bytes"]] == 2 * (512 * (2 + 3) + 8)
    on_chip = make_machine(overrides={"mmu.store": "sram"})
    assert plan_attention(on_chip, 1, 511, 1).counts[INDEX["score_dram_bytes"]] == 0


@pytest.mark.parametrize("granularity", ["layer", "head"])
def test_a_table_is_in_its_place_before_its_beats(granularity):
    """Out two cycles a row, in one, and the memory's latency: the DRAM's, or the waiting SRAM's."""
    machine = make_machine(granularity=granularity, overrides={"mmu.store": "dram"}, form="online")
    t = machine.dram.timings
    cycles = t.t_rp_cycles + t.t_rcd_rd_cycles + t.t_cl_cycles + t.burst_cycles
    latency = {"layer": ceil(cycles * 500 / t.clock_mhz), "head": 2}[granularity]
    plan = plan_attention(machine, 1, 511, 1)
    assert plan.swap_cycles == 3 * 32 + 6 + latency
    rows = [
        dict(zip(COLUMNS, row))
        for row in layer_program([plan_gemm(machine, 1, 64, 64)] * 4, [plan], [1] * 4).tolist()
    ]
    fetch, swap, *_ = [r for r in rows if r["kind"] == SINGLE and r["unit"] in (DRAM, MMU)]
    assert (fetch["unit"], fetch["a"]) == (DRAM, plan.score_fetch_cycles)
    assert (swap["unit"], swap["a"], swap["wait"]) == (MMU, plan.swap_cycles, fetch["put"])
    beats = next(r for r in rows if r["kind"] == STREAM)
    assert beats["beats"] == plan.mmu_cycles
    assert rows.index(swap) < rows.index(beats)
    on_chip = make_machine(granularity=granularity, overrides={"mmu.store": "sram"})
    assert plan_attention(on_chip, 1, 511, 1).swap_cycles == 0


def test_the_clock_of_the_kv_mmu_runs_as_long_as_the_run():
    request = Request(model="opt_125m", batch=4, prompt=192, generate=64, num_slots=32)
    made = simulate(request, names=("full_8bit",))
    ours, (full,) = made.ours.total, made.others
    pj = ours.machine.chip.mmu.idle_cycle_pj
    clock_j = ours.energy_by_unit_j()["mmu_clock"]
    assert clock_j == pytest.approx(pj * ours.cycles("overlapped") / 1e12)
    assert ours.mmu_energy_j()["mmu_clock"] == clock_j
    assert full.total.energy_by_unit_j()["mmu_clock"] == 0


# Refusals -----------------------------------------------------------------------------------


def test_buffer_too_small_for_a_row_is_refused_by_name():
    with pytest.raises(SpecError, match=r"buffers\.kv_kib of jetcas65 must hold two tiles"):
        make_machine(
            kv_bits=16,
            model="llama_13b",
            overrides={"buffers.kv_kib": 32, "buffers.kv_port_bytes": 16},
        )


def test_accelerator_without_a_kv_mmu_is_refused_by_name():
    spec_without = make_machine().chip.spec.model_copy(update={"mmu": None})
    with pytest.raises(SpecError, match="mmu must be given to run RCE"):
        spec_without.required_mmu()
