"""The model against Ramulator 2.1 and DRAMsim3 themselves, where they are installed.

Neither tool is on a package index and none of their code is here: what is compared every time are
the golden figures. An installed Ramulator is asked for the timings of its golden case; an installed
DRAMsim3 runs one stream. NOT EXERCISED where the figures of this repository were made: neither tool
was installed there, so these tests have only ever been skipped.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from dram_golden import load_cases, mapping, policy, run, stream

CASES = {case["case_id"]: case for case in load_cases()}


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("ramulator") is None,
    reason="Ramulator 2.1 is not installed (import name `ramulator`); golden figures stand in",
)
def test_installed_ramulator_has_the_timings_of_the_golden_case() -> None:
    import ramulator  # noqa: F401
    from ramulator.dram.ddr4 import DDR4

    timing = CASES["ramulator2-ddr4_3200_8gb_x8-row_bank_bankgroup_column-S1"]["config"]["timing"]
    preset = DDR4.timing_presets["DDR4_3200AA"]
    for theirs, ours in (("nCL", "t_cl"), ("nRCD", "t_rcd"), ("nRAS", "t_ras"), ("nRC", "t_rc")):
        assert preset[theirs] == timing[f"{ours}_cycles"]


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("dramsim3main") is None,
    reason="DRAMsim3 is not installed (program `dramsim3main`); golden figures stand in",
)
def test_installed_dramsim3_serves_a_trace_about_as_fast(tmp_path: Path) -> None:
    """Its driver stops at a fixed cycle: compare the reads done by the model's last cycle, 5 %."""
    config = next(Path(shutil.which("dramsim3main") or "").parent.parent.glob("**/configs"), None)
    stock = config / "DDR4_8Gb_x8_3200.ini" if config else None
    if stock is None or not stock.is_file():
        pytest.skip("DRAMsim3 is installed without its configs folder")
    case = CASES["dramsim3-ddr4_3200_8gb_x8_matched-row_bank_column_bankgroup-S1"]
    addresses, _ = stream(case)
    assert policy(case).per_bank_entries == 8
    assert mapping(case).order[0] == "bankgroup"
    result = run(case)
    ini = re.sub(r"channel_size = \d+", "channel_size = 8192", stock.read_text())
    ini = ini.replace("rochrababgco", "rochrabacobg")
    (tmp_path / "one_rank.ini").write_text(ini)
    lines = (f"{address:#x} READ 0" for address in addresses)
    (tmp_path / "stream.trace").write_text("\n".join(lines) + "\n")
    command = ["dramsim3main", "one_rank.ini", "-c", str(result.cycles), "-t", "stream.trace"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    found = re.search(r"num_reads_done\s*=\s*(\d+)", (tmp_path / "dramsim3.txt").read_text())
    assert found is not None
    assert int(found[1]) == pytest.approx(len(addresses), rel=0.05)
