"""Control groups, where this user may make them; else fewer sandboxes at a time. (J3)"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from iccm_assets.cli import machine_checks
from iccm_assets.sandbox import control_groups
from iccm_assets.sandbox.control_groups import ControlGroup, count_workers, create_group, find_parent
from iccm_assets.sandbox.sandbox import Limits, Sandbox
from iccm_assets.settings import load_settings

UNIFIED = Path("/sys/fs/cgroup/unified")  # version 2 beside version 1: it has no controllers, but counts time
GIBIBYTE = 1 << 30


def settings_with(**limits):
    settings = load_settings()
    return settings.model_copy(update={"judge": settings.judge.model_copy(update=limits)})


@pytest.fixture
def hierarchy(tmp_path):
    """A hierarchy as systemd makes it for a user: a slice with limited children, and a scope below it."""
    mount = tmp_path / "cgroup"
    for path, controllers in (("", "cpu"), ("user.slice", "memory pids"), ("user.slice/iccm.scope", "")):
        folder = mount / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup.subtree_control").write_text(controllers, encoding="ascii")
        (folder / "cgroup.procs").write_text("", encoding="ascii")
    process = tmp_path / "self"
    process.mkdir()
    (process / "mountinfo").write_text(f"30 24 0:26 / {mount} rw,nosuid shared:4 - cgroup2 cgroup2 rw\n")
    (process / "cgroup").write_text("12:cpuset:/\n0::/user.slice/iccm.scope\n", encoding="ascii")
    find_parent.cache_clear()
    yield process, mount
    find_parent.cache_clear()


def test_the_nearest_group_with_limited_children_is_the_parent(hierarchy):
    process, mount = hierarchy
    assert find_parent(process) == mount / "user.slice"


def test_without_controllers_a_mount_or_a_group_there_is_no_parent(hierarchy):
    process, mount = hierarchy
    (mount / "user.slice/cgroup.subtree_control").write_text("memory", encoding="ascii")
    assert find_parent(process) is None
    for name, text in (("mountinfo", "30 24 0:26 / /x rw - tmpfs tmpfs rw\n"), ("cgroup", "4:memory:/\n")):
        (process / name).write_text(text, encoding="ascii")
        find_parent.cache_clear()
        assert find_parent(process) is None


def test_groups_of_judges_that_were_killed_are_removed(hierarchy):
    process, mount = hierarchy
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    stale, own = (mount / f"user.slice/iccm-judge-{pid}-0" for pid in (ended.pid, os.getpid()))
    stale.mkdir()
    own.mkdir()
    find_parent(process)
    assert not stale.exists()
    assert own.exists()


def test_a_group_gets_the_limits_and_is_removed(hierarchy, monkeypatch):
    _, mount = hierarchy
    monkeypatch.setattr(control_groups, "find_parent", lambda: mount / "user.slice")
    original = Path.mkdir

    def make(self, *args, **kwargs):  # as the kernel does
        original(self, *args, **kwargs)
        for name in ("memory.max", "pids.max"):
            (self / name).write_text("max", encoding="ascii")

    monkeypatch.setattr(Path, "mkdir", make)
    group = create_group(512 << 20, 64)
    assert group is not None
    assert (group.path / "memory.max").read_text() == str(640 << 20)
    assert (group.path / "pids.max").read_text() == "129"
    for file in group.path.iterdir():
        file.unlink()
    group.remove()
    assert not group.path.exists()


def test_memory_counts_what_cannot_be_reclaimed(tmp_path):
    stat = "anon 100\nfile 5000\nshmem 20\nsock 3\nkernel 50\nslab_reclaimable 10\npagetables 30\n"
    (tmp_path / "memory.stat").write_text(stat, encoding="ascii")
    (tmp_path / "memory.events").write_text("low 0\noom 1\noom_kill 1\n", encoding="ascii")
    (tmp_path / "cpu.stat").write_text("usage_usec 2500000\n", encoding="ascii")
    group = ControlGroup(tmp_path)
    assert group.read_memory() == 163
    assert group.read_cpu() == 2.5
    assert group.was_killed_for_memory()
    assert not ControlGroup(tmp_path / "none").was_killed_for_memory()


@pytest.mark.skipif(not os.access(UNIFIED, os.W_OK), reason="no control groups that this user may make")
def test_a_sandbox_lives_in_its_group_and_leaves_none(monkeypatch):
    monkeypatch.setattr(control_groups, "find_parent", lambda: UNIFIED)
    source = "import os, time\ndef f():\n    if os.fork() == 0:\n        time.sleep(9)\n"
    source += "    time.sleep(0.3)\n    return 1\n"
    with Sandbox.start(load_settings()) as sandbox:
        assert sandbox.running.layers["memory"] == "control group"
        assert sandbox.group.path.exists()
        pids = (sandbox.group.path / "cgroup.procs").read_text().split()
        assert str(sandbox.running.init_process.pid) in pids
        sandbox.load(source)
        assert sandbox.run_case(0, ("call", "f", [], {}), Limits(10, 5, 1000)).kind == "answered"
        assert sandbox.group.read_cpu() > 0
        path = sandbox.group.path
    assert not path.exists()


@pytest.mark.parametrize(
    ("parent", "total", "workers", "count"),
    [
        (None, 24 * GIBIBYTE, 8, 8),
        (None, 4 * GIBIBYTE, 8, 3),
        (Path("/"), 4 * GIBIBYTE, 8, 4),
        (None, GIBIBYTE // 2, 8, 1),
        (None, 24 * GIBIBYTE, 2, 2),
    ],
)
def test_only_as_many_sandboxes_run_as_fit_into_the_memory(monkeypatch, parent, total, workers, count):
    monkeypatch.setattr(control_groups, "find_parent", lambda: parent)
    assert count_workers(settings_with(workers=workers, memory_mib=512), total) == count


def test_the_doctor_names_the_numbers_and_the_fix(monkeypatch):
    monkeypatch.setattr(control_groups, "find_parent", lambda: None)
    memory = type("Memory", (), {"total": 4 * GIBIBYTE})
    monkeypatch.setattr(machine_checks.psutil, "virtual_memory", lambda: memory)
    check = machine_checks.check_judge_memory(settings_with(workers=8, memory_mib=512))
    assert not check.ok
    assert not check.required
    assert "3 of 8 at a time, 1024 MiB each of 4096 MiB; memory is sampled" in check.detail
    assert "Delegate=yes" in check.fix
    assert "ICCM_JUDGE__WORKERS=3" in check.fix
    monkeypatch.setattr(control_groups, "find_parent", lambda: Path("/sys/fs/cgroup"))
    check = machine_checks.check_judge_memory(settings_with(workers=2, memory_mib=512))
    assert check.ok
    assert "limited exactly by control groups in /sys/fs/cgroup" in check.detail
    assert not check.fix
