"""Implementations that try to use more than the limits allow, each in a way that one process does not show.

All define ``f()``, which would return 1 if nothing stopped it.
"""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import dedent


@dataclass(frozen=True)
class LimitAttack:
    """What it tries, and the verdicts of the limit that ends it.

    ``estimated``: the kernel does not say how much it is, and the judge assumes the most that it may be.
    """

    name: str
    source: str
    verdicts: frozenset[str]
    estimated: bool = False


NATIVE = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
def native_map(size, protection, flags, descriptor=-1):
    address = libc.mmap(None, size, protection, flags, descriptor, 0)
    if address == 2**64 - 1:
        raise MemoryError("refused")
    return address
def fill(address, size, step):
    for offset in range(0, size, step):
        ctypes.memset(address + offset, 1, 1)
def read(address, size, step):
    for offset in range(0, size, step):
        ctypes.c_char.from_address(address + offset).value
"""


def _attack(
    name: str, verdicts: str, source: str, *, native: bool = False, estimated: bool = False
) -> LimitAttack:
    return LimitAttack(name, NATIVE * native + dedent(source), frozenset(verdicts.split()), estimated)


IGNORES_CHILDREN = """
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

MEMORY = [
    _attack(
        "shared memory whose pages are given back",
        "out_of_memory",
        """
        import mmap
        def f():
            block, piece = mmap.mmap(-1, 1 << 30), b"x" * (8 << 20)
            for at in range(0, 1 << 30, len(piece)):
                block[at:at + len(piece)] = piece
                block.madvise(mmap.MADV_DONTNEED, at, len(piece))
            return 1
        """,
    ),
    *(
        _attack(
            f"shared memory of the C library, {name}",
            "out_of_memory",
            f"""
            import os
            def f():
                {prepare}
                for _ in range(128):
                    address = native_map(8 << 20, 3, {flags}, {descriptor})
                    fill(address, 8 << 20, 4096)
                    libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(8 << 20), 4)
                return 1
            """,
            native=True,
        )
        for name, prepare, flags, descriptor in (
            ("anonymous", "pass", "0x21", "-1"),
            ("validated", "pass", "0x23", "-1"),
            ("huge pages", "pass", "0x40022", "-1"),
            ("of a device", "device = os.open('/dev/zero', os.O_RDWR)", "1", "device"),
        )
    ),
    _attack(
        "shared memory in many files that are deleted",
        "out_of_memory error crashed",
        """
        import mmap, os
        def f():
            for number in range(64):
                descriptor = os.open(f"/tmp/{number}", os.O_CREAT | os.O_RDWR)
                os.unlink(f"/tmp/{number}")
                os.ftruncate(descriptor, 8 << 20)
                block = mmap.mmap(descriptor, 8 << 20)
                for at in range(0, 8 << 20, 4096):
                    block[at] = 1
            return 1
        """,
    ),
    _attack(
        "a child whose first thread has ended",
        "out_of_memory",
        """
        import ctypes, os, threading, time
        def fill():
            time.sleep(0.1)
            blocks = []
            for _ in range(300):
                blocks.append(b"x" * (4 << 20))
                time.sleep(0.001)
            time.sleep(1)
            os._exit(0)
        def f():
            if os.fork() == 0:
                threading.Thread(target=fill).start()
                ctypes.CDLL(None).pthread_exit(None)
            os.wait()
            return 1
        """,
    ),
    _attack(
        "page tables of memory that is only read, in one process",
        "out_of_memory",
        """
        def f():
            size = 400 << 30
            read(native_map(size, 1, 0x4022), size, 2 << 20)
            return 1
        """,
        native=True,
    ),
    _attack(
        "page tables of memory that is only read, in many processes",
        "out_of_memory",
        """
        import os, time
        def f():
            for _ in range(60):
                if os.fork() == 0:
                    size = 17 << 28  # about the largest that a process may map
                    read(native_map(size, 1, 0x4022), size, 2 << 20)
                    time.sleep(60)
            time.sleep(8)
            return 1
        """,
        native=True,
    ),
    _attack(
        "mappings in many processes",
        "out_of_memory",
        """
        import os, time
        def f():
            address = native_map(60_000 * 4096, 0, 0x22)
            for offset in range(0, 60_000 * 4096, 8192):
                libc.mprotect(address + offset, 4096, 1)
            for _ in range(60):
                if os.fork() == 0:
                    time.sleep(60)
            time.sleep(3)
            return 1
        """,
        native=True,
        estimated=True,
    ),
    _attack(
        "full socket buffers",
        "out_of_memory",
        """
        import os, socket, time
        def f():
            for _ in range(20):
                if os.fork() == 0:
                    keep = []
                    for _ in range(100):
                        keep += socket.socketpair()
                        for end in keep[-2:]:
                            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
                            end.setblocking(False)
                            try:
                                while True: end.send(b"x" * 65536)
                            except OSError:
                                pass
                    time.sleep(60)
            time.sleep(3)
            return 1
        """,
        estimated=True,
    ),
    _attack(
        "the memory of a family",
        "out_of_memory",
        """
        import os, time
        def f():
            for _ in range(60):
                if os.fork() == 0:
                    block = b"x" * (16 << 20)
                    time.sleep(60)
            time.sleep(3)
            return 1
        """,
    ),
]

TIME = [
    *(
        _attack(
            f"children that nobody collects: {name}",
            "timeout",
            IGNORES_CHILDREN
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
    _attack(
        "grandchildren whose parents end at once",
        "timeout",
        IGNORES_CHILDREN
        + """
def f():
    for _ in range(60):
        run_child(lambda: os.fork() or burn(0.2))
    return 1
""",
    ),
    _attack(
        "children in sessions of their own",
        "timeout",
        IGNORES_CHILDREN
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
    _attack(
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
    _attack(
        "competes with six children of its own",
        "timeout",
        IGNORES_CHILDREN
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
    _attack(
        "makes itself unimportant and competes with children",
        "timeout",
        IGNORES_CHILDREN
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
]
