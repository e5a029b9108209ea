"""Build the kernel filter of the system calls that an implementation may not make.

The filter is classic BPF, assembled here: no library is needed and every rule can be read below. Most calls
pass. Two kinds do not:

- *denied* answers with an error, because honest library code makes these calls, too, and handles the
  error (a name lookup tries the nscd socket, ``uuid1`` looks for a network card);
- *fatal* kills the process with SIGSYS, for what no Python program does by accident. The judge then knows
  that the case did something forbidden, whichever code in it did it. (J3)
"""

from __future__ import annotations

import errno
import platform
import struct
from functools import cache

KILL_PROCESS = 0x80000000
ALLOW = 0x7FFF0000
ERRNO = 0x00050000

NEW_NAMESPACE_FLAGS = 0x7E020000  # CLONE_NEWNS … CLONE_NEWNET
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
F_SETPIPE_SZ = 1031
AF_UNIX, AF_INET, AF_INET6 = 1, 2, 10

# struct seccomp_data: nr, arch, instruction pointer, six arguments of 64 bits (little endian).
_NR, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06

# name: (x86_64, aarch64); None where the architecture does not have it.
_FATAL: dict[str, tuple[int | None, int | None]] = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
}
# Sockets, and memory that neither a size-limited tmpfs nor a process's own size would show.
_DENIED: dict[str, tuple[int | None, int | None]] = {
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),  # a message queue would outlive its case
    "inotify_init": (253, None),  # the kernel limits them per user, across sandboxes
    "inotify_init1": (294, 26),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "syslog": (103, 116),
    "mbind": (237, 235),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
}
# Answered with "no such call", so that libraries use the older call.
_ABSENT: dict[str, tuple[int | None, int | None]] = {
    "clone3": (435, 435),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
}
# Calls that name a process, by the position of its pid: 0 is the caller, any other pid is denied.
# With these, and the same uid, a case could starve the init process that watches it.
_ONLY_SELF: dict[str, tuple[int, int, int]] = {
    "prlimit64": (302, 261, 0),
    "setpriority": (141, 140, 1),
    "sched_setaffinity": (203, 122, 0),
    "sched_setscheduler": (144, 119, 0),
    "sched_setparam": (142, 118, 0),
    "sched_setattr": (314, 274, 0),
    "ioprio_set": (251, 30, 1),
    "process_madvise": (440, 440, 0),
    "process_mrelease": (448, 448, 0),
}
_SPECIAL: dict[str, tuple[int, int]] = {
    "clone": (56, 220),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "ioctl": (16, 29),
    "fcntl": (72, 25),
}
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7), "arm64": (1, 0xC00000B7)}


def is_supported() -> bool:
    """Whether there is a filter for this architecture."""
    return platform.machine() in _ARCHITECTURES


@cache
def build_filter(machine: str | None = None) -> bytes:
    """Build the filter for an architecture (this one by default), as ``bwrap --seccomp`` reads it."""
    column, architecture = _ARCHITECTURES[machine or platform.machine()]
    code = [
        _instruction(_LOAD, _ARCH),
        _instruction(_JUMP_EQUAL, architecture, 1, 0),
        _instruction(_RETURN, KILL_PROCESS),
        _instruction(_LOAD, _NR),
        # The x32 calls of x86_64 are the same calls under other numbers.
        _instruction(_JUMP_AT_LEAST, 0x40000000, 0, 1),
        _instruction(_RETURN, KILL_PROCESS),
    ]
    for group, action in (
        (_FATAL, KILL_PROCESS),
        (_DENIED, ERRNO | errno.EPERM),
        (_ABSENT, ERRNO | errno.ENOSYS),
    ):
        for call_numbers in group.values():
            if (number := call_numbers[column]) is not None:
                code += [_instruction(_JUMP_EQUAL, number, 0, 1), _instruction(_RETURN, action)]
    deny, allow = _instruction(_RETURN, ERRNO | errno.EPERM), _instruction(_RETURN, ALLOW)
    for *numbers, argument in _ONLY_SELF.values():
        body = [_instruction(_LOAD, _ARG0 + 8 * argument), _instruction(_JUMP_EQUAL, 0, 1, 0), deny, allow]
        code += [_instruction(_JUMP_EQUAL, numbers[column], 0, len(body)), *body]
    for name, body in _special_bodies().items():
        code += [_instruction(_JUMP_EQUAL, _SPECIAL[name][column], 0, len(body)), *body]
    code.append(_instruction(_RETURN, ALLOW))
    return b"".join(code)


def _special_bodies() -> dict[str, list[bytes]]:
    """Build the rules that depend on an argument; each returns, so no later rule reads the argument."""
    allow, deny, kill = (
        _instruction(_RETURN, action) for action in (ALLOW, ERRNO | errno.EPERM, KILL_PROCESS)
    )
    return {
        "clone": [
            _instruction(_LOAD, _ARG0),
            _instruction(_JUMP_ANY_BIT, NEW_NAMESPACE_FLAGS, 0, 1),
            kill,
            allow,
        ],
        # Families that libraries try by themselves get an error; vsock, netlink, packet, … are fatal.
        "socket": [
            _instruction(_LOAD, _ARG0),
            _instruction(_JUMP_EQUAL, AF_UNIX, 3, 0),
            _instruction(_JUMP_EQUAL, AF_INET, 2, 0),
            _instruction(_JUMP_EQUAL, AF_INET6, 1, 0),
            kill,
            deny,
        ],
        # A connected pair reaches no other process; asyncio and multiprocessing need one.
        "socketpair": [_instruction(_LOAD, _ARG0), _instruction(_JUMP_EQUAL, AF_UNIX, 0, 1), allow, deny],
        "ioctl": [
            _instruction(_LOAD, _ARG1),
            _instruction(_JUMP_EQUAL, TIOCSTI, 1, 0),
            _instruction(_JUMP_EQUAL, TIOCLINUX, 0, 1),
            kill,
            allow,
        ],
        # Large pipes use up what all of a user's processes may have, and the pipes of others become small.
        "fcntl": [
            _instruction(_LOAD, _ARG1),
            _instruction(_JUMP_EQUAL, F_SETPIPE_SZ, 0, 1),
            deny,
            allow,
        ],
    }


def _instruction(code: int, value: int, when_true: int = 0, when_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, when_true, when_false, value)
