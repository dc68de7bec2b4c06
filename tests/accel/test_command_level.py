"""A whole decode step, every burst at command level with refresh, against the pipeline's DRAM time.

The pipeline prices traffic by patterns, each simulated alone; here the real sequence of one step,
weights, regions and slot writes of every layer and lane in program order, is served by the
command-level model in one piece.
"""

from __future__ import annotations

import numpy as np
import pytest
from small_machines import make_machine

from kvmmu.accel.dram.requests import simulate_requests
from kvmmu.accel.pipeline.counts import INDEX
from kvmmu.accel.pipeline.timing import StepTimer
from kvmmu.accel.pricing import energy_j, make_prices
from kvmmu.accel.workload import LayerRun, Step


def bursts(begin, size, burst, is_write=False):
    first, last = begin // burst, -(-(begin + size) // burst)
    addresses = np.arange(first, last, dtype=np.int64) * burst
    return addresses, np.full(len(addresses), is_write)


def addresses_of_a_step(machine, *, seed):
    """Return the byte address of each burst of a decode step in program order."""
    rng = np.random.default_rng(seed)
    model, batch, C, row = machine.model, machine.batch, machine.design.num_slots, machine.row_bytes
    parts = model.num_weights_per_layer
    layer_weights = sum(parts.values())
    kv_base = -(-model.num_weights_per_step // (1 << 20)) * (1 << 20)
    burst, made = machine.dram.burst_bytes, []
    for layer in range(model.num_layers):
        base = layer * layer_weights
        made.append(bursts(base, parts["qkv"], burst))
        for lane in range(batch):
            region = kv_base + (lane * model.num_layers + layer) * C * row
            if machine.design.softmax_form == "online":
                made.append(bursts(region, (C - 1) * row, burst))
            else:  # K of every slot, then V of every slot
                halves = [(half, slot) for half in (0, 1) for slot in range(C - 1)]
                made += [
                    bursts(region + slot * row + half * row // 2, row // 2, burst)
                    for half, slot in halves
                ]
            made.append(bursts(region + int(rng.integers(C)) * row, row, burst, is_write=True))
        made.append(bursts(base + parts["qkv"], layer_weights - parts["qkv"], burst))
    made.append(bursts(model.num_layers * layer_weights, model.num_lm_head_weights, burst))
    return tuple(np.concatenate(x) for x in zip(*made))


@pytest.mark.parametrize("form", ["online", "two_pass"])
@pytest.mark.parametrize("dram", ["lpddr4_3200_x64", "ddr4_3200_x64"])
@pytest.mark.parametrize(("model", "batch"), [("kvmmu-ref-4m", 4), ("kvmmu-ref-1m-mha", 16)])
def test_pipeline_s_dram_time_agrees_with_the_command_level(dram, model, batch, form, capsys):
    # Embedding rows and score tables are left out of the sequence, so that both hold the same.
    machine = make_machine(
        model=model, batch=batch, num_slots=512, dram=dram, has_scores=False, form=form
    )
    run = LayerRun(machine.model.num_layers, (511,) * batch, (1,) * batch)
    cost = StepTimer(machine).step(Step((1,) * batch, (1,) * batch, (run,)))
    embedding = machine.dram_cycles("embedding", batch * machine.model.embedding_size)
    priced_ns = (cost.counts[INDEX["dram_cycles"]] - embedding) / 0.5
    addresses, is_write = addresses_of_a_step(machine, seed=1)
    served = simulate_requests(machine.dram, addresses, is_write)
    error = priced_ns / served.time_ns - 1
    with capsys.disabled():
        print(
            f"\n{model} on {dram}, {form}: {error:+.2%} of {served.time_ns / 1e3:.1f} us, "
            f"{served.refreshes} refreshes",
            end="",
        )
    assert served.refreshes > 0
    assert abs(error) < 0.02


def test_pipeline_s_dram_energy_agrees_with_the_command_level():
    machine = make_machine(
        model="kvmmu-ref-4m", batch=4, num_slots=512, has_scores=False, form="online"
    )
    run = LayerRun(machine.model.num_layers, (511,) * 4, (1,) * 4)
    cost = StepTimer(machine).step(Step((1,) * 4, (1,) * 4, (run,)))
    counts = cost.counts.copy()
    counts[INDEX["embedding_dram_bytes"]] = 0
    priced = energy_j(make_prices(machine), counts, cycles=0)
    served = simulate_requests(machine.dram, *addresses_of_a_step(machine, seed=1))
    assert priced["dram_column"] == pytest.approx(served.column_pj / 1e12, rel=0.01)
    assert priced["dram_io"] == pytest.approx(served.io_pj / 1e12, rel=0.01)
    # Activates depend on what lies open between regions, so they agree less well.
    assert priced["dram_activate"] == pytest.approx(served.activate_pj / 1e12, rel=0.15)
