"""What was appended survives its writer, whole, and is given to whoever comes next (G5)."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys

import pytest

from iccm_assets.gateway.spool import Spool, SpoolFullError, orphaned_segments, read_segment

MIB = 1 << 20


def all_of(spool: Spool) -> list[dict]:
    return [one for segment in spool.closed_segments() for one in read_segment(segment)]


def test_records_come_back_in_order_and_delivered_segments_go(tmp_path):
    spool = Spool(tmp_path, "a", MIB)
    for number in range(3):
        spool.append({"n": number, "text": "é\n\u2028"})
    [first] = spool.closed_segments()
    spool.append({"n": 3})
    assert [one["n"] for one in all_of(spool)] == [0, 1, 2, 3]
    spool.delete_segment(first)
    assert [one["n"] for one in all_of(spool)] == [3] and not first.exists()
    assert spool.pending_bytes < 60


def test_a_record_cut_short_by_a_kill_is_left_out_and_the_others_are_not(tmp_path):
    spool = Spool(tmp_path, "a", MIB)
    spool.append({"n": 1})
    spool.append({"n": 2})
    [segment] = spool.closed_segments()
    whole = segment.read_bytes()
    for cut in range(len(whole)):
        segment.write_bytes(whole[:cut])
        assert len(list(read_segment(segment))) == (cut >= len(whole) // 2)


def test_damage_in_the_middle_is_reported_and_the_file_is_kept(tmp_path, caplog):
    spool = Spool(tmp_path, "a", MIB)
    for number in range(3):
        spool.append({"n": number})
    [segment] = spool.closed_segments()
    damaged = bytearray(segment.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    segment.write_bytes(damaged)
    assert [one["n"] for one in read_segment(segment)] == [0]
    assert "is corrupt" in caplog.text
    assert segment.with_suffix(".log.damaged").read_bytes() == damaged


def test_a_full_spool_refuses_and_takes_again_once_delivered(tmp_path):
    spool = Spool(tmp_path, "a", 100)
    spool.append({"text": "x" * 60})
    with pytest.raises(SpoolFullError, match="not sent"):
        spool.append({"text": "x" * 60})
    [segment] = spool.closed_segments()
    spool.delete_segment(segment)
    spool.append({"text": "x" * 60})


def test_a_full_disk_refuses_and_leaves_no_half_record_behind(tmp_path):
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
    assert [one["n"] for one in all_of(spool)] == [1, 2]


def test_only_a_dead_process_leaves_orphans_and_an_emptied_directory_goes(tmp_path):
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
            assert [one for segment in segments for one in read_segment(segment)] == [{"n": 1}]
            for segment in segments:
                segment.unlink()
        assert not (tmp_path / "other").exists()
        own.release()
        assert list(tmp_path.iterdir()) == []
    finally:
        other.kill()
        other.wait()
