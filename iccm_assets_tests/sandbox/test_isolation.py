"""Implementations side by side: none sees or disturbs another, by any means.

Each hostile neighbour is judged at the same time as a victim that keeps a secret in every place there is and
needs a second to answer. What the neighbour observed comes back as its answer; it has to be nothing.
"""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from textwrap import dedent

import pytest

from iccm_assets.sandbox import warm_pool
from iccm_assets.sandbox.sandbox import Limits, Sandbox
from iccm_assets.settings import load_settings
from iccm_assets.suites.suite_runner import run_suite
from iccm_assets.suites.test_suites import parse_suite
from iccm_assets_tests.factories.host_probe import assert_unchanged, snapshot

SECRET = "s3cret-of-the-neighbour"
VICTIM = f"""
import mmap, os, signal, socket, threading, time
SECRET = {SECRET!r}
def work():
    for place in ("/tmp", "/dev/shm"):
        with open(place + "/secret", "w") as file:
            file.write(SECRET)
    shared = mmap.mmap(-1, 4096); shared.write(SECRET.encode())
    reading, writing = os.pipe(); os.write(writing, SECRET.encode())
    near_end, far_end = socket.socketpair(); near_end.send(SECRET.encode())
    os.environ["SECRET"] = SECRET
    child = os.fork()
    if child == 0:
        time.sleep(1.0)
        os._exit(7)
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        time.sleep(0.02)
    results = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]
    results += [os.read(reading, 100).decode(), far_end.recv(100).decode()]
    results += [open(place + "/secret").read() for place in ("/tmp", "/dev/shm")]
    return results + [sorted(os.listdir("/dev/shm"))]
"""
EXPECTED = [7, SECRET, SECRET, SECRET, SECRET, ["secret"]]

# name -> body of a function that returns what it observes of others; each runs while the victim does.
TRIES = {
    "files in /tmp": "return [name for name in os.listdir('/tmp') if not name.startswith('case-')]",
    "files in shared memory": "return os.listdir('/dev/shm')",
    "files anywhere": """
        return [folder for folder, _, names in os.walk('/') if 'secret' in names]
    """,
    "the process table": "return os.path.exists('/proc') and os.listdir('/proc')",
    "signals to every number": """
        reachable = []
        for pid in range(2, 3000):
            if pid != os.getpid():
                try: os.kill(pid, 0); reachable.append(pid)
                except OSError: pass
        return reachable
    """,
    "a signal to all": """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try: os.kill(-1, signal.SIGTERM)
        except OSError: pass
        return []
    """,
    "signals to process groups": """
        reachable = []
        for group in range(2, 500):
            if group != os.getpgrp():
                try: os.killpg(group, 0); reachable.append(group)
                except OSError: pass
        return reachable
    """,
    "waiting for others": """
        try: return list(os.waitpid(-1, os.WNOHANG))
        except OSError: return []
    """,
    "inherited descriptors": """
        reachable = []
        for fd in range(3, 240):
            try: os.fstat(fd); reachable.append(fd)
            except OSError: pass
        return reachable
    """,
    "shared memory of System V": """
        libc = ctypes.CDLL(None, use_errno=True)
        return [key for key in range(1, 300) if libc.shmget(key, 0, 0) >= 0]
    """,
    "semaphores of System V": """
        libc = ctypes.CDLL(None, use_errno=True)
        return [key for key in range(1, 300) if libc.semget(key, 0, 0) >= 0]
    """,
    "message queues": """
        libc = ctypes.CDLL(None, use_errno=True)
        return [key for key in range(1, 300) if libc.msgget(key, 0) >= 0]
    """,
    "named semaphores": "return [name for name in os.listdir('/dev/shm') if name.startswith('sem.')]",
    "abstract sockets": """
        connected = []
        for name in ('\\0victim', '\\0judge'):
            try: connected.append(_socket.socket(1, 1).connect(name))
            except OSError: pass
        return connected
    """,
    "the environment": "return dict(os.environ)",
    "its parent's memory": """
        try: return open(f'/proc/{os.getppid()}/mem', 'rb').read(1)
        except OSError: return []
    """,
    "the host's name as a channel": """
        libc = ctypes.CDLL(None)
        before = os.uname().nodename
        return [] if before == 'sandbox' else [before]
    """,
    "priorities of others": """
        reachable = []
        for pid in range(2, 300):
            if pid != os.getpid():
                try: reachable.append(os.getpriority(os.PRIO_PROCESS, pid))
                except OSError: pass
        return reachable
    """,
    "filling all scratch space": """
        for place in ('/tmp', '/dev/shm'):
            with open(place + '/big', 'wb') as file:
                try:
                    while True: file.write(b'x' * (1 << 20))
                except OSError: pass
            os.unlink(place + '/big') if os.path.exists(place + '/big') else None
        return []
    """,
    "as many processes as there may be": """
        for _ in range(50):
            try:
                if os.fork() == 0:
                    time.sleep(30)
                    os._exit(0)
            except OSError: break
        return []
    """,
    "all the processor time it can get": """
        for _ in range(6):
            if os.fork() == 0:
                while True: pass
        while True: pass
    """,
    "all the memory it can get": """
        blocks = []
        while True: blocks.append(b'x' * (8 << 20))
    """,
}
NO_ANSWER = ("all the processor time it can get", "all the memory it can get")


@pytest.fixture(scope="module")
def settings():
    return load_settings()


def neighbour(body):
    lines = dedent(body).strip().replace("\n", "\n    ")
    return f"import _socket, ctypes, os, signal, time\ndef look():\n    {lines}\n"


def judge_neighbour(source, settings):
    """Judge a neighbour's answer, which has to be empty."""
    suite = parse_suite({"kind": "cases", "cases": [{"call": "look", "expect": []}]})
    return run_suite(source, suite, settings).results[0]


def test_no_implementation_sees_or_disturbs_another_in_over_fifteen_tries(settings):
    assert len(TRIES) >= 15
    victims = parse_suite({"kind": "cases", "cases": [{"call": "work", "expect": EXPECTED}] * 6})
    before = snapshot()
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(run_suite, VICTIM, victims, settings)]
        results = dict(
            zip(
                TRIES,
                pool.map(lambda name: judge_neighbour(neighbour(TRIES[name]), settings), TRIES),
                strict=True,
            )
        )
        victim = running[0].result()
    assert [(case.verdict, case.detail) for case in victim.results] == [("passed", "")] * 6
    for name, result in results.items():
        assert SECRET not in result.detail, name
        if name in NO_ANSWER:
            assert result.verdict in ("timeout", "out_of_memory"), (name, result)
        else:
            harmless = result.verdict in ("passed", "forbidden") or result.detail.startswith(
                ("expected [], got {}", "expected [], got False")
            )
            assert harmless, (name, result)
    assert_unchanged(before)


# Each takes as much as it can of what the kernel counts by user, holds it, and returns how much it was.
GREEDY = {
    "processes": """
        count = 0
        try:
            while count < 50:
                if os.fork() == 0:
                    time.sleep(30)
                    os._exit(0)
                count += 1
        except OSError: pass
    """,
    "threads": """
        count = 0
        try:
            while count < 500:
                threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
                count += 1
        except RuntimeError: pass
    """,
    "pending signals": """
        signal.pthread_sigmask(signal.SIG_BLOCK, range(34, 64))
        count = 0
        while count < 200000 and libc.sigqueue(os.getpid(), 40, ctypes.c_void_p(1)) == 0:
            count += 1
    """,
    "inotify": """
        count = 0
        while libc.inotify_init1(0) >= 0:
            count += 1
    """,
    "large pipes": """
        count = 0
        try:
            while True:
                reading, writing = os.pipe()
                fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 1 << 20)
                count += 1
        except OSError: pass
    """,
}
MODEST = """
import ctypes, fcntl, os, signal, threading, time
libc = ctypes.CDLL(None)
def work():
    signal.pthread_sigmask(signal.SIG_BLOCK, range(34, 64))
    results = [libc.sigqueue(os.getpid(), 40, ctypes.c_void_p(1)) for _ in range(20)]
    threads = [threading.Thread(target=time.sleep, args=(0.1,)) for _ in range(40)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    for _ in range(20):
        child = os.fork()
        if child == 0:
            os._exit(0)
        results.append(os.waitpid(child, 0)[1])
    return [set(results), fcntl.fcntl(os.pipe()[1], fcntl.F_GETPIPE_SZ)]
"""
MODEST_ANSWER = [{"$set": [0]}, 65536]


@pytest.mark.parametrize("name", GREEDY)
@pytest.mark.slow
def test_what_the_kernel_counts_by_user_cannot_be_used_up_for_others(name, settings):
    body = dedent(GREEDY[name]).strip().replace("\n", "\n    ")
    greedy = (
        "import ctypes, fcntl, os, signal, threading, time\nlibc = ctypes.CDLL(None)\n"
        f"def take():\n    {body}\n    time.sleep(2)\n    return count\n"
    )
    plan = ("call", "take", [], {})
    with start_warm(settings) as first, start_warm(settings) as second, ThreadPoolExecutor(2) as pool:
        replies = []
        for sandbox in (first, second):
            sandbox.load(greedy)
            replies.append(pool.submit(sandbox.run_case, 0, plan, Limits(10, 5, 1000)))
        time.sleep(1)
        suite = parse_suite({"kind": "cases", "cases": [{"call": "work", "expect": MODEST_ANSWER}]})
        assert run_suite(MODEST, suite, settings).results[0].detail == ""
        assert [reply.result().kind for reply in replies] == ["answered"] * 2


def start_warm(settings):
    """Start a sandbox that comes from the warm pool."""
    while True:
        sandbox = Sandbox.start(settings)
        if warm_pool.warm_pool.zygote and sandbox.running.process is warm_pool.warm_pool.zygote.process:
            return sandbox
        sandbox.close()


def test_two_sandboxes_share_no_namespace_and_no_scratch_space(settings):
    source = "import os\ndef f():\n    open('/tmp/mark', 'w')\n    return os.listdir('/tmp'), os.getpid()\n"
    plan = ("call", "f", [], {})
    for _ in range(2):  # the second time from the warm pool, where there is one
        with Sandbox.start(settings) as first, Sandbox.start(settings) as second:
            answers = []
            for sandbox in (first, second):
                sandbox.load(source)
                answers.append(json.loads(sandbox.run_case(0, plan, Limits(10, 5, 1000)).answer))
            assert answers[0] == answers[1]
            spaces = [read_namespaces(sandbox.running.init_process.pid) for sandbox in (first, second)]
            assert not spaces[0] & spaces[1]


def read_namespaces(pid):
    return {os.readlink(f"/proc/{pid}/ns/{name}") for name in ("user", "pid", "net", "ipc", "mnt", "uts")}
