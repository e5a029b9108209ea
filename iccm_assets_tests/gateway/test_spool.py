"""Appended records survive their writer and are recovered by another process (G5)."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys

import pytest

from iccm_assets.gateway.spool import Spool, SpoolFullError, orphaned_segments, read_segment

MIB = 1 << 20


def read_all(spool: Spool) -> list[dict]:
    return [record for segment in spool.closed_segments() for record in read_segment(segment)]


def test_records_are_read_in_order_and_stored_segments_are_deleted(tmp_path):
    spool = Spool(tmp_path, "a", MIB)
    for number in range(3):
        spool.append({"n": number, "text": "é\n\u2028"})
    [first] = spool.closed_segments()
    spool.append({"n": 3})
    assert [record["n"] for record in read_all(spool)] == [0, 1, 2, 3]
    spool.delete_segment(first)
    assert [record["n"] for record in read_all(spool)] == [3] and not first.exists()
    assert spool.pending_bytes < 60


def test_a_record_truncated_by_a_kill_is_skipped_and_the_others_are_read(tmp_path):
    spool = Spool(tmp_path, "a", MIB)
    spool.append({"n": 1})
    spool.append({"n": 2})
    [segment] = spool.closed_segments()
    whole = segment.read_bytes()
    for cut in range(len(whole)):
        segment.write_bytes(whole[:cut])
        assert len(list(read_segment(segment))) == (cut >= len(whole) // 2)


def test_corruption_in_the_middle_is_reported_and_the_file_is_kept(tmp_path, caplog):
    spool = Spool(tmp_path, "a", MIB)
    for number in range(3):
        spool.append({"n": number})
    [segment] = spool.closed_segments()
    damaged = bytearray(segment.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    segment.write_bytes(damaged)
    assert [record["n"] for record in read_segment(segment)] == [0]
    assert "is corrupt" in caplog.text
    assert segment.with_suffix(".log.damaged").read_bytes() == damaged


def test_a_full_spool_rejects_records_until_a_segment_is_stored(tmp_path):
    spool = Spool(tmp_path, "a", 100)
    spool.append({"text": "x" * 60})
    with pytest.raises(SpoolFullError, match="not sent"):
        spool.append({"text": "x" * 60})
    [segment] = spool.closed_segments()
    spool.delete_segment(segment)
    spool.append({"text": "x" * 60})


def test_a_full_disk_rejects_a_record_and_leaves_no_incomplete_one(tmp_path):
    spool = Spool(tmp_path, "a", MIB)
    spool.append({"n": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (spool.pending_bytes + 20, before[1]))
        with pytest.raises(SpoolFullError):
            spool.append({"text": "x" * 1000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    spool.append({"n": 2})
    assert [record["n"] for record in read_all(spool)] == [1, 2]


def test_only_dead_processes_leave_orphans_and_empty_directories_are_deleted(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from iccm_assets.gateway.spool import Spool\n"
        "spool = Spool(Path(sys.argv[1]), 'other', 1 << 20); spool.append({'n': 1})\n"
        "print('written', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None and other.stdout.readline() == b"written\n"
        own = Spool(tmp_path, "own", MIB)
        assert list(orphaned_segments(tmp_path, own.directory)) == []
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        for directory, segments in orphaned_segments(tmp_path, own.directory):
            assert directory.name == "other"
            assert [record for segment in segments for record in read_segment(segment)] == [{"n": 1}]
            for segment in segments:
                segment.unlink()
        assert not (tmp_path / "other").exists()
        own.release()
        assert list(tmp_path.iterdir()) == []
    finally:
        other.kill()
        other.wait()
