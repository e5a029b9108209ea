"""Inside a nursery: makes cells, which are sandboxes for one implementation each (J3).

Standard library only; sent into a sandbox of its own and never near an implementation. Starting bubblewrap
and an interpreter takes most of the time that judging a small suite takes, so the judge starts one of these
and has it fork: a cell is a fork in new user, pid, mount, network, ipc and uts namespaces with empty scratch
space, that then puts on the system call filter and becomes the driver. What a cell may do is what a sandbox
started by bubblewrap alone may do, and the judge looks at both in the same way before it uses them.

Spoken on a socket: one byte asks for a cell, the answer carries its process and the two ends of its pipes.
The next cell is made ahead, right after one was handed out, and let go again when nobody asks for it soon.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import ctypes
import os
import select
import sys

TYPE_CHECKING = False  # typing takes longer to import than everything else here together
if TYPE_CHECKING:
    from typing import Any, NoReturn

NEW_NAMESPACES = 0x20000 | 0x4000000 | 0x8000000 | 0x10000000 | 0x20000000 | 0x40000000
NOSUID_NODEV = 2 | 4
PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_CAPBSET_DROP = 22, 2, 24
CAPABILITY_VERSION_3 = 0x20080522
SPARE_SECONDS = 0.1
KEPT = 16  # descriptors below this one may be a cell's own

libc = ctypes.CDLL(None, use_errno=True)


class Filter(ctypes.Structure):
    """The kernel's ``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def must(result: int, doing: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{doing}: {os.strerror(number)}")


class Cell:
    """A cell that was made: its process and the judge's ends of its pipes."""

    def __init__(self, made: dict[str, Any]) -> None:
        requests, replies, birth = os.pipe(), os.pipe(), os.pipe()
        middle = os.fork()
        if middle == 0:
            become_cell(made, requests[0], replies[1], birth[1])
        for descriptor in (requests[0], replies[1], birth[1]):
            os.close(descriptor)
        self.descriptors = [requests[1], replies[0]]
        number = os.read(birth[0], 20)
        os.close(birth[0])
        if number.isdigit():
            self.descriptors.append(os.pidfd_open(int(number)))
        self.complaint = b"" if number.isdigit() else os.read(replies[0], 300)

    def discard(self) -> None:
        """Let it go: a driver ends when nobody can ask it anything."""
        for descriptor in self.descriptors:
            os.close(descriptor)

    def hand_over(self, judge: Any) -> None:
        packed = b"".join(one.to_bytes(4, sys.byteorder) for one in self.descriptors)
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)]
        judge.sendmsg([self.complaint or b"cell"], [] if self.complaint else ancillary)
        self.discard()


def become_cell(made: dict[str, Any], requests: int, replies: int, birth: int) -> NoReturn:
    """In a fork: enter new namespaces, and in a second one, which is their first process, be the driver."""
    try:
        must(libc.unshare(NEW_NAMESPACES), "unshare")
        _map_ids(made["proc"])
        for place, size in made["places"]:
            options = f"mode=1777,size={size}".encode()
            must(libc.mount(b"tmpfs", place.encode(), b"tmpfs", NOSUID_NODEV, options), "mount")
        os.chdir("/tmp")
        first = os.fork()
        if first:
            os.write(birth, str(first).encode())
            os._exit(0)
        control = _close_all_but(requests, replies)
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        _drop_capabilities()
        program = made["filter"]
        filter_ = Filter(len(program) // 8, program)
        must(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filter_), 0, 0), "seccomp")
        made["driver"].serve(made, control)
    except BaseException as error:
        os.write(replies, repr(error).encode()[:300])
    os._exit(1)


def _map_ids(proc: int) -> None:
    """Be the same user as before in the new user namespace, and allow no further one below it."""
    for name, text in (
        ("self/setgroups", "deny"),
        ("self/uid_map", "1000 1000 1"),
        ("self/gid_map", "1000 1000 1"),
        ("sys/user/max_user_namespaces", "0"),
    ):
        descriptor = os.open(name, os.O_WRONLY, dir_fd=proc)
        os.write(descriptor, text.encode())
        os.close(descriptor)


def _close_all_but(requests: int, replies: int) -> tuple[int, int]:
    control = os.dup2(requests, KEPT, False), os.dup2(replies, KEPT + 1, False)
    os.closerange(3, KEPT)
    os.closerange(KEPT + 2, 256)
    return control


def _drop_capabilities() -> None:
    capability = 0
    while libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    must(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")


def serve(made: dict[str, Any]) -> NoReturn:
    """Hand out cells until the judge goes."""
    judge = _socket.socket(fileno=0)
    made["proc"] = os.open(made["proc"], os.O_RDONLY | os.O_DIRECTORY)
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)  # the kernel collects the ended ones
    made["driver"].preload(made["preload"])
    made["driver"].settle()
    os.write(1, b"ready\n")
    asked = select.poll()
    asked.register(0, select.POLLIN)
    spare = None
    while True:
        if spare is not None and not asked.poll(SPARE_SECONDS * 1000):
            spare.discard()
            spare = None
        if not judge.recv(1):
            os._exit(0)
        (spare or Cell(made)).hand_over(judge)
        spare = Cell(made)
