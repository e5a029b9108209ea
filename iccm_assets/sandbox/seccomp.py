"""Build the kernel filter of the system calls that an implementation may not make.

The filter is classic BPF, assembled here: no library is needed and every rule can be read below. Most calls
pass. Two kinds do not:

- *denied* answers with an error, because honest library code makes these calls, too, and handles the
  error (a name lookup tries the nscd socket, ``uuid1`` looks for a network card), or with a success that
  changes nothing, where honest code checks none;
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
_DENY = ERRNO | errno.EPERM

NEW_NAMESPACE_FLAGS = 0x7E020000  # CLONE_NEWNS … CLONE_NEWNET
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
F_SETPIPE_SZ = 1031
AF_UNIX, AF_INET, AF_INET6 = 1, 2, 10
MAP_SHARED, MAP_ANONYMOUS, MAP_HUGETLB = 0x01, 0x20, 0x40000  # the first is also a bit of MAP_SHARED_VALIDATE
PRIO_PROCESS, IOPRIO_WHO_PROCESS = 0, 1
SOL_SOCKET, SO_SNDBUF, SO_RCVBUF = 1, 7, 8
SIGCHLD = 17
PR_SET_THP_DISABLE, PR_FUTEX_HASH = 41, 78

# struct seccomp_data: nr, arch, instruction pointer, six arguments of 64 bits (little endian).
_NR, _ARCH, _ARG0, _ARG1, _ARG2, _ARG3 = 0, 4, 16, 24, 32, 40
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
    "open_tree_attr": (467, 467),
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
# Sockets, memory that neither a size-limited tmpfs nor a process's own size shows, and other processes.
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
    "vmsplice": (278, 75),  # a pipe would hold pages that no process has any more
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
}
# Answered with "no such call", so that libraries use the older call.
_ABSENT: dict[str, tuple[int | None, int | None]] = {
    "clone3": (435, 435),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "landlock_create_ruleset": (444, 444),  # its rules are kernel memory without a limit
    "io_setup": (206, 0),  # from a limit of the whole machine
    "map_shadow_stack": (453, 453),
}
# Calls that name a process, by the required value of each argument: pid 0 is the caller; any other pid, any
# group and any user is denied. With these a case could starve the init process that watches it.
_ONLY_SELF: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "prlimit64": (302, 261, (0,)),
    "setpriority": (141, 140, (PRIO_PROCESS, 0)),
    "sched_setaffinity": (203, 122, (0,)),
    "sched_setscheduler": (144, 119, (0,)),
    "sched_setparam": (142, 118, (0,)),
    "sched_setattr": (314, 274, (0,)),
    "ioprio_set": (251, 30, (IOPRIO_WHO_PROCESS, 0)),
}
_SPECIAL: dict[str, tuple[int, int]] = {
    "clone": (56, 220),
    "mmap": (9, 222),
    "setsockopt": (54, 208),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "ioctl": (16, 29),
    "fcntl": (72, 25),
}
_OF_A_CASE: dict[str, tuple[int, int]] = {
    "rt_sigaction": (13, 134),
    "prctl": (157, 167),
    "setsid": (112, 157),
}
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7), "arm64": (1, 0xC00000B7)}


def is_supported() -> bool:
    """Whether there is a filter for this architecture."""
    return platform.machine() in _ARCHITECTURES


@cache
def build_filter(machine: str | None = None) -> bytes:
    """Build the filter for an architecture (this one by default), as ``bwrap --seccomp`` reads it."""
    column, _ = _ARCHITECTURES[machine or platform.machine()]
    code: list[bytes] = []
    for group, action in ((_FATAL, KILL_PROCESS), (_DENIED, _DENY), (_ABSENT, ERRNO | errno.ENOSYS)):
        for call_numbers in group.values():
            if (number := call_numbers[column]) is not None:
                code += [_instruction(_JUMP_EQUAL, number, 0, 1), _instruction(_RETURN, action)]
    bodies = [(_SPECIAL[name][column], body) for name, body in _special_bodies().items()]
    bodies += [(numbers[column], _only_self(values)) for *numbers, values in _ONLY_SELF.values()]
    return _assemble(machine, code, bodies)


@cache
def build_case_filter(machine: str | None = None) -> bytes:
    """Build the second filter, which the init process installs before any case runs.

    A case cannot change what happens when a child ends: the CPU time of one that nobody collects would count
    for nobody. The call succeeds and changes nothing, so handlers that Python calls still work.
    """
    column, _ = _ARCHITECTURES[machine or platform.machine()]
    allow, deny, nothing = (_instruction(_RETURN, action) for action in (ALLOW, _DENY, ERRNO))
    bodies = {
        "rt_sigaction": [
            _instruction(_LOAD, _ARG0),
            _instruction(_JUMP_EQUAL, SIGCHLD, 0, 5),
            _instruction(_LOAD, _ARG1),  # no new action: it is only read; a pointer has two halves
            _instruction(_JUMP_EQUAL, 0, 0, 2),
            _instruction(_LOAD, _ARG1 + 4),
            _instruction(_JUMP_EQUAL, 0, 1, 0),
            nothing,
            allow,
        ],
        # Kernel memory that no limit of a process shows: huge pages in parts, tables of locks.
        "prctl": [
            _instruction(_LOAD, _ARG0),
            _instruction(_JUMP_EQUAL, PR_SET_THP_DISABLE, 1, 0),
            _instruction(_JUMP_EQUAL, PR_FUTEX_HASH, 0, 1),
            deny,
            allow,
        ],
    }
    return _assemble(machine, [], [(_OF_A_CASE[name][column], body) for name, body in bodies.items()])


@cache
def build_session_filter(machine: str | None = None) -> bytes:
    """Build the third filter, which each case installs once it has a session of its own.

    It gets no other: the kernel may divide the processors among sessions before it does among processes, so
    that many of them would leave the sampler next to nothing. The call succeeds and changes nothing.
    """
    column, _ = _ARCHITECTURES[machine or platform.machine()]
    return _assemble(machine, [], [(_OF_A_CASE["setsid"][column], [_instruction(_RETURN, ERRNO)])])


def _assemble(machine: str | None, code: list[bytes], bodies: list[tuple[int, list[bytes]]]) -> bytes:
    """Put the checks of the architecture first, then ``code``, the body of each call, and the permission."""
    _, architecture = _ARCHITECTURES[machine or platform.machine()]
    kill, load = _instruction(_RETURN, KILL_PROCESS), _instruction(_LOAD, _NR)
    start = [_instruction(_LOAD, _ARCH), _instruction(_JUMP_EQUAL, architecture, 1, 0), kill, load]
    # The x32 calls of x86_64 are the same calls under other numbers.
    start += [_instruction(_JUMP_AT_LEAST, 0x40000000, 0, 1), kill]
    for number, body in bodies:
        code = [*code, _instruction(_JUMP_EQUAL, number, 0, len(body)), *body]
    return b"".join([*start, *code, _instruction(_RETURN, ALLOW)])


def _only_self(values: tuple[int, ...]) -> list[bytes]:
    """Allow a call whose first arguments are ``values``."""
    code: list[bytes] = []
    for position, value in enumerate(values):
        code += [
            _instruction(_LOAD, _ARG0 + 8 * position),
            _instruction(_JUMP_EQUAL, value, 1, 0),
            _instruction(_RETURN, _DENY),
        ]
    return [*code, _instruction(_RETURN, ALLOW)]


def _special_bodies() -> dict[str, list[bytes]]:
    """Build the rules that depend on an argument; each returns, so no later rule reads the argument."""
    allow, deny, kill, full, nothing = (
        _instruction(_RETURN, action) for action in (ALLOW, _DENY, KILL_PROCESS, ERRNO | errno.ENOMEM, ERRNO)
    )
    return {
        # Anonymous shared memory is in nobody's size once it is unmapped; reserved huge pages are in no size.
        "mmap": [
            _instruction(_LOAD, _ARG3),
            _instruction(_JUMP_ANY_BIT, MAP_HUGETLB, 2, 0),
            _instruction(_JUMP_ANY_BIT, MAP_ANONYMOUS, 0, 2),
            _instruction(_JUMP_ANY_BIT, MAP_SHARED, 0, 1),
            full,
            allow,
        ],
        # A socket holds up to its buffer's size, of which the default is counted.
        "setsockopt": [
            _instruction(_LOAD, _ARG1),
            _instruction(_JUMP_EQUAL, SOL_SOCKET, 0, 4),
            _instruction(_LOAD, _ARG2),
            _instruction(_JUMP_EQUAL, SO_SNDBUF, 1, 0),
            _instruction(_JUMP_EQUAL, SO_RCVBUF, 0, 1),
            nothing,
            allow,
        ],
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
