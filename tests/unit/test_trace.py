"""Does a trace give back what was written, refuse what is damaged, and sum up right?"""

from __future__ import annotations

import dataclasses
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trace_story import CHUNK, SLOTS, Recorder, bare, header, story, write

from kvmmu import trace as tr
from kvmmu.errors import TraceError
from kvmmu.geometry import CacheGeometry
from kvmmu.trace import frames


def assert_equal(found: tr.Event, wrote: tr.Event) -> None:
    assert type(found) is type(wrote)
    for field in dataclasses.fields(wrote):
        left, right = getattr(found, field.name), getattr(wrote, field.name)
        if isinstance(right, np.ndarray):
            assert left.shape == right.shape, field.name
            assert (left == right).all(), field.name
        else:
            assert left == right, field.name


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    events, _ = story(header())
    return write(tmp_path_factory.mktemp("trace") / "a.kvtrace", header(), events, masses=True)


# ---------------------------------------------------------------- round trip


@pytest.mark.parametrize("granularity", ["head", "layer"])
@pytest.mark.parametrize("masses", [True, False])
def test_events_come_back_as_written(tmp_path: Path, granularity: Any, masses: bool) -> None:
    head = header(granularity=granularity)
    events, _ = story(head)
    trace = tr.read(write(tmp_path / "t", head, events, masses=masses))
    assert trace.header == dataclasses.replace(head, has_masses=masses)
    found = list(trace.events(masses=masses))
    assert len(found) == len(events)
    for left, right in zip(found, events):
        assert_equal(left, right if masses else bare(right))
    assert (trace.num_steps, trace.num_chunk_events, trace.num_lane_events) == (15, 6, 5)


def test_masses_are_left_unread_unless_asked_for(recorded: Path) -> None:
    events = list(tr.read(recorded).events())
    assert all(event.masses is None for event in events if not isinstance(event, tr.LaneEvent))


def test_reading_is_lazy(tmp_path: Path, recorded: Path) -> None:
    data = bytearray(recorded.read_bytes())
    last = tr.read(recorded).blocks[-2]
    data[last.offset] ^= 1
    path = tmp_path / "t"
    path.write_bytes(data)
    next(iter(tr.read(path).events()))  # the damage lies further on
    with pytest.raises(TraceError, match=f"checksum of block {last.number} of"):
        tr.read(path).verify()


def test_an_empty_trace_is_a_trace(tmp_path: Path) -> None:
    trace = tr.read(write(tmp_path / "t", header(), [], masses=False))
    assert list(trace.events()) == []
    assert tr.summary(trace).tokens == 0
    assert list(tr.occupancy(trace)) == []


# ---------------------------------------------------------------- writing


def test_the_file_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "t"
    writer = tr.TraceWriter(path, header())
    writer.write(tr.LaneEvent("admit", 0, np.array([0])))
    assert [p.name for p in tmp_path.iterdir()] == ["t.partial"]
    writer.close()
    writer.close()
    assert [p.name for p in tmp_path.iterdir()] == ["t"]
    with pytest.raises(TraceError, match="is closed"):
        writer.write(tr.LaneEvent("admit", 0, np.array([0])))


def test_an_error_while_recording_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyError), tr.TraceWriter(tmp_path / "t", header()):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_header_that_is_not_json_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        tr.TraceWriter(tmp_path / "t", header(policy_parameters={"f": object()}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": np.zeros((12, 2, 3, 1), int)}, r"slots must have shape \[S=12, L=2, B=3, H=2\]"),
        ({"positions": np.zeros((12, 3))}, "positions must be of type int32, got float64"),
        ({"steps": np.full(12, 2**70)}, "steps must be of type int64, got object"),
        ({"positions": np.full((12, 3), 2**40)}, "positions must fit int32"),
        ({"slots": np.full((12, 2, 3, 2), 8)}, r"slots must be in \[-1, 8\), got \[8, 8\]"),
        ({"masses": None}, "masses must be given"),
    ],
)
def test_arrays_that_break_the_schema_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    block = next(e for e in story(header())[0] if isinstance(e, tr.DecodeBlock))
    with tr.TraceWriter(tmp_path / "t", header(), masses=True) as writer:
        with pytest.raises((ValueError, TypeError), match=message):
            writer.write(dataclasses.replace(block, **changes))
        writer.write(block)
    assert tr.read(tmp_path / "t").num_steps == 12  # a refused event leaves no trace


def test_lane_events_have_known_kinds(tmp_path: Path) -> None:
    with tr.TraceWriter(tmp_path / "t", header()) as writer:
        with pytest.raises(ValueError, match=r"kind must be one of admit, .*, got 'evict'"):
            writer.write(tr.LaneEvent("evict", 0, np.array([0])))
        with pytest.raises(ValueError, match="sources must be given for a reorder alone"):
            writer.write(tr.LaneEvent("reorder", 0, np.array([0])))
        with pytest.raises(ValueError, match=r"lanes must be in \[0, 3\), got \[3, 3\]"):
            writer.write(tr.LaneEvent("admit", 0, np.array([3])))


@pytest.mark.parametrize("granularity", ["head", "layer"])
def test_the_size_of_masses_is_known_before_recording(granularity: Any) -> None:
    head = header(granularity=granularity)
    events, _ = story(head)
    size = sum(e.masses.nbytes for e in events if isinstance(e, tr.DecodeBlock))
    assert size == tr.masses_nbytes(head.geometry, 15, granularity=granularity)
    chunks = [e.masses.nbytes for e in events if isinstance(e, tr.ChunkEvent)][:4]
    assert sum(chunks) == tr.masses_nbytes(
        head.geometry, 0, granularity=granularity, num_chunks=2, chunk_size=CHUNK
    )


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 something else", b'{"json": 1}'])
def test_foreign_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=r"t is not a kvmmu trace$"):
        tr.read(path)


def test_another_version_is_refused(tmp_path: Path, recorded: Path) -> None:
    data = bytearray(recorded.read_bytes())
    data[8:12] = struct.pack("<I", 7)
    path = tmp_path / "t"
    path.write_bytes(data)
    with pytest.raises(TraceError, match="written as trace version 7, this reads version 1"):
        tr.read(path)


def test_a_file_cut_at_any_block_border_is_refused(tmp_path: Path, recorded: Path) -> None:
    data, path = recorded.read_bytes(), tmp_path / "t"
    head = frames.HEAD.size + frames.WORD.size
    for block in tr.read(recorded).blocks:
        for cut in (block.offset - head, block.offset, block.offset + block.length - 1):
            path.write_bytes(data[:cut])
            with pytest.raises(TraceError, match=f"ends after block {block.number - 1}: truncated"):
                tr.read(path)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path, recorded: Path) -> None:
    data, path = recorded.read_bytes(), tmp_path / "t"
    cuts = {*range(64), *range(0, len(data), 17), len(data) - 1}
    for cut in cuts:
        path.write_bytes(data[:cut])
        with pytest.raises(TraceError, match=r"truncated$|is not a kvmmu trace$"):
            tr.read(path)


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    head = header()
    recorder = Recorder(head, 1)
    events: list[tr.Event] = [*recorder.chunk(np.ones((3, 2), bool))[:1]]
    events += [recorder.decode(np.ones((1, 3), bool)), recorder.lane("release", [1])]
    source = write(tmp_path / "s", head, events, masses=True)
    data, path = source.read_bytes(), tmp_path / "t"
    seed = 3
    rng = np.random.default_rng(seed)
    reason = r"checksum of .* does not match|truncated|not a kvmmu trace|written as trace version"
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        with pytest.raises(TraceError, match=reason) as caught:
            tr.read(path).verify()
        assert "\n" not in str(caught.value), f"seed {seed}, byte {at}"


def test_bytes_after_the_end_are_refused(tmp_path: Path, recorded: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(recorded.read_bytes() + b"??")
    with pytest.raises(TraceError, match="has 2 bytes after its end block"):
        tr.read(path)


def test_a_missing_block_is_noticed(tmp_path: Path, recorded: Path) -> None:
    data, path = recorded.read_bytes(), tmp_path / "t"
    first, second = tr.read(recorded).blocks[:2]
    head = frames.HEAD.size + frames.WORD.size
    path.write_bytes(data[: first.offset - head] + data[second.offset - head :])
    with pytest.raises(TraceError, match="ends after 22 blocks, says 23"):
        tr.read(path)


def forge(path: Path, recorded: Path, kind: int, payload: bytes) -> Path:
    """A file with right checksums whose first block is wrong."""
    with recorded.open("rb") as source, path.open("wb") as file:
        frames.write_header(file, frames.read_header(source, recorded))
        frames.write_frame(file, kind, payload=payload)
        counts = {"blocks": 1, "decode_steps": 0, "chunks": 0, "lane_events": 0}
        frames.write_frame(file, frames.END, payload=frames.pack(counts, {}))
    return path


@pytest.mark.parametrize(
    ("kind", "payload", "reason"),
    [
        (7, frames.pack({}, {}), "unknown kind 7"),
        (frames.LANE, b"\x01", "unpack_from requires"),
        (frames.LANE, frames.pack({"step": 1}, {}), "missing 2 required"),
        (frames.LANE, frames.pack({}, {}) + b"x", "1 bytes are left over"),
        (
            frames.LANE,
            frames.pack({"step": 1, "kind": "admit"}, {"lanes": np.array([9], np.int32)}),
            r"lanes must be in \[0, 3\)",
        ),
        (frames.LANE, frames.pack({}, {"lanes": np.zeros(1, np.complex64)}), "has type <c8"),
    ],
    ids=["kind", "stub", "field", "excess", "range", "type"],
)
def test_wrong_content_is_refused_with_its_block(
    tmp_path: Path, recorded: Path, kind: int, payload: bytes, reason: str
) -> None:
    trace = tr.read(forge(tmp_path / "t", recorded, kind, payload))
    with pytest.raises(TraceError, match=f"block 1 of .*{reason}"):
        list(trace.events())


def test_masses_that_were_not_recorded_are_refused(tmp_path: Path) -> None:
    trace = tr.read(write(tmp_path / "t", header(), [], masses=False))
    with pytest.raises(TraceError, match="holds no masses; record it with masses=True"):
        tr.replay(trace)


# ---------------------------------------------------------------- occupancy, summary, replay


@pytest.mark.parametrize("granularity", ["head", "layer"])
def test_occupancy_ends_where_the_tables_ended(tmp_path: Path, granularity: Any) -> None:
    head = header(granularity=granularity)
    events, recorder = story(head)
    frames_seen = list(tr.occupancy(tr.read(write(tmp_path / "t", head, events, masses=False))))
    assert [step for step, _ in frames_seen] == list(range(3 + 15))
    last = frames_seen[-1][1]
    for layer, mmu in enumerate(recorder.mmus):
        assert (last[layer, :, :, : SLOTS[layer]] == mmu.positions).all()
        assert (last[layer, :, :, SLOTS[layer] :] == -1).all()


def test_a_trace_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    events, _ = story(header())
    block = next(e for e in events if isinstance(e, tr.DecodeBlock))
    block.evicted[3, 1, 0, 1] += 1
    trace = tr.read(write(tmp_path / "t", header(), events, masses=True))
    with pytest.raises(TraceError, match=r"step 6: the trace evicts position .* from a slot"):
        tr.summary(trace)


def test_the_summary_of_a_small_story_is_counted_by_hand(tmp_path: Path) -> None:
    geometry = CacheGeometry(
        num_layers=1, batch=1, num_kv_heads=2, head_dim=4, slots=(3,), dtype="float16", itemsize=2
    )
    head = header(geometry=geometry, granularity="layer", layer_types=())
    four = np.arange(4)
    chunk = tr.ChunkEvent(  # tokens 0 to 3 come, 1 is never written
        step=0,
        layer=0,
        valid=np.ones((1, 4), bool),
        n_valid=np.array([0]),
        lanes=np.zeros(3, int),
        heads=np.zeros(3, int),
        slots=np.array([0, 1, 2]),
        evicted=np.full(3, -1),
        positions=four[[0, 2, 3]],
        num_dropped=np.array([[1]]),
    )
    decode = tr.DecodeBlock(  # 4 replaces 2, 5 replaces 3, then a pad
        steps=np.array([1, 2, 3]),
        num_queries=np.array([[1], [1], [0]]),
        slots=np.array([1, 2, -1]).reshape(3, 1, 1, 1),
        evicted=np.array([2, 3, -2]).reshape(3, 1, 1, 1),
        positions=np.array([[4], [5], [-1]]),
        n_valid=np.full((3, 1, 1), 3),
    )
    found = tr.summary(tr.read(write(tmp_path / "t", head, [chunk, decode], masses=False)))
    slot_bytes = 2 * 2 * 4 * 2  # K and V, two heads, four numbers of two bytes
    assert found.prefill == tr.PhaseSummary(4, 0, 0, 3 * slot_bytes)
    assert found.decode == tr.PhaseSummary(2, 2, 6 * slot_bytes, 2 * slot_bytes)
    assert (found.tokens, found.evictions, found.evictions_per_layer) == (6, 2, (2,))
    assert (found.num_never_written, found.num_steps, found.num_chunks) == (1, 3, 1)
    assert (found.residence_mean, found.residence_median, found.residence_p90) == (2.0, 2, 2)
    assert (found.peak_valid, found.peak_candidates) == (3, 4)
    assert found.bytes_read_per_token == slot_bytes
    assert found.survivors_by_age == ((0, 1, 1), (1, 2, 1), (2, 4, 0), (4, 8, 1))
    assert json.loads(json.dumps(found.to_json()))["survivors_by_age"][3] == [4, 8, 1]


def test_the_summary_counts_what_the_events_say(recorded: Path) -> None:
    trace = tr.read(recorded)
    found = tr.summary(trace)
    stays: list[int] = []
    for event in trace.events():
        if isinstance(event, tr.DecodeBlock):
            for s, layer, lane, head in np.argwhere(event.evicted >= 0):
                stays.append(event.positions[s, lane] - event.evicted[s, layer, lane, head])
        elif isinstance(event, tr.ChunkEvent):
            for lane, left in zip(event.lanes, event.evicted):
                newest = event.positions[event.lanes == lane].max()
                stays += [newest - left] if left >= 0 else []
    assert found.evictions == len(stays) == sum(found.evictions_per_layer)
    assert found.residence_mean == pytest.approx(np.mean(stays))
    assert found.residence_median == np.percentile(stays, 50, method="inverted_cdf")
    assert found.residence_p90 == np.percentile(stays, 90, method="inverted_cdf")
    writes = sum(
        int((event.slots >= 0).sum())
        for event in trace.events()
        if not isinstance(event, tr.LaneEvent)
    )
    assert found.bytes_written == writes * 2 * 4 * 2  # K and V of one head, 4 numbers, 2 bytes
    assert found.prefill.tokens == 8 + 3 * CHUNK + 9
    assert found.decode.tokens == 12 * 3 - 5 + 3 + 5
    assert found.lane_events == {"admit": 2, "reorder": 1, "merge": 1, "release": 1}
    assert found.peak_valid == max(SLOTS)


@pytest.mark.parametrize("granularity", ["head", "layer"])
@pytest.mark.parametrize("shift", [None, 3])
def test_replay_repeats_every_victim(tmp_path: Path, granularity: Any, shift: int | None) -> None:
    head = header(granularity=granularity, decay_shift=shift)
    events, _ = story(head, seed=5)
    trace = tr.read(write(tmp_path / "t", head, events, masses=True))
    report = tr.replay(trace)
    assert (report.mismatches, report.first_mismatch, report.steps) == (0, None, 15)
    assert report.evictions == tr.summary(trace).evictions
    assert 0 < report.num_distinct_victims < report.evictions
    assert 0 < report.positive_minimum_share <= 1
    assert shift is not None or report.num_rescales > 0


def test_replay_notices_another_slot(tmp_path: Path) -> None:
    events, _ = story(header())
    block = [e for e in events if isinstance(e, tr.DecodeBlock)][-1]
    block.slots[0, 1, 0, 1] ^= 1
    report = tr.replay(tr.read(write(tmp_path / "t", header(), events, masses=True)))
    assert report.mismatches == 1
    assert "step 16 layer 1 lane 0 table 1: replayed slot" in str(report.first_mismatch)


def test_replay_notices_another_chunk_row(tmp_path: Path) -> None:
    events, _ = story(header())
    event = [e for e in events if isinstance(e, tr.ChunkEvent)][-1]
    event.slots[[0, 1]] = event.slots[[1, 0]]
    report = tr.replay(tr.read(write(tmp_path / "t", header(), events, masses=True)))
    assert report.mismatches == 4  # two rows missing, two too many
    assert "chunk at step 2 layer 1: 4 rows differ" in str(report.first_mismatch)


def test_replay_counts_ties(tmp_path: Path) -> None:
    geometry = dataclasses.replace(header().geometry, slots=(3, 4))
    head = header(geometry=geometry, decay_shift=0)  # every score is forgotten at once
    recorder = Recorder(head, 0)
    block = recorder.decode(np.ones((12, 3), bool))
    flat = dataclasses.replace(block, masses=np.zeros_like(block.masses))
    report = tr.replay(tr.read(write(tmp_path / "t", head, [flat], masses=True)))
    # a sink and the newest but one are protected: of 3 slots one can leave, of 4 two tie
    assert report.num_ties == (12 - 4) * 3 * 2
    assert report.positive_minimum_share == 0


def test_the_trace_never_imports_torch() -> None:
    code = "import sys, kvmmu.trace, kvmmu.fixed_point; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_small_blocks_are_compressed_only_where_it_helps(tmp_path: Path) -> None:
    path = tmp_path / "f"
    noise = np.random.default_rng(0).bytes(500)
    for payload, flag in ((noise, 0), (b"\0" * 500, frames.ZLIB)):
        with path.open("wb") as file:
            frames.write_frame(file, frames.END, payload=payload)
        size = path.stat().st_size
        with path.open("rb") as file:
            (frame,) = frames.read_frames(file, path, size=size)
            assert frame.flags == flag
            assert frames.read_payload(file, frame, path=path) == payload
            assert frame.checksum == zlib.crc32(path.read_bytes()[-frame.length :])


def test_writer_refuses_a_folder_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a trace must be a file, got the folder"):
        tr.TraceWriter(tmp_path, header())
    assert list(tmp_path.iterdir()) == []


def test_partial_file_is_discarded_if_it_cannot_get_its_name(tmp_path: Path) -> None:
    writer = tr.TraceWriter(tmp_path / "run.trace", header())
    (tmp_path / "run.trace").mkdir()
    with pytest.raises(OSError, match=r"run\.trace"):
        writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["run.trace"]
    writer.close()
    writer.discard()
