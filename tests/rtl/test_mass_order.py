"""On the netlist a step's masses are offered once its own write was taken, and no later one's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth", reason="needs kvmmu[rtl]")
pytest.importorskip("numba", reason="needs kvmmu[rtl]")

from kvmmu.rtl import replay
from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.ports import Op
from kvmmu.rtl.transactions import BlockSettings, Command, LayerSettings
from kvmmu.rtl.verify.stimuli import Item

CONFIG = BlockConfig(slots=4, ways=2, lanes=1, layers=1, position_bits=8)


class _Silent:
    """Stand in for a simulation that is only set up."""

    input_ports = ("rst",)

    def step(self, inputs: dict[str, int]) -> None:
        pass

    def clear_activity(self) -> None:
        pass


class _Offered(Exception):
    """Carry what was offered out of the replay."""


def test_masses_wait_for_the_write_of_their_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(simulation: Any, sources: Any, *_: Any, **__: Any) -> None:
        raise _Offered(sources)

    monkeypatch.setattr(replay, "simulate_streams", look)
    rows = (1, 1, 2, 2)
    beats = (3, 1, 2, 1)  # a row
    steps = [
        Item(Command(Op.STEP), tuple(np.zeros((beat, 2), int) for _ in range(row)))
        for row, beat in zip(rows, beats)
    ]
    settings = BlockSettings((LayerSettings(4),))
    with pytest.raises(_Offered) as caught:
        replay.replay_on_netlist(
            _Silent(),
            CONFIG,
            settings,
            [Item(Command(Op.ADMIT)), *steps],  # type: ignore[arg-type]
        )
    masses = caught.value.args[0]["mass"]
    assert masses.after == "write"
    assert masses.gates.tolist() == [1] * 3 + [2] * 1 + [3] * 4 + [4] * 2
