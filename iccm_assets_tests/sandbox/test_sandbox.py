"""The sandbox itself: its layers, what happens when a layer is missing, who may start it, what it leaves."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import iccm_assets
from iccm_assets.errors import SandboxUnavailableError
from iccm_assets.sandbox import bubblewrap, launcher, seccomp, warm_pool
from iccm_assets.sandbox.sandbox import Limits, Sandbox
from iccm_assets.settings import load_settings
from iccm_assets.suites.suite_runner import check_sandbox, run_suite
from iccm_assets.suites.test_suites import parse_suite
from iccm_assets_tests.factories.host_probe import assert_unchanged, snapshot
from iccm_assets_tests.factories.implementations import PLAIN, SUITE

LIMITS = Limits(wall=10, cpu=5, output=1 << 20)
ROOT = os.geteuid() == 0


@pytest.fixture(scope="module")
def settings():
    return load_settings()


# ---- layers ----------------------------------------------------------------------------------------


def test_every_layer_is_present_and_inspected(settings):
    layers = check_sandbox(settings)
    assert layers.keys() == {"bubblewrap", "namespaces", "seccomp", "uid", "filesystem", "memory", "rlimits"}
    assert not [state for state in layers.values() if state.startswith("missing")]
    if ROOT:
        assert "(0)" not in layers["uid"]


def without(command, *options):
    """Remove these options and their values from a command line."""
    command, rest = list(command), list(options)
    while rest:
        option, count = rest.pop(0), rest.pop(0)
        position = len(command) - 1 - command[::-1].index(option)
        del command[position : position + count]
    return command


def replaced(*options):
    original = bubblewrap.build_command
    return lambda *args, **kwargs: without(original(*args, **kwargs), *options)


def with_more(*options):
    original = bubblewrap.build_command

    def command(*args, **kwargs):
        words = original(*args, **kwargs)
        position = len(words) - 1 - words[::-1].index("--remount-ro")
        return [*words[:position], *options, *words[position:]]

    return command


@pytest.mark.parametrize(
    ("layer", "command"),
    [
        ("seccomp", replaced("--seccomp", 2)),
        ("namespaces", with_more("--share-net")),
        ("filesystem", with_more("--ro-bind", "/etc", "/etc")),
        ("filesystem", with_more("--proc", "/proc")),
    ],
)
def test_without_a_layer_there_is_no_verdict(layer, command, settings, monkeypatch):
    monkeypatch.setattr(bubblewrap, "build_command", command)
    before = snapshot()
    result = run_suite(PLAIN, parse_suite(SUITE), settings)
    assert result.test_pass_rate is None
    assert result.layers[layer].startswith("missing")
    assert layer in result.reason
    assert {case.verdict for case in result.results} == {"not_run"}
    assert_unchanged(before)


@pytest.mark.skipif(not ROOT, reason="needs root: only root has a uid to drop")
def test_root_without_its_stage_is_noticed(settings, monkeypatch):
    original = bubblewrap.build_command
    monkeypatch.setattr(
        bubblewrap, "build_command", lambda *args, **kw: original(*args, **{**kw, "uid": None})
    )
    result = run_suite(PLAIN, parse_suite(SUITE), settings)
    assert result.test_pass_rate is None
    assert result.layers["uid"].startswith("missing")


@pytest.mark.parametrize("path", ["/bin/false", "/bin/cat", "/nonexistent"])
def test_a_bubblewrap_that_does_not_work_gives_no_verdict(path, settings, monkeypatch):
    monkeypatch.setattr(bubblewrap, "find_bubblewraps", lambda: [bubblewrap.Bubblewrap(path, "0")])
    before = snapshot()
    result = run_suite(PLAIN, parse_suite(SUITE), settings)
    assert result.test_pass_rate is None
    assert result.reason
    assert result.layers["bubblewrap"].startswith("missing")
    assert_unchanged(before)


def test_no_bubblewrap_at_all_gives_no_verdict(settings, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *args, **kwargs: None)
    monkeypatch.setattr(bubblewrap, "_find_wheel", lambda: None)
    assert run_suite(PLAIN, parse_suite(SUITE), settings).test_pass_rate is None
    assert check_sandbox(settings)["bubblewrap"].startswith("missing: there is no bubblewrap")


def test_an_outdated_bubblewrap_of_the_system_gives_way_to_the_wheels(settings, monkeypatch):
    working = bubblewrap.find_bubblewraps()[-1]
    broken = bubblewrap.Bubblewrap("/bin/false", "0")
    monkeypatch.setattr(bubblewrap, "find_bubblewraps", lambda: [broken, working])
    assert run_suite(PLAIN, parse_suite(SUITE), settings).layers["bubblewrap"] == working.version


def test_unsafe_must_be_asked_for_and_says_so():
    unsafe = load_settings(sandbox="unsafe")
    before = snapshot()
    result = run_suite(PLAIN, parse_suite(SUITE), unsafe)
    assert result.test_pass_rate == 1.0
    assert result.layers["bubblewrap"] == "off: ICCM_SANDBOX=unsafe"
    assert load_settings().sandbox == "strict"
    assert_unchanged(before)


def test_unsafe_still_ends_what_does_not_end():
    unsafe = load_settings(sandbox="unsafe")
    limits = unsafe.judge.model_copy(update={"wall_seconds": 1.0})
    before = snapshot()
    source = "import time\ndef add(a, b):\n    time.sleep(60)\n"
    result = run_suite(source, parse_suite(SUITE), unsafe.model_copy(update={"judge": limits}))
    assert result.results[0].verdict == "timeout"
    assert_unchanged(before)


# ---- the system call filter ------------------------------------------------------------------------


def decide(program, architecture, number, *arguments):
    """Run the filter as the kernel would: classic BPF over (number, architecture, arguments)."""
    arguments = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments)
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    at = accumulator = 0
    while True:
        operation, when_true, when_false, value = code[at]
        at += 1
        if operation == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif operation == 0x06:
            return value
        else:
            holds = {
                0x15: accumulator == value,
                0x35: accumulator >= value,
                0x45: bool(accumulator & value),
            }[operation]
            at += when_true if holds else when_false


KILL, EPERM, ENOSYS, ENOMEM, SUCCESS, ALLOW = 0x80000000, 0x50001, 0x50026, 0x5000C, 0x50000, 0x7FFF0000
X86, ARM = ("x86_64", 0xC000003E), ("aarch64", 0xC00000B7)


@pytest.mark.parametrize(
    ("machine", "call", "verdict"),
    [
        (X86, (0,), ALLOW),  # read
        (X86, (56, 0x01200011), ALLOW),  # fork
        (X86, (56, 0x10000011), KILL),  # clone into a new user namespace
        (X86, (56, 0x00020011), KILL),  # … mount namespace
        (X86, (435,), ENOSYS),  # clone3
        (X86, (41, 2, 1), EPERM),  # socket(AF_INET)
        (X86, (41, 1, 1), EPERM),  # socket(AF_UNIX)
        (X86, (41, 10, 1), EPERM),  # socket(AF_INET6)
        (X86, (41, 16, 3), KILL),  # netlink
        (X86, (41, 17, 3), KILL),  # packet
        (X86, (41, 40, 1), KILL),  # vsock
        (X86, (53, 1), ALLOW),  # socketpair(AF_UNIX)
        (X86, (53, 2), EPERM),
        (X86, (42,), EPERM),  # connect
        (X86, (16, 0, 0x5401), ALLOW),  # ioctl(TCGETS)
        (X86, (16, 0, 0x5412), KILL),  # ioctl(TIOCSTI)
        (X86, (16, 0, 0xFFFFFFFF00005412), KILL),  # the kernel only looks at the low half
        (X86, (72, 0, 1031), EPERM),  # fcntl(F_SETPIPE_SZ)
        (X86, (72, 0, 1030), ALLOW),  # fcntl(F_DUPFD_CLOEXEC)
        (X86, (294,), EPERM),  # inotify_init1
        (X86, (101,), KILL),  # ptrace
        (X86, (240,), EPERM),  # mq_open
        (X86, (165,), KILL),  # mount
        (X86, (272,), KILL),  # unshare
        (X86, (425,), KILL),  # io_uring_setup
        (X86, (302, 0, 7), ALLOW),  # prlimit64 of oneself
        (X86, (302, 1, 7), EPERM),  # … of another process
        (X86, (141, 0, 0, 5), ALLOW),  # setpriority of oneself
        (X86, (141, 0, 1, 5), EPERM),
        (X86, (141, 1, 0, 5), EPERM),  # setpriority of its group
        (X86, (141, 2, 0, 5), EPERM),  # … of everything of its user
        (X86, (251, 1, 0), ALLOW),  # ioprio_set of oneself
        (X86, (251, 2, 0), EPERM),
        (X86, (251, 3, 0), EPERM),
        (X86, (144, 0, 5), ALLOW),  # sched_setscheduler of oneself
        (X86, (144, 1, 5), EPERM),
        (X86, (440, 0), EPERM),  # process_madvise: its argument is a descriptor
        (X86, (9, 0, 0, 0, 0x22), ALLOW),  # mmap: private anonymous memory
        (X86, (9, 0, 0, 0, 0x01), ALLOW),  # … a shared file
        (X86, (9, 0, 0, 0, 0x21), ENOMEM),  # … shared anonymous memory
        (X86, (9, 0, 0, 0, 0x23), ENOMEM),
        (X86, (9, 0, 0, 0, 0x40022), ENOMEM),  # … huge pages
        (X86, (54, 3, 1, 7), SUCCESS),  # setsockopt(SO_SNDBUF)
        (X86, (54, 3, 1, 8), SUCCESS),
        (X86, (54, 3, 1, 9), ALLOW),
        (X86, (54, 3, 6, 7), ALLOW),
        (X86, (278,), EPERM),  # vmsplice
        (X86, (444,), ENOSYS),  # landlock_create_ruleset
        (X86, (0x40000000,), KILL),  # an x32 call
        (("x86_64", 0x40000003), (1,), KILL),  # a 32-bit call
        (ARM, (63,), ALLOW),  # read
        (ARM, (220, 0x11), ALLOW),
        (ARM, (220, 0x10000011), KILL),
        (ARM, (198, 2, 1), EPERM),
        (ARM, (198, 40, 1), KILL),
        (ARM, (180,), EPERM),
        (ARM, (117,), KILL),
        (ARM, (40,), KILL),
        (ARM, (29, 0, 0x5412), KILL),
        (ARM, (25, 0, 1031), EPERM),
        (ARM, (26,), EPERM),
        (ARM, (140, 2, 0, 5), EPERM),
        (ARM, (222, 0, 0, 0, 0x21), ENOMEM),
        (ARM, (208, 3, 1, 7), SUCCESS),
    ],
)
def test_the_filter_decides_every_call_as_it_should(machine, call, verdict):
    name, architecture = machine
    assert decide(seccomp.build_filter(name), architecture, *call) == verdict


@pytest.mark.parametrize(
    ("machine", "call", "verdict"),
    [
        (X86, (13, 17, 1 << 12), SUCCESS),  # sigaction of ended children changes nothing
        (X86, (13, 17, 1 << 32), SUCCESS),  # … by a pointer whose low half is zero
        (X86, (13, 17, 0), ALLOW),  # … is read
        (X86, (13, 15, 1 << 12), ALLOW),
        (X86, (157, 41, 0), EPERM),  # prctl(PR_SET_THP_DISABLE)
        (X86, (157, 78, 1), EPERM),  # prctl(PR_FUTEX_HASH)
        (X86, (157, 15), ALLOW),
        (X86, (0,), ALLOW),
        (ARM, (134, 17, 1 << 12), SUCCESS),
        (ARM, (167, 41, 0), EPERM),
    ],
)
def test_the_filter_of_cases_decides_as_it_should(machine, call, verdict):
    name, architecture = machine
    assert decide(seccomp.build_case_filter(name), architecture, *call) == verdict


@pytest.mark.parametrize(("machine", "number"), [(X86, 112), (ARM, 157)])
def test_a_case_has_one_session(machine, number):
    name, architecture = machine
    assert decide(seccomp.build_session_filter(name), architecture, number) == SUCCESS
    assert decide(seccomp.build_session_filter(name), architecture, 0) == ALLOW


def test_children_of_a_case_remain_in_its_session(settings):
    source = """
import os, subprocess, sys
def f():
    command = [sys.executable, "-c", "import os; print(os.getsid(0) == %d)" % os.getsid(0)]
    child = subprocess.run(command, start_new_session=True, capture_output=True)
    return child.stdout, os.getsid(0) == os.getpid()
"""
    suite = parse_suite(
        {"kind": "cases", "cases": [{"call": "f", "expect": {"$tuple": [{"$bytes": "VHJ1ZQo="}, True]}}]}
    )
    assert [case.detail for case in run_suite(source, suite, settings).results] == [""]


def test_a_sandbox_without_the_filter_of_cases_is_not_used(settings, monkeypatch):
    monkeypatch.setattr(seccomp, "build_case_filter", lambda: b"")
    warm_pool.warm_pool.close()  # its worker has the filter
    assert run_suite(PLAIN, parse_suite(SUITE), settings).test_pass_rate is None


def test_other_architectures_have_no_filter_and_so_no_sandbox(monkeypatch, settings):
    monkeypatch.setattr(seccomp.platform, "machine", lambda: "riscv64")
    assert not seccomp.is_supported()
    assert run_suite(PLAIN, parse_suite(SUITE), settings).test_pass_rate is None


# ---- limits in total ---------------------------------------------------------------------------------


PLAN = ("call", "f", [], {})


def run(source, settings, limits=LIMITS):
    with Sandbox.start(settings) as sandbox:
        sandbox.load(source)
        return sandbox.run_case(0, PLAN, limits)


def test_the_wall_limit_holds_within_half_a_second(settings):
    durations = []
    with Sandbox.start(settings) as sandbox:
        sandbox.load("import time\ndef f():\n    time.sleep(60)\n")
        for number in range(4):
            started = time.monotonic()
            reply = sandbox.run_case(number, PLAN, Limits(0.5, 5, 1 << 20))
            durations.append(time.monotonic() - started)
            assert (reply.kind, reply.imported) == ("wall", True)
    # Others may keep the machine busy while one of them ends; the first also imports the implementation.
    assert min(durations) < 0.5 + 0.5


def test_cpu_time_is_added_up_over_processes(settings):
    source = """
import os
def f():
    for _ in range(3):
        if os.fork() == 0:
            break
    while True: pass
"""
    assert run(source, settings, limits=Limits(20, 1, 1 << 20)).kind == "cpu"


def test_output_of_children_counts_too(settings):
    source = """
import os
def f():
    os.fork()
    while True: os.write(1, b"x" * 1000)
"""
    reply = run(source, settings, limits=Limits(10, 5, 50_000))
    assert reply.kind == "output"
    assert len(reply.output) <= 2000


def test_a_case_that_ran_out_of_memory_does_not_hurt_the_next(settings):
    source = "def f(n):\n    return len(b'x' * n)\n"
    with Sandbox.start(settings) as sandbox:
        sandbox.load(source)
        kinds = [sandbox.run_case(n, ("call", "f", [n << 20], {}), LIMITS).kind for n in (1, 1000, 1)]
    assert kinds == ["answered", "memory", "answered"]


def test_a_case_finds_nothing_of_the_one_before(settings):
    source = """
import os, threading, time
def f():
    left = os.listdir("/tmp"), os.listdir("/dev/shm"), os.listdir("."), len(os.listdir("/tmp"))
    for place in ("/tmp", "/dev/shm", "."):
        os.makedirs(place + "/a/b/c")
        open(place + "/a/b/file", "w").close()
    os.symlink("/tmp", "/tmp/loop")
    if os.fork() == 0:
        os.setsid()
        time.sleep(60)
    return left
"""
    with Sandbox.start(settings) as sandbox:
        sandbox.load(source)
        replies = [sandbox.run_case(n, ("call", "f", [], {}), LIMITS) for n in range(3)]
        alive = psutil.Process(sandbox.running.init_process.pid).children(recursive=True)
    first, *others = [reply.answer for reply in replies]
    assert [answer.replace(b"case-1", b"case-0").replace(b"case-2", b"case-0") for answer in others] == [
        first
    ] * 2
    assert not alive


# ---- leaving nothing -------------------------------------------------------------------------------


def test_a_closed_sandbox_is_gone(settings):
    before = snapshot()
    sandbox = Sandbox.start(settings)
    pid = sandbox.running.init_process.pid
    assert psutil.pid_exists(pid)
    sandbox.close()
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert_unchanged(before)


STUCK = """
import sys
from iccm_assets.sandbox.sandbox import Limits, Sandbox
from iccm_assets.settings import load_settings
sandbox = Sandbox.start(load_settings())
print(sandbox.running.init_process.pid, flush=True)
sandbox.load("import time\\ndef f():\\n    time.sleep(600)\\n")
sandbox.run_case(0, ("call", "f", [], {}), Limits(600, 5, 1000))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_judge_takes_its_sandbox_along(number, tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", STUCK],
        stdout=subprocess.PIPE,
        env={**os.environ, "ICCM_HOME": str(tmp_path)},
    )
    pid = int(child.stdout.readline())
    time.sleep(0.3)
    below = psutil.Process(pid).children(recursive=True)
    assert below
    child.send_signal(number)
    child.wait()
    child.stdout.close()
    _, alive = psutil.wait_procs(
        [*below, psutil.Process(pid)] if psutil.pid_exists(pid) else below, timeout=5
    )
    assert not alive


def test_an_init_process_that_dies_gives_no_verdict(settings, monkeypatch):
    original = Sandbox.run_cases

    def run_cases(self, *args):
        self.running.init_process.kill()
        return original(self, *args)

    monkeypatch.setattr(Sandbox, "run_cases", run_cases)
    before = snapshot()
    result = run_suite(PLAIN, parse_suite(SUITE), settings)
    assert result.test_pass_rate is None
    assert "init process" in result.reason
    assert_unchanged(before)


def test_a_reply_that_makes_no_sense_gives_no_verdict(settings):
    with Sandbox.start(settings) as sandbox:
        for data in (
            b"answered x\n",
            b"\xff\xff\n",
            b"answered 0 0 0 0 -5 0 0 0\n",
            b"answered 0 0 0 0 0 0 0 2\n",
            b"nonsense 0 0 0 0 0 0 0 0\n",
        ):
            sandbox._buffer[:] = data
            with pytest.raises(SandboxUnavailableError):
                sandbox._parse_reply()


# ---- who may start it ------------------------------------------------------------------------------

AS_USER = """
import json
from iccm_assets.suites.suite_runner import run_suite
from iccm_assets.suites.test_suites import parse_suite
from iccm_assets.settings import load_settings
from iccm_assets_tests.factories.implementations import HONEST, HOSTILE, SUITE
settings = load_settings()
suite, report = parse_suite(SUITE), {}
names = ("plain", "threads", "a process pool", "temporary files", "async inside")
for name in names:
    report[name] = run_suite(HONEST[name], suite, settings).test_pass_rate
hostile = {item.name: item for item in HOSTILE}
names = ("exit at import", "a polite fork bomb", "two gigabytes bit by bit", "a socket: tcp",
         "a system call: unshare", "a host file: /etc/passwd", "forged output on any descriptor",
         "kills everybody")
for name in names:
    result = run_suite(hostile[name].source, suite, settings)
    report[name] = result.results[0].verdict in hostile[name].verdicts
report["layers"] = run_suite(HONEST["plain"], suite, settings).layers
print(json.dumps(report))
"""


@pytest.mark.skipif(not ROOT, reason="needs root: the other tests already run as an ordinary user")
def test_an_ordinary_user_gets_the_same_sandbox(tmp_path):
    libraries = Path(psutil.__file__).parents[1]
    here = Path(iccm_assets.__file__).parents[1]
    python = next(
        (path for path in (sys._base_executable, "/usr/bin/python3") if is_usable(path, libraries)), None
    )
    if python is None:
        pytest.skip("needs an interpreter and libraries that uid 65534 can read")
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": f"{here}:{libraries}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [python, "-c", AS_USER],
        user=65534,
        group=65534,
        extra_groups=[],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    layers = report.pop("layers")
    assert layers["uid"] == "unprivileged (65534)"
    assert not [state for state in layers.values() if state.startswith("missing")]
    assert set(report.values()) == {True}, report


def is_usable(python, libraries):
    """Whether uid 65534 can run this interpreter with the libraries of this one."""
    try:
        return not subprocess.run(
            [python, "-c", "import pydantic_core, psutil, iccm_assets"],
            user=65534,
            group=65534,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            env={
                "PYTHONPATH": f"{Path(iccm_assets.__file__).parents[1]}:{libraries}",
                "PYTHONDONTWRITEBYTECODE": "1",
            },
        ).returncode
    except PermissionError:
        return False


def test_the_launch_keeps_no_secret_in_its_environment_or_arguments(settings, monkeypatch):
    monkeypatch.setenv("PLANTED_SECRET", "s3cret-of-the-host")
    with Sandbox.start(settings) as sandbox:
        for process in [sandbox.running.process.pid, sandbox.running.init_process.pid]:
            environment = Path(f"/proc/{process}/environ").read_bytes()
            assert b"s3cret" not in environment
    assert launcher.NAMESPACES
