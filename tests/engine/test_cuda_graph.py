"""Does a captured step feed its static inputs in place? With a graph that only runs again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine_models import tiny
from torch import Tensor

from kvmmu.engine.cuda_graph import CapturedStep
from kvmmu.engine.engine import Engine
from kvmmu.engine.lane_class import LaneClass
from kvmmu.engine.request import SamplingParams
from kvmmu.engine.step import captured_decode


class Rerun:
    """Do what was captured again, into the tensor that the capture returned."""

    def __init__(self, run: Callable[[], Tensor]) -> None:
        self.run, self.out = run, run()
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        self.out.copy_(self.run())


@pytest.fixture
def captured() -> tuple[CapturedStep, list[Rerun], list[tuple[Tensor, ...]]]:
    """A step of four rows, its graph, and the inputs it was run on."""
    graphs: list[Rerun] = []
    calls: list[tuple[Tensor, ...]] = []

    def step(tokens: Tensor, positions: Tensor, lanes: Tensor) -> Tensor:
        calls.append((tokens, positions, lanes))
        return torch.stack([tokens.float(), positions.float(), lanes.float()], dim=1)

    def capture(run: Any, device: Any) -> tuple[Rerun, Tensor]:
        graphs.append(Rerun(run))
        return graphs[0], graphs[0].out

    return CapturedStep(step, num_rows=4, device="cpu", capture=capture), graphs, calls


def rows(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def test_capture_runs_without_any_lane(captured):
    _, graphs, calls = captured
    assert calls[0][2].tolist() == [-1] * 4
    assert [x.dtype for x in calls[0]] == [torch.int64, torch.int32, torch.int32]
    assert graphs[0].replays == 0


def test_step_sees_the_rows_given_and_no_others(captured):
    step, graphs, _ = captured
    out = step(rows(5, 6, 7, 8), rows(0, 1, 2, 3), rows(3, 2, 1, 0))
    assert out.tolist() == [[5, 0, 3], [6, 1, 2], [7, 2, 1], [8, 3, 0]]
    out = step(rows(9), rows(4), rows(2))
    assert out.tolist() == [[9, 4, 2]]
    assert graphs[0].out[1:, 2].tolist() == [-1, -1, -1]  # rows of the longer step have no lane
    assert graphs[0].replays == 2
    assert step(rows(), rows(), rows()).shape == (0, 3)


def test_static_tensors_never_move(captured):
    step, _, calls = captured
    for i in range(3):
        out = step(rows(i, i), rows(i, i), rows(0, 1))
        assert out.data_ptr() == step(rows(1), rows(1), rows(1)).data_ptr()
    places = {tuple(x.data_ptr() for x in call) for call in calls}
    assert len(places) == 1


def test_wrong_rows_are_refused(captured):
    step, graphs, _ = captured
    with pytest.raises(ValueError, match="rows of a step must be at most 4, got 5"):
        step(*[rows(1, 2, 3, 4, 5)] * 3)
    with pytest.raises(ValueError, match=r"lanes must have shape \(2,\), got \(1,\)"):
        step(rows(1, 2), rows(1, 2), rows(1))
    assert graphs[0].replays == 0
    with pytest.raises(ValueError, match="num_rows must be at least 1, got 0"):
        CapturedStep(lambda *x: x[0], num_rows=0, device="cpu")


def test_output_must_have_the_rows():
    def capture(run: Any, device: Any) -> tuple[Rerun, Tensor]:
        graph = Rerun(run)
        return graph, graph.out

    with pytest.raises(ValueError, match=r"one row per row, 2, got a shape of \(1, 2\)"):
        CapturedStep(lambda t, p, b: t[None], num_rows=2, device="cpu", capture=capture)


def test_a_cpu_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"must be cuda, got 'cpu'; run the step as it is there$"):
        CapturedStep(lambda t, p, b: t, num_rows=2, device="cpu")


@pytest.mark.parametrize("mode", ["fast", "reference"])
def test_engine_that_replays_gives_the_tokens_of_one_that_does_not(mode):
    classes = [LaneClass("a", 12, 3), LaneClass("b", 16, 2, "h2o", granularity="layer")]
    plain, replays = (Engine(tiny(), classes, mode=mode) for _ in range(2))
    assert not plain._loop.captured  # on a CPU nothing is
    graphs: list[Rerun] = []

    def capture(run: Callable[[], Tensor], device: torch.device) -> tuple[Rerun, Tensor]:
        graphs.append(Rerun(run))
        return graphs[-1], graphs[-1].out

    loop = replays._loop
    loop.captured = {
        name: captured_decode(loop.model, pool, capture) for name, pool in loop.pools.items()
    }
    found = []
    for made in (plain, replays):
        for n, name in ((30, "a"), (5, "b"), (9, "a"), (2, "a"), (17, "a"), (6, "b")):
            prompt = torch.randint(50, (n,), generator=torch.Generator().manual_seed(n)).tolist()
            made.add(prompt, SamplingParams(max_new_tokens=n + 3), lane_class=name)
        tokens: dict[str, list[int]] = {}
        while made.has_work:
            for output in made.step():
                tokens.setdefault(output.request_id, []).extend(output.token_ids)
            made.check_integrity()
        found.append(list(tokens.values()))
    assert found[0] == found[1]
    assert all(graph.replays > 5 for graph in graphs)
