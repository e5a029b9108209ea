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
SYS_CLONE = {"x86_64": 56, "aarch64": 220, "arm64": 220}
NOSUID_NODEV = 2 | 4
PR_CAPBSET_DROP = 24
CAPABILITY_HEADER = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
NO_CAPABILITIES = (ctypes.c_uint32 * 6)()
SPARE_SECONDS = 0.1
CONTROL_FD = 16  # the sandbox's pipe ends move to this descriptor and the next; the others are closed

libc = ctypes.PyDLL(None, use_errno=True)  # looked up once, before forks
clone, mount, capset = libc.syscall, libc.mount, libc.capset


def check_syscall(result: int, name: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def fork_into_namespaces() -> int:
    """Fork like ``os.fork``; the child is pid 1 of new namespaces. Raises ``OSError``."""
    ctypes.pythonapi.PyOS_BeforeFork()
    pid: int = clone(SYS_CLONE[os.uname().machine], NEW_NAMESPACES | _signal.SIGCHLD, 0, 0, 0, 0)
    (ctypes.pythonapi.PyOS_AfterFork_Parent if pid else ctypes.pythonapi.PyOS_AfterFork_Child)()
    check_syscall(pid, "clone")
    return pid


class ForkedSandbox:
    """A forked sandbox: its process and the judge's ends of its pipes."""

    def __init__(self, context: dict[str, Any]) -> None:
        requests, replies = os.pipe(), os.pipe()
        self.descriptors, self.error = [requests[1], replies[0]], b""
        try:
            pid = fork_into_namespaces()
            if pid == 0:
                enter_sandbox(context, requests[0], replies[1])
            self.descriptors.append(os.pidfd_open(pid))
        except OSError as error:
            self.error = repr(error).encode()[:300]
        for descriptor in (requests[0], replies[1]):
            os.close(descriptor)

    def close(self) -> None:
        """Close the pipes; an init process ends when its request pipe does."""
        for descriptor in self.descriptors:
            os.close(descriptor)

    def send_fds(self, judge: Any) -> None:
        packed = b"".join(descriptor.to_bytes(4, sys.byteorder) for descriptor in self.descriptors)
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)]
        judge.sendmsg([self.error or b"ok"], [] if self.error else ancillary)
        self.close()


def enter_sandbox(context: dict[str, Any], requests: int, replies: int) -> NoReturn:
    """In the fork: give up what only a worker needs, and become the init process."""
    try:
        _map_ids(context["proc"])
        for folder, options in context["tmpfs"]:
            check_syscall(mount(b"tmpfs", folder, b"tmpfs", NOSUID_NODEV, options), "mount")
        os.chdir("/tmp")
        control = os.dup2(requests, CONTROL_FD, False), os.dup2(replies, CONTROL_FD + 1, False)
        os.closerange(3, CONTROL_FD)
        os.closerange(CONTROL_FD + 2, 256)
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        _drop_capabilities(context["sandbox_prctl"])
        context["sandbox_prctl"].install_filter()
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


def _drop_capabilities(prctl: Any) -> None:
    capability = 0
    while prctl.call(PR_CAPBSET_DROP, capability) == 0:
        capability += 1
    check_syscall(capset(CAPABILITY_HEADER, NO_CAPABILITIES), "capset")


def serve(context: dict[str, Any]) -> NoReturn:
    """Send forked sandboxes until the judge ends."""
    judge = _socket.socket(fileno=0)
    context["proc"] = os.open(context["proc"], os.O_RDONLY | os.O_DIRECTORY)
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)  # the kernel collects the ended children
    context["tmpfs"] = [(name.encode(), f"mode=1777,size={size}".encode()) for name, size in context["tmpfs"]]
    context["sandbox_prctl"] = context["init_process"].PreparedPrctl(context["filter"])
    context["init_process"].prepare_filters(context)
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
