"""Implementations that try to use more memory than the limit allows, in ways that one process does not show.

All define ``f()``, which would return 1 if nothing stopped it. They are grouped by the way round the limit.
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


def build_attack(
    name: str, verdicts: str, source: str, *, native: bool = False, estimated: bool = False
) -> LimitAttack:
    return LimitAttack(name, NATIVE * native + dedent(source), frozenset(verdicts.split()), estimated)


ENDED_THREAD = """
import ctypes, os, threading, time
blocks = []
def fill(count, then=lambda: time.sleep(60)):
    time.sleep(0.1)
    for _ in range(count):
        blocks.append(b"x" * (4 << 20))
        time.sleep(0.001)
    then()
def end_first_thread(work, *args):
    threading.Thread(target=work, args=args).start()
    ctypes.CDLL(None).pthread_exit(None)
"""

SHARED_MAPPINGS = [
    build_attack(
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
        build_attack(
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
    build_attack(
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
]

PAGE_TABLES = [
    build_attack(
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
    build_attack(
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
            time.sleep(60)
            return 1
        """,
        native=True,
    ),
    build_attack(
        "page tables of one file that is mapped many times, in many processes",
        "out_of_memory",
        """
        import os, time
        def f():
            file = os.open("/tmp/file", os.O_CREAT | os.O_RDWR)
            os.ftruncate(file, 8 << 20)
            for _ in range(60):
                if os.fork() == 0:
                    for _ in range(540):
                        read(native_map(8 << 20, 1, 1, file), 8 << 20, 2 << 20)
                    time.sleep(60)
            time.sleep(60)
            return 1
        """,
        native=True,
    ),
    build_attack(
        "page tables that each fork copies",
        "out_of_memory",
        """
        import os, time
        def f():
            size = 17 << 28
            address = native_map(size, 1, 0x4022)
            read(address, size, 2 << 20)
            for protection in (3, 1):  # once writable, all of it is copied
                libc.mprotect(address, 4096, protection)
                if protection == 3: fill(address, 4096, 4096)
            for _ in range(60):
                if os.fork() == 0:
                    time.sleep(60)
            time.sleep(60)
            return 1
        """,
        native=True,
    ),
    build_attack(
        "page tables that the kernel fills in advance",
        "out_of_memory",
        """
        import os, time
        def f():
            for _ in range(60):
                if os.fork() == 0:
                    size = 17 << 28
                    address = native_map(size, 1, 0x4022)
                    for offset in range(0, size, 2 << 20):
                        libc.madvise(ctypes.c_void_p(address + offset), ctypes.c_size_t(4096), 22)
                    time.sleep(60)
            time.sleep(60)
            return 1
        """,
        native=True,
    ),
    build_attack(
        "page tables of a chain of processes",
        "out_of_memory",
        """
        import os, time
        def f():
            for _ in range(60):
                size = 17 << 28
                address = native_map(size, 1, 0x4022)
                read(address, size, 2 << 20)
                if os.fork(): break
                libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
            time.sleep(60)
            return 1
        """,
        native=True,
    ),
]

ENDED_FIRST_THREADS = [
    build_attack(
        "a child whose first thread has ended",
        "out_of_memory",
        ENDED_THREAD
        + """
def f():
    if os.fork() == 0:
        end_first_thread(fill, 300)
    os.wait()
    return 1
""",
    ),
    build_attack(
        "a child whose first thread ends as in C",
        "out_of_memory",
        ENDED_THREAD
        + """
def f():
    if os.fork() == 0:
        threading.Thread(target=fill, args=(300,)).start()
        ctypes.CDLL(None).thrd_exit(0)
    os.wait()
    return 1
""",
    ),
    build_attack(
        "the first thread of the case itself ends",
        "out_of_memory",
        ENDED_THREAD
        + """
def f():
    end_first_thread(fill, 300)
""",
    ),
    build_attack(
        "a family whose first threads have ended",
        "out_of_memory",
        ENDED_THREAD
        + """
def f():
    for _ in range(6):
        if os.fork() == 0:
            end_first_thread(fill, 50)
    time.sleep(60)
    return 1
""",
    ),
    build_attack(
        "threads that end after they start the next",
        "out_of_memory",
        ENDED_THREAD
        + """
def start_next(count):
    fill(50, lambda: threading.Thread(target=start_next, args=(count - 1,)).start())
def f():
    if os.fork() == 0:
        end_first_thread(start_next, 6)
    os.wait()
    return 1
""",
    ),
    build_attack(
        "children of a thread that is not the first",
        "out_of_memory",
        ENDED_THREAD
        + """
def start_children():
    for _ in range(6):
        if os.fork() == 0:
            fill(50)
    time.sleep(60)
def f():
    if os.fork() == 0:
        end_first_thread(start_children)
    time.sleep(60)
    return 1
""",
    ),
    build_attack(
        "processes that share the memory of one that has ended",
        "out_of_memory",
        ENDED_THREAD
        + """
libc = ctypes.CDLL(None)
stack = ctypes.create_string_buffer(1 << 16)
def share_and_end():
    fill(50, lambda: None)
    top = ctypes.c_void_p(ctypes.addressof(stack) + (1 << 16) - 64)
    libc.clone(ctypes.cast(libc.sleep, ctypes.c_void_p), top, 0x100 | 17, ctypes.c_void_p(60))
    os._exit(0)
def f():
    for _ in range(6):
        if os.fork() == 0:
            share_and_end()
    time.sleep(60)
    return 1
""",
    ),
]

FAMILIES = [
    build_attack(
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
            time.sleep(60)
            return 1
        """,
        native=True,
        estimated=True,
    ),
    build_attack(
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
            time.sleep(60)
            return 1
        """,
        estimated=True,
    ),
    *(
        build_attack(
            f"the memory of a family{name}",
            verdicts,
            f"""
            import os, threading, time
            def work():
                block = b"x" * (16 << 20)
                time.sleep(60)
            def f():
                for _ in range(60):
                    {start}
                time.sleep(60)
                return 1
            """,
        )
        for name, start, verdicts in (
            ("", "if os.fork() == 0: work()", "out_of_memory"),
            (" in sessions of their own", "if os.fork() == 0: os.setsid(); work()", "out_of_memory"),
            (" in a chain", "if os.fork(): work()", "out_of_memory"),
            # Of more processes than are allowed: whichever limit is reached first.
            (" in groups", "if os.fork() == 0: os.fork(); work()", "out_of_memory forbidden"),
            (" of threads", "threading.Thread(target=work, daemon=True).start()", "out_of_memory"),
        )
    ),
]
