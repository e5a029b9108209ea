"""Sample what a case uses, so that its memory ends near the limit, also on a busy machine.

Between two samples memory grows as fast as the processors fill it. 60 processes of a case once reached 1.9
times the limit: the sampler waited for all of them before each of its turns. So a sample is cheap, many
processes get no more than the share of one, and all are stopped while shared pages are divided. (J3)
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from iccm_assets.sandbox.control_groups import ControlGroup
from iccm_assets.sandbox.launcher import ProcessHandle
from iccm_assets.sandbox.resource_usage import (
    ResourceUsage,
    descendant_pids,
    lower_priority,
    measure_mappings,
    measure_usage,
    own_cpu,
)

SAMPLE_INTERVAL_SECONDS = 0.025
FAST_SAMPLE_INTERVAL_SECONDS = 0.005  # near the memory limit
MAPPINGS_INTERVAL_SECONDS = 0.1
MAX_IMPORTANT_PROCESSES = 8  # of a case, that compete with all others of the machine at full priority
NICE_STEP = 1.25  # how many times as much a process gets at the next higher priority
GROUP_NICE = 5  # a third of the share of one, where the kernel divides the processors by session first
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass
class UsageSampler:
    """Samples the processes below an init process during one case; the next one is due after ``interval``.

    ``tmpfs`` are the writable folders of an isolated case, ``limit`` is in bytes of memory.
    """

    init_process: ProcessHandle
    tmpfs: tuple[str, ...]
    limit: int
    group: ControlGroup | None = None
    interval: float = SAMPLE_INTERVAL_SECONDS
    _memory: int = 0  # bytes, in the last sample
    _divided: ResourceUsage | None = None  # when shared pages were last divided
    _mappings: int = 0  # bytes, when they were last read
    _nice: int = -20  # of the processes with a lowered priority
    _lowered: set[int] = field(default_factory=set)
    _mappings_due: float = field(default_factory=lambda: time.monotonic() + MAPPINGS_INTERVAL_SECONDS)

    def sample(self) -> ResourceUsage:
        """Take a sample, and choose when to take the next one.

        The memory is measured last: the processes go on meanwhile. Reading mappings waits for a lock that a
        process of low priority may hold for a second; where there are many, they are stopped for it.
        """
        pids = descendant_pids(self.init_process.pid)
        many = len(pids) > MAX_IMPORTANT_PROCESSES
        self._share_priority(pids)
        due = time.monotonic() >= self._mappings_due
        if due and not many:
            self._read_mappings(pids[1:])
        usage = self._bound(self._measure())
        if usage.memory > self.limit or (due and many):
            usage = self._measure_stopped()
        if self.group:
            cpu = self.group.read_cpu() - own_cpu(usage.pids[0])
            memory = max(usage.memory, self.group.read_memory())
            usage = replace(usage, memory=memory, cpu=max(usage.cpu, cpu))
        growth, self._memory = usage.memory - self._memory, usage.memory
        near = usage.memory + max(usage.memory, 4 * growth) > self.limit
        self.interval = FAST_SAMPLE_INTERVAL_SECONDS if near else SAMPLE_INTERVAL_SECONDS
        return usage

    def send_signal(self, number: int, pids: list[int] | None = None) -> None:
        """Send a signal to processes of the case, to all by default."""
        for pid in descendant_pids(self.init_process.pid)[1:] if pids is None else pids:
            self.init_process.signal_in_namespace(pid, number)

    def _measure(self, *, divided: bool = False) -> ResourceUsage:
        return measure_usage(self.init_process.pid, self.tmpfs, self._mappings, divided=divided)

    def _bound(self, usage: ResourceUsage) -> ResourceUsage:
        """Bound the pages by those at the last division and the faults since then, of a page each."""
        if self._divided is None or not self.tmpfs:  # without isolation, pages may be huge
            return usage
        pages = self._divided.pages + (usage.faults - self._divided.faults) * PAGE_BYTES
        return replace(usage, memory=usage.memory - max(0, usage.pages - pages))

    def _measure_stopped(self) -> ResourceUsage:
        """Measure while all processes are stopped; divide shared pages where they would exceed the limit.

        Those that exceed it remain stopped.
        """
        stopped: list[int] = []
        while pids := [pid for pid in descendant_pids(self.init_process.pid)[1:] if pid not in stopped]:
            self.send_signal(signal.SIGSTOP, pids)
            stopped += pids
        self._read_mappings(stopped)
        usage = self._bound(self._measure())
        if usage.memory > self.limit:
            self._divided = usage = self._measure(divided=True)
        if usage.memory <= self.limit:
            self.send_signal(signal.SIGCONT, stopped)
        return usage

    def _read_mappings(self, pids: Sequence[int]) -> None:
        self._mappings = measure_mappings(pids, self.limit)
        self._mappings_due = time.monotonic() + MAPPINGS_INTERVAL_SECONDS

    def _share_priority(self, pids: list[int]) -> None:
        """Let many processes have less than the share of one, or the sampler would get next to none.

        The init process gets the same priority: ``imposed_wait`` compares with that.
        """
        if len(pids) <= MAX_IMPORTANT_PROCESSES:
            return
        if (nice := os.getpriority(os.PRIO_PROCESS, 0) + _nice_of_each(len(pids))) > self._nice:
            self._nice = nice
            self._lowered.clear()
        if new := [pid for pid in pids if pid not in self._lowered]:
            lower_priority(new, self._nice, GROUP_NICE, pids[0])
            self._lowered.update(new)


def _nice_of_each(count: int) -> int:
    """The priority at which so many have the share of one together."""
    return math.ceil(math.log(max(count, 1), NICE_STEP))
