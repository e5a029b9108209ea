"""Implementations that try to use more time than the limits allow, in ways that one process does not show.

All define ``f()``, which would return 1 if nothing stopped it. They are grouped by the way round the limit.
"""

from __future__ import annotations

from iccm_assets_tests.factories.memory_attacks import build_attack

CHILDREN = """
import ctypes, os, signal, time
def burn(seconds):
    start = time.process_time()
    while time.process_time() - start < seconds: pass
def run_child(work):
    ended, end = os.pipe()
    if os.fork() == 0:
        work()
        os._exit(0)
    os.close(end)
    os.read(ended, 1)
    os.close(ended)
"""

UNCOLLECTED_CHILDREN = [
    *(
        build_attack(
            f"children that nobody collects: {name}",
            "timeout",
            CHILDREN
            + f"""
def f():
    {prepare}
    for _ in range(60):
        run_child(lambda: burn(0.2))
    return 1
""",
        )
        for name, prepare in (
            ("ignored", "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"),
            ("ignored by the C library", "ctypes.CDLL(None).signal(17, ctypes.c_void_p(1))"),
            (
                "with a flag of the C library",
                "action = (ctypes.c_char * 152)(); action[136] = 2; "
                "ctypes.CDLL(None).sigaction(17, action, None)",
            ),
        )
    ),
    build_attack(
        "grandchildren whose parents end at once",
        "timeout",
        CHILDREN
        + """
def f():
    for _ in range(60):
        run_child(lambda: os.fork() or burn(0.2))
    return 1
""",
    ),
    build_attack(
        "children in sessions of their own",
        "timeout",
        CHILDREN
        + """
def f():
    for _ in range(6):
        if os.fork() == 0:
            os.setsid()
            burn(60)
    time.sleep(60)
    return 1
""",
    ),
    build_attack(
        "children that end with another signal",
        "timeout",
        CHILDREN
        + """
def f():
    stack = ctypes.create_string_buffer(1 << 20)
    top = ctypes.c_void_p(ctypes.addressof(stack) + (1 << 20) - 64)
    work = ctypes.CFUNCTYPE(None)(lambda: burn(0.2) or os._exit(0))
    for _ in range(60):
        ended, end = os.pipe()
        if ctypes.CDLL(None).clone(work, top, signal.SIGWINCH, None) < 0:
            return 2
        os.close(end)
        os.read(ended, 1)
        os.close(ended)
    return 1
""",
    ),
    build_attack(
        "children of a thread that ends",
        "timeout",
        CHILDREN
        + """
def f():
    import threading
    for _ in range(60):
        thread = threading.Thread(target=run_child, args=(lambda: burn(0.2),))
        thread.start()
        thread.join()
    return 1
""",
    ),
    build_attack(
        "other interpreters",
        "timeout",
        CHILDREN
        + """
def f():
    import subprocess, sys
    for _ in range(60):
        subprocess.run([sys.executable, "-c", "while __import__('time').process_time() < 0.2: pass"])
    return 1
""",
    ),
]

OWN_CONTENTION = [
    build_attack(
        "threads in children",
        "timeout",
        """
        import os, threading, zlib
        data = os.urandom(1 << 20)
        def work():
            while True: zlib.compress(data)
        def f():
            for _ in range(3):
                if os.fork() == 0:
                    for _ in range(3): threading.Thread(target=work).start()
                    break
            work()
        """,
    ),
    build_attack(
        "competes with six children of its own",
        "timeout",
        CHILDREN
        + """
def f():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in range(6):
        if os.fork() == 0:
            while True: run_child(lambda: burn(0.1))
    burn(60)
    return 1
""",
    ),
    build_attack(
        "makes itself unimportant and competes with children",
        "timeout",
        CHILDREN
        + """
def f():
    for _ in range(6):
        if os.fork() == 0:
            burn(60)
    os.nice(19)
    burn(60)
    return 1
""",
    ),
    build_attack(
        "makes all processes of its user unimportant and competes with children",
        "timeout",
        CHILDREN
        + """
def f():
    for kind in (2, 1, 0):
        ctypes.CDLL(None).setpriority(kind, 0, 19)
    for _ in range(6):
        if os.fork() == 0:
            burn(60)
    burn(60)
    return 1
""",
    ),
    build_attack(
        "chooses the idle policy and competes with children",
        "timeout",
        CHILDREN
        + """
def f():
    for _ in range(6):
        if os.fork() == 0:
            burn(60)
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    burn(60)
    return 1
""",
    ),
    build_attack(
        "competes with children on one processor",
        "timeout",
        CHILDREN
        + """
def f():
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for _ in range(6):
        if os.fork() == 0:
            while True: run_child(lambda: burn(0.1))
    burn(60)
    return 1
""",
    ),
    build_attack(
        "competes with children in sessions of their own",
        "timeout",
        CHILDREN
        + """
def f():
    for _ in range(6):
        if os.fork() == 0:
            os.setsid()
            burn(60)
    burn(60)
    return 1
""",
    ),
    build_attack(
        "is stopped while its children work",
        "timeout",
        CHILDREN
        + """
def f():
    for _ in range(6):
        if os.fork() == 0:
            burn(60)
    os.kill(os.getpid(), signal.SIGSTOP)
    return 1
""",
    ),
]
