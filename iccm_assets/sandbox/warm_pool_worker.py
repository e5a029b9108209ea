"""The warm pool's worker: forks sandboxes for one implementation each.

Standard library only; sent into a sandbox of its own and never near an implementation. Starting bubblewrap
and an interpreter takes most of the time of a small suite, so the judge starts one worker that
forks: a forked sandbox has new user, pid, mount, network, ipc and uts namespaces with empty scratch
space, installs the system call filter and becomes the init process. It has the permissions of a sandbox
started by bubblewrap alone, and the judge inspects both in the same way before it uses them.

Protocol on a socket: one byte requests a sandbox, the reply carries its process and the two ends of its
pipes. A spare sandbox is forked right after one was sent, and closed when no request follows soon. (J3)
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
CONTROL_FD = 16  # the sandbox's pipe ends move to this descriptor and the next; the others are closed

libc = ctypes.CDLL(None, use_errno=True)


class Filter(ctypes.Structure):
    """The kernel's ``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def check_syscall(result: int, name: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


class ForkedSandbox:
    """A forked sandbox: its process and the judge's ends of its pipes."""

    def __init__(self, context: dict[str, Any]) -> None:
        requests, replies, pids = os.pipe(), os.pipe(), os.pipe()
        if os.fork() == 0:
            enter_sandbox(context, requests[0], replies[1], pids[1])
        for descriptor in (requests[0], replies[1], pids[1]):
            os.close(descriptor)
        self.descriptors = [requests[1], replies[0]]
        number = os.read(pids[0], 20)
        os.close(pids[0])
        if number.isdigit():
            self.descriptors.append(os.pidfd_open(int(number)))
        self.error = b"" if number.isdigit() else os.read(replies[0], 300)

    def close(self) -> None:
        """Close the pipes; an init process ends when its request pipe does."""
        for descriptor in self.descriptors:
            os.close(descriptor)

    def send_fds(self, judge: Any) -> None:
        packed = b"".join(descriptor.to_bytes(4, sys.byteorder) for descriptor in self.descriptors)
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)]
        judge.sendmsg([self.error or b"ok"], [] if self.error else ancillary)
        self.close()


def enter_sandbox(context: dict[str, Any], requests: int, replies: int, pids: int) -> NoReturn:
    """In a fork: enter new namespaces; a second fork is pid 1 in them and becomes the init process."""
    try:
        check_syscall(libc.unshare(NEW_NAMESPACES), "unshare")
        _map_ids(context["proc"])
        for folder, size in context["tmpfs"]:
            options = f"mode=1777,size={size}".encode()
            check_syscall(libc.mount(b"tmpfs", folder.encode(), b"tmpfs", NOSUID_NODEV, options), "mount")
        os.chdir("/tmp")
        pid = os.fork()
        if pid:
            os.write(pids, str(pid).encode())
            os._exit(0)
        control = os.dup2(requests, CONTROL_FD, False), os.dup2(replies, CONTROL_FD + 1, False)
        os.closerange(3, CONTROL_FD)
        os.closerange(CONTROL_FD + 2, 256)
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        _drop_capabilities()
        filter_ = Filter(len(context["filter"]) // 8, context["filter"])
        check_syscall(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filter_), 0, 0), "seccomp")
        context["init_process"].serve(context, control)
    except BaseException as error:
        os.write(replies, repr(error).encode()[:300])
    os._exit(1)


def _map_ids(proc: int) -> None:
    """Keep the same user in the new user namespace, and forbid nested ones."""
    for name, text in (
        ("self/setgroups", "deny"),
        ("self/uid_map", "1000 1000 1"),
        ("self/gid_map", "1000 1000 1"),
        ("sys/user/max_user_namespaces", "0"),
    ):
        descriptor = os.open(name, os.O_WRONLY, dir_fd=proc)
        os.write(descriptor, text.encode())
        os.close(descriptor)


def _drop_capabilities() -> None:
    capability = 0
    while libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    check_syscall(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")


def serve(context: dict[str, Any]) -> NoReturn:
    """Send forked sandboxes until the judge ends."""
    judge = _socket.socket(fileno=0)
    context["proc"] = os.open(context["proc"], os.O_RDONLY | os.O_DIRECTORY)
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)  # the kernel collects the ended children
    context["init_process"].preload(context["preload"])
    context["init_process"].limit_shared_memory()
    context["init_process"].warm_up()
    os.write(1, b"ready\n")
    requests = select.poll()
    requests.register(0, select.POLLIN)
    spare = None
    while True:
        if spare is not None and not requests.poll(SPARE_SECONDS * 1000):
            spare.close()
            spare = None
        if not judge.recv(1):
            os._exit(0)
        (spare or ForkedSandbox(context)).send_fds(judge)
        spare = ForkedSandbox(context)
