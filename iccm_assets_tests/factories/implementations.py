"""Implementations to judge: honest ones in many styles, hostile ones that each try one thing.

All are asked for the same: ``add(a, b)`` and ``label(n)``, see ``SUITE``. A hostile one carries the verdicts
that name what it does; where its ``add`` would answer rightly, that makes the point stronger.
"""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import dedent

SUITE = {
    "kind": "cases",
    "cases": [
        {"call": "add", "args": [1, 2], "expect": 3},
        {"call": "add", "args": [-5, 8], "expect": 3},
        {"call": "add", "kwargs": {"a": 40, "b": 2}, "expect": 42},
        {"call": "add", "args": [1, None], "raises": "TypeError"},
        {"call": "label", "args": [7], "expect": "item-7"},
    ],
}


@dataclass(frozen=True)
class Hostile:
    """What it tries, the verdicts that name it, and a part of what it must be suspected of."""

    name: str
    source: str
    verdicts: frozenset[str]
    suspicion: str = ""


def _hostile(name: str, verdicts: str, source: str, suspicion: str = "") -> Hostile:
    return Hostile(name, dedent(source), frozenset(verdicts.split()), suspicion)


PLAIN = """
def add(a, b):
    return a + b

def label(n):
    return f"item-{n}"
"""

HONEST: dict[str, str] = {
    "plain": PLAIN,
    "prints a lot": """
import sys
print("loading", file=sys.stderr)
def add(a, b):
    for i in range(500):
        print("adding", i)
    print(a, b, file=sys.stderr, flush=True)
    return a + b
def label(n):
    sys.stdout.write("x" * 10000)
    return f"item-{n}"
""",
    "logs": """
import logging
logging.basicConfig(level=logging.DEBUG)
log = logging.getLogger(__name__)
def add(a, b):
    log.info("add %r %r", a, b)
    return a + b
def label(n):
    log.debug("label", stack_info=True)
    return f"item-{n}"
""",
    "threads": """
import threading
def add(a, b):
    out, errors = [], []
    def work():
        try:
            out.append(a + b)
        except TypeError as error:
            errors.append(error)
    thread = threading.Thread(target=work)
    thread.start(); thread.join()
    if errors:
        raise errors[0]
    return out[0]
def label(n):
    return f"item-{n}"
""",
    "thread pool of fifty": """
from concurrent.futures import ThreadPoolExecutor
def add(a, b):
    with ThreadPoolExecutor(50) as pool:
        results = list(pool.map(lambda _: a + b, range(200)))
    return results[0]
def label(n):
    return f"item-{n}"
""",
    "a thread left running": """
import threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
def add(a, b):
    return a + b
def label(n):
    return f"item-{n}"
""",
    "a worker thread started at import": """
import queue, threading
jobs, results = queue.Queue(), queue.Queue()
def work():
    while True:
        a, b = jobs.get()
        try:
            results.put(a + b)
        except TypeError as error:
            results.put(error)
threading.Thread(target=work, daemon=True).start()
def add(a, b):
    jobs.put((a, b))
    result = results.get()
    if isinstance(result, Exception):
        raise result
    return result
def label(n):
    return f"item-{n}"
""",
    "callable objects": """
class Adder:
    def __call__(self, a, b):
        return a + b
class Labeller:
    def __init__(self, prefix):
        self.prefix = prefix
    def __call__(self, n):
        return f"{self.prefix}-{n}"
add = Adder()
label = Labeller("item")
""",
    "lambdas and partials": """
import functools, operator
add = lambda a, b: operator.add(a, b)
label = functools.partial(lambda prefix, n: prefix + str(n), "item-")
""",
    "a class with static methods": """
class _Tools:
    @staticmethod
    def add(a, b):
        return a + b
    @classmethod
    def label(cls, n):
        return f"item-{n}"
add, label = _Tools.add, _Tools().label
""",
    "dataclasses, enums and typing": """
from __future__ import annotations
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, TypeVar, Generic, Protocol
T = TypeVar("T")
class Kind(Enum):
    ITEM = "item"
class Pair(NamedTuple):
    a: int
    b: int
@dataclass(frozen=True, slots=True)
class Sum(Generic[T]):
    pair: Pair
    def value(self):
        return self.pair.a + self.pair.b
def add(a: int, b: int) -> int:
    return Sum(Pair(a, b)).value()
def label(n: int) -> str:
    return f"{Kind.ITEM.value}-{n}"
""",
    "subclassed exceptions": """
class BadInput(TypeError):
    def __init__(self, value):
        super().__init__(f"bad input {value!r}")
def add(a, b):
    for value in (a, b):
        if not isinstance(value, int):
            raise BadInput(value)
    return a + b
def label(n):
    return f"item-{n}"
""",
    "chained exceptions": """
def add(a, b):
    try:
        return a + b
    except TypeError as error:
        raise TypeError("not numbers") from error
def label(n):
    return f"item-{n}"
""",
    "async inside": """
import asyncio
async def _add(a, b):
    await asyncio.sleep(0)
    return a + b
def add(a, b):
    return asyncio.run(_add(a, b))
def label(n):
    return f"item-{n}"
""",
    "temporary files": """
import json, os, tempfile
def add(a, b):
    total = a + b
    with tempfile.NamedTemporaryFile("w+", suffix=".json") as file:
        json.dump(total, file)
        file.flush(); file.seek(0)
        return json.load(file)
def label(n):
    with open("label.txt", "x") as file:
        file.write(f"item-{n}")
    with tempfile.TemporaryDirectory() as folder:
        assert os.listdir(folder) == []
    return open("label.txt").read()
""",
    "a child process by multiprocessing": """
import multiprocessing
def _work(a, b, pipe):
    pipe.send(a + b)
def add(a, b):
    if a is None or b is None:
        raise TypeError
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_work, args=(a, b, theirs))
    child.start()
    result = ours.recv()
    child.join()
    return result
def label(n):
    return f"item-{n}"
""",
    "a process pool": """
import operator
from concurrent.futures import ProcessPoolExecutor
import multiprocessing
def add(a, b):
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(operator.add, a, b).result()
def label(n):
    return f"item-{n}"
""",
    "a forked child": """
import os
def add(a, b):
    total = a + b
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.write(writing, str(total).encode())
        os._exit(0)
    os.wait()
    return int(os.read(reading, 100))
def label(n):
    return f"item-{n}"
""",
    "a python subprocess": """
import subprocess, sys
def add(a, b):
    total = a + b
    program = [sys.executable, "-c", f"print({total})"]
    asked = subprocess.run(program, capture_output=True, text=True, check=True)
    return int(asked.stdout)
def label(n):
    return f"item-{n}"
""",
    "an exit hook, a signal handler and a finalizer": """
import atexit, signal, weakref
atexit.register(print, "bye")
signal.signal(signal.SIGTERM, lambda *_: None)
class Thing:
    def __del__(self):
        print("gone")
thing = Thing()
weakref.finalize(thing, print, "finalized")
def add(a, b):
    return a + b
def label(n):
    return f"item-{n}"
""",
    "redefines names of builtins for itself": """
def print(*args):
    pass
def len(x):
    return 0
type = str
def sum(values):
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
def add(a, b):
    print(a, b)
    return sum([a, b])
def label(n):
    return f"item-{n}"
""",
    "deep recursion": """
import sys
sys.setrecursionlimit(20000)
def _count(n):
    return 0 if n == 0 else 1 + _count(n - 1)
def add(a, b):
    assert _count(10000) == 10000
    return a + b
def label(n):
    return f"item-{n}"
""",
    "much of the standard library": """
import argparse, array, base64, bisect, calendar, collections, contextlib, copy, csv, datetime, decimal
import difflib, fractions, functools, hashlib, heapq, html, inspect, io, itertools, json, locale, math
import mimetypes, numbers, operator, os, pathlib, pickle, platform, pprint, queue, random, re, secrets
import shutil, socket, sqlite3, ssl, statistics, string, struct, sys, textwrap, time, timeit, traceback
import types, unicodedata, urllib.parse, uuid, warnings, weakref, xml.etree.ElementTree, zipfile, zlib
import zoneinfo, ctypes, multiprocessing, gettext, getpass
random.seed(4)
def add(a, b):
    assert uuid.uuid1() != uuid.uuid4()
    assert os.path.expanduser("~") and pathlib.Path.cwd().exists()
    assert datetime.datetime.now(zoneinfo.ZoneInfo("Europe/Berlin"))
    assert hashlib.sha256(b"x").hexdigest() and mimetypes.guess_type("a.html")[0]
    database = sqlite3.connect(":memory:")
    assert database.execute("select 1 + 1").fetchone() == (2,)
    assert platform.python_version() and os.cpu_count() and os.environ.get("HOME", "none") and os.getcwd()
    assert ctypes.c_uint8(257).value == 1
    assert pickle.loads(pickle.dumps([a, b])) == [a, b]
    ours, theirs = socket.socketpair()
    ours.close(); theirs.close()
    os.path.exists("/etc/passwd")
    return int(decimal.Decimal(a) + decimal.Decimal(b)) if None not in (a, b) else a + b
def label(n):
    return "".join(["item", "-", str(n)])
""",
    "four hundred megabytes": """
def add(a, b):
    if a == 40:
        block = bytearray(400 << 20)
        block[::4096] = b"x" * len(block[::4096])
    return a + b
def label(n):
    return f"item-{n}"
""",
    "closes descriptors it did not open": """
import os, sys
def add(a, b):
    total = a + b
    sys.stdout.close()
    os.closerange(3, 64)
    return total
def label(n):
    return f"item-{n}"
""",
    "a hundred sleeping threads": """
import threading, time
def add(a, b):
    total = a + b
    threads = [threading.Thread(target=time.sleep, args=(0.05,)) for _ in range(100)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return total
def label(n):
    return f"item-{n}"
""",
    "looks at its caller": """
import functools, inspect
def traced(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        print(inspect.stack()[1].function, "calls", function.__name__)
        return function(*args, **kwargs)
    return wrapper
@traced
def add(a, b):
    return a + b
@traced
def label(n):
    return f"item-{n}"
""",
    "main guard and module name": """
def add(a, b):
    return a + b
def label(n):
    return f"item-{n}"
if __name__ == "__main__":
    import sys
    sys.exit(3)
""",
    "inspects itself": """
import inspect, sys
def add(a, b):
    assert sys.modules[__name__].add is add
    assert inspect.signature(add).parameters.keys() == {"a", "b"}
    assert inspect.currentframe().f_code.co_name == "add"
    return a + b
def label(n):
    return f"item-{n}"
""",
}

RIGHT = "\ndef label(n):\n    return f'item-{n}'\n"

HOSTILE: list[Hostile] = [
    # ---- leaving before the verdict
    _hostile("exit at import", "exited", "import os\nos._exit(0)\n" + PLAIN),
    _hostile("sys.exit at import", "exited", "import sys\nsys.exit(0)\n" + PLAIN),
    _hostile("raise SystemExit in the call", "exited", "def add(a, b):\n    raise SystemExit(0)\n" + RIGHT),
    _hostile("os._exit in the call", "exited", "import os\ndef add(a, b):\n    os._exit(0)\n" + RIGHT),
    _hostile(
        "exit from a thread",
        "exited",
        """
        import os, threading, time
        threading.Thread(target=lambda: (time.sleep(0.05), os._exit(0))).start()
        def add(a, b):
            time.sleep(5)
            return 0
        """,
        "ends its process",
    ),
    _hostile("kills itself", "crashed", "import os\ndef add(a, b):\n    os.kill(os.getpid(), 9)\n"),
    _hostile("segmentation fault", "crashed", "import ctypes\ndef add(a, b):\n    ctypes.string_at(0)\n"),
    _hostile("abort", "crashed", "import os\nos.abort()\n"),
    # ---- equal to everything
    _hostile(
        "an object equal to everything",
        "failed",
        """
        class Any:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 0
        def add(a, b):
            return Any()
        """,
        "equal",
    ),
    _hostile(
        "an int subclass equal to everything",
        "failed",
        """
        class Any(int):
            def __eq__(self, other): return True
            __hash__ = int.__hash__
            def __index__(self): return 3
            def __repr__(self): return "3"
        def add(a, b):
            return Any(0)
        """,
        "equal",
    ),
    _hostile(
        "a class that lies about itself",
        "failed",
        """
        class Meta(type):
            __name__ = "int"
            def __instancecheck__(cls, other): return True
            def __eq__(cls, other): return True
            def __hash__(cls): return hash(int)
        class Lie(metaclass=Meta):
            __class__ = int
            def __eq__(self, other): return True
            def __reduce__(self): return (int, ("3",))
        def add(a, b):
            return Lie()
        """,
        "equal",
    ),
    _hostile(
        "an exception that is of every kind",
        "failed error",
        """
        class Any(TypeError, ValueError, KeyError, IndexError, ZeroDivisionError, RuntimeError):
            pass
        def add(a, b):
            raise Any
        """,
        "many unrelated kinds",
    ),
    _hostile("a bool for an int", "failed", "def add(a, b):\n    return bool(a + b)\n"),
    _hostile("a float for an int", "failed", "def add(a, b):\n    return float(a + b)\n"),
    _hostile("nan", "failed", "def add(a, b):\n    return float('nan')\n"),
    _hostile(
        "an exception that is called TypeError",
        "failed error",
        """
        class TypeError(Exception):
            pass
        def add(a, b):
            raise TypeError("fake")
        """,
    ),
    # ---- tampering with what carries the answer
    _hostile(
        "patched json",
        "forbidden",
        """
        import json
        json.dumps = lambda *a, **k: '["v",["i","3"]]'
        json.loads = lambda *a, **k: 3
        def add(a, b):
            return a + b
        """,
        "json",
    ),
    _hostile(
        "patched builtins",
        "failed error",
        """
        import builtins
        builtins.isinstance = lambda *a: True
        builtins.type = lambda *a: int
        builtins.len = lambda *a: 3
        builtins.repr = lambda *a: "3"
        builtins.__build_class__ = None
        def add(a, b):
            return 0
        """,
        "builtins",
    ),
    _hostile(
        "an atexit hook",
        "failed exited",
        """
        import atexit, os
        def forge():
            for fd in range(3, 64):
                try: os.write(fd, b"passed")
                except OSError: pass
        atexit.register(forge)
        def add(a, b):
            return 0
        """,
        "exit hook",
    ),
    _hostile(
        "an atexit hook and an exit",
        "exited",
        """
        import atexit, os, sys
        atexit.register(os._exit, 0)
        def add(a, b):
            sys.exit(0)
        """,
        "exit hook",
    ),
    _hostile(
        "forged output on any descriptor",
        "forbidden",
        """
        import os
        def add(a, b):
            for fd in range(0, 256):
                for text in (b'["v",["i","3"]]', b'{"passed": true}\\n', b"answered 0 0 0 0 15 0 0\\n"):
                    try: os.write(fd, text)
                    except OSError: pass
            os._exit(0)
        """,
        "answer channel",
    ),
    _hostile(
        "forged output, then a wrong answer",
        "forbidden",
        """
        import os
        for fd in range(3, 256):
            try: os.write(fd, b"answered 0 0 0 0 15 0 0\\n" * 50)
            except OSError: pass
        def add(a, b):
            return 0
        """,
        "answer channel",
    ),
    _hostile(
        "a second answer under the stolen nonce",
        "forbidden",
        """
        import gc, os, sys
        def add(a, b):
            frame = sys._getframe()
            while frame:
                nonce = frame.f_locals.get("nonce")
                if nonce:
                    payload = b'["v",["i","3"]]'
                    whole = nonce + len(payload).to_bytes(4, "big") + payload
                    os.write(frame.f_locals["answer_fd"], whole + whole)
                frame = frame.f_back
            return 0
        """,
        "frames",
    ),
    _hostile(
        "an early answer that is not well formed",
        "forbidden",
        """
        import os, sys
        def add(a, b):
            frame = sys._getframe()
            while frame:
                nonce = frame.f_locals.get("nonce")
                if nonce:
                    payload = b'["v",' + b"[" * 100000 + b'"i","3"' + b"]" * 100000 + b"]"
                    os.write(frame.f_locals["answer_fd"], nonce + len(payload).to_bytes(4, "big"))
                    while payload:
                        payload = payload[os.write(frame.f_locals["answer_fd"], payload):]
                    os._exit(0)
                frame = frame.f_back
        """,
        "frames",
    ),
    _hostile(
        "a hundred megabytes on every descriptor",
        "output_limit forbidden not_run",
        """
        import os
        def add(a, b):
            for _ in range(1600):
                for fd in range(1, 16):
                    try: os.write(fd, b"x" * 65536)
                    except OSError: pass
            return a + b
        """,
    ),
    # ---- hunting for the expected values
    _hostile(
        "hunting in frames",
        "failed error",
        """
        import sys
        def add(a, b):
            frame = sys._getframe()
            while frame:
                for space in (frame.f_locals, frame.f_globals):
                    for name, value in list(space.items()):
                        if "expect" in str(name):
                            return value
                frame = frame.f_back
            return -1
        """,
        "frames",
    ),
    _hostile(
        "hunting in the heap",
        "forbidden",
        """
        import gc
        def add(a, b):
            for thing in gc.get_objects():
                if type(thing) is dict and "expect" in thing:
                    return thing["expect"]
            return a + b
        """,
        "memory",
    ),
    _hostile(
        "hunting in its own memory",
        "forbidden",
        """
        def add(a, b):
            try:
                for row in open("/proc/self/maps"):
                    open("/proc/self/mem", "rb").read(10)
            except OSError:
                pass
            return a + b
        """,
        "/proc/self",
    ),
    _hostile(
        "hunting in files",
        "forbidden",
        """
        import os
        def add(a, b):
            for root in ("/", "/root", "/home", "/srv", ".", ".."):
                for folder, _, files in os.walk(root):
                    for name in files:
                        if name.endswith(".json"):
                            return open(os.path.join(folder, name)).read()
            return a + b
        """,
        "accessed /",
    ),
    _hostile(
        "hunting by import",
        "error",
        """
        from iccm_assets.suites import suite_runner
        def add(a, b):
            return suite_runner.EXPECTED
        """,
    ),
    # ---- time, memory, processes, output
    _hostile("an endless loop", "timeout not_run", "def add(a, b):\n    while True: pass\n"),
    _hostile("an endless loop at import", "timeout", "while True: pass\n"),
    _hostile("sleeps for ever", "timeout not_run", "import time\ndef add(a, b):\n    time.sleep(1e6)\n"),
    _hostile(
        "ignores signals and loops in a thread",
        "timeout not_run",
        """
        import signal, threading
        for number in range(1, 65):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        def spin():
            while True: pass
        def add(a, b):
            threading.Thread(target=spin).start()
            spin()
        """,
    ),
    _hostile(
        "catastrophic regular expression",
        "timeout not_run",
        "import re\ndef add(a, b):\n    re.match('(a+)+$', 'a' * 60 + 'b')\n",
    ),
    _hostile(
        "an endless loop in many processes",
        "timeout not_run",
        """
        import os
        def add(a, b):
            for _ in range(8):
                if os.fork() == 0:
                    break
            while True: pass
        """,
        "forks",
    ),
    _hostile(
        "a fork bomb",
        "forbidden timeout not_run out_of_memory error",
        """
        import os
        def add(a, b):
            while True:
                try: os.fork()
                except OSError: pass
        """,
        "forks",
    ),
    _hostile(
        "a polite fork bomb",
        "forbidden error",
        """
        import os, time
        def add(a, b):
            for _ in range(200):
                if os.fork() == 0:
                    time.sleep(60)
                    os._exit(0)
            return a + b
        """,
        "forks",
    ),
    _hostile(
        "a thread bomb",
        "error forbidden",
        """
        import threading, time
        def add(a, b):
            for _ in range(2000):
                threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            return a + b
        """,
    ),
    _hostile(
        "two gigabytes at once",
        "out_of_memory",
        "def add(a, b):\n    block = bytearray(2 << 30)\n    return a + b\n",
    ),
    _hostile(
        "two gigabytes bit by bit",
        "out_of_memory timeout not_run",
        """
        def add(a, b):
            blocks = []
            for _ in range(2048):
                blocks.append(b"x" * (1 << 20))
            return a + b
        """,
    ),
    _hostile("two gigabytes at import", "out_of_memory", "block = [0] * (1 << 28)\n" + PLAIN),
    _hostile(
        "two gigabytes in children",
        "out_of_memory timeout not_run",
        """
        import os, time
        def add(a, b):
            for _ in range(10):
                if os.fork() == 0:
                    block = b"x" * (200 << 20)
                    time.sleep(60)
            os.wait()
            return a + b
        """,
    ),
    _hostile(
        "two gigabytes of shared memory",
        "out_of_memory timeout not_run",
        """
        import mmap
        def add(a, b):
            block = mmap.mmap(-1, 2 << 30)
            for at in range(0, 2 << 30, 4096):
                block[at] = 1
            return a + b
        """,
    ),
    _hostile(
        "fills the scratch space",
        "error",
        """
        def add(a, b):
            for place in ("/tmp", "/dev/shm"):
                for number in range(100):
                    with open(f"{place}/{number}", "wb") as file:
                        file.write(b"x" * (16 << 20))
            return a + b
        """,
    ),
    _hostile(
        "a hundred thousand files",
        "out_of_memory timeout not_run error",
        """
        def add(a, b):
            for number in range(300000):
                open(f"/tmp/{number}", "w").close()
            return a + b
        """,
    ),
    _hostile("endless output", "output_limit not_run", "def add(a, b):\n    while True: print('x' * 1000)\n"),
    _hostile(
        "endless output without a line end",
        "output_limit not_run",
        "import os\ndef add(a, b):\n    while True: os.write(2, b'x' * 4096)\n",
    ),
    _hostile("an enormous answer", "output_limit", "def add(a, b):\n    return 'x' * (8 << 20)\n"),
    _hostile(
        "an answer that contains itself",
        "failed",
        "def add(a, b):\n    box = []\n    box.append(box)\n    return box\n",
    ),
    _hostile(
        "an answer that doubles at every level",
        "output_limit",
        "def add(a, b):\n    box = []\n    for _ in range(60):\n        box = [box, box]\n    return box\n",
    ),
    # ---- network
    *(
        _hostile(
            f"a socket: {name}",
            "forbidden",
            f"""
            import socket
            def add(a, b):
                try:
                    {code}
                except OSError:
                    pass
                return a + b
            """,
            "socket",
        )
        for name, code in {
            "tcp": "socket.create_connection(('127.0.0.1', 5432), 1)",
            "udp": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('8.8.8.8', 53))",
            "ipv6": "socket.socket(socket.AF_INET6)",
            "dns": "socket.getaddrinfo('example.com', 80)",
            "metadata service": "socket.create_connection(('169.254.169.254', 80), 1)",
            "unix path": "socket.socket(socket.AF_UNIX).connect('/var/run/postgresql/.s.PGSQL.5432')",
            "unix abstract": "socket.socket(socket.AF_UNIX).connect(chr(0) + 'dbus')",
            "unix server": "socket.socket(socket.AF_UNIX).bind('/tmp/server')",
            "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
            "vsock": "socket.socket(40, socket.SOCK_STREAM)",
            "packet": "socket.socket(17, socket.SOCK_RAW)",
            "raw": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
        }.items()
    ),
    _hostile(
        "a socket past the socket module",
        "forbidden",
        """
        import _socket
        def add(a, b):
            try: _socket.socket(2, 1)
            except OSError: pass
            return a + b
        """,
        "socket",
    ),
    _hostile(
        "a web request",
        "forbidden",
        """
        import urllib.request
        def add(a, b):
            try: urllib.request.urlopen("http://127.0.0.1:3000/", timeout=1)
            except OSError: pass
            return a + b
        """,
        "socket",
    ),
    # ---- the kernel
    *(
        _hostile(
            f"a system call: {name}",
            "forbidden",
            f"""
            import ctypes
            libc = ctypes.CDLL(None)
            def add(a, b):
                {code}
                return a + b
            """,
            "system call",
        )
        for name, code in {
            "socket": "libc.socket(2, 1, 0)",
            "ptrace": "libc.ptrace(16, 1, 0, 0)",
            "mount": "libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)",
            "unshare": "libc.unshare(0x10000000)",
            "keyctl": "libc.syscall(250, 0, 0)",
            "bpf": "libc.syscall(321, 0, 0, 0)",
            "io_uring": "libc.syscall(425, 1, 0)",
            "process_vm_readv": "libc.process_vm_readv(1, 0, 0, 0, 0, 0)",
        }.items()
    ),
    _hostile(
        "pushes characters into the terminal",
        "forbidden",
        "import fcntl\ndef add(a, b):\n    fcntl.ioctl(0, 0x5412, b'x')\n    return a + b\n",
        "system call",
    ),
    _hostile(
        "kills everybody",
        "forbidden",
        """
        import os
        def add(a, b):
            for pid in (1, -1, os.getppid()):
                try: os.kill(pid, 9)
                except OSError: pass
            return a + b
        """,
        "signal",
    ),
    _hostile(
        "every signal to the first process",
        "forbidden",
        """
        import os
        def add(a, b):
            for number in range(1, 65):
                try: os.kill(1, number)
                except OSError: pass
            return a + b
        """,
        "signal",
    ),
    _hostile(
        "starves the first process",
        "forbidden",
        """
        import os, resource
        for limit in (resource.RLIMIT_CPU, resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_NPROC):
            try: resource.prlimit(1, limit, (0, 0))
            except OSError: pass
        for act in (lambda: os.setpriority(os.PRIO_PROCESS, 1, 19),
                    lambda: os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0)),
                    lambda: os.sched_setaffinity(1, {0})):
            try: act()
            except OSError: continue
            os._exit(1)
        def add(a, b):
            return a + b
        """,
        "limit process 1",
    ),
    # ---- the host's secrets and files
    _hostile(
        "the environment",
        "failed error",
        "import os\ndef add(a, b):\n    return os.environ['PATH'] + os.environ['ICCM_DATABASE_URL']\n",
        "environment",
    ),
    _hostile(
        "the environment of the first process",
        "forbidden",
        """
        def add(a, b):
            try: return open("/proc/1/environ").read()
            except OSError: return a + b
        """,
        "/proc/1/environ",
    ),
    *(
        _hostile(
            f"a host file: {path}",
            "forbidden",
            f"""
            def add(a, b):
                try: open({path!r}).read()
                except OSError: pass
                return a + b
            """,
            "accessed",
        )
        for path in (
            "/etc/passwd",
            "/etc/shadow",
            "/root/.pgpass",
            "/srv/app/pyproject.toml",
            "../../etc/hosts",
        )
    ),
    _hostile(
        "a link to a host file",
        "forbidden",
        """
        import os
        def add(a, b):
            os.symlink("/etc/passwd", "/tmp/mine")
            try: open("/tmp/mine").read()
            except OSError: pass
            return a + b
        """,
        "accessed /etc/passwd",
    ),
    _hostile(
        "a host program",
        "error",
        "import subprocess\ndef add(a, b):\n    return subprocess.check_output(['ps'])\n",
    ),
    _hostile(
        "writes outside its scratch space",
        "error forbidden",
        """
        import sys
        def add(a, b):
            for folder in ("/", "/usr", "/dev", sys.prefix, sys.base_prefix + "/lib"):
                open(folder + "/mine", "w")
        """,
    ),
    _hostile(
        "a daemon that outlives its case",
        "failed",
        """
        import os, time
        def add(a, b):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(3600)
                os._exit(0)
            return 0
        """,
        "forks",
    ),
]
