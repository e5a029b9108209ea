"""Decide which queued prompts were sent.

A prompt that is typed while the assistant works is written to a queue. It is then sent in a message of its
own, or in the running turn (an attachment, in older versions only a note that it was absorbed), or it is
removed. Each prompt counts once. (C3)
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence

from iccm_assets.capture.claude_code.transcript_lines import TranscriptLine

_ABSORBED = "absorbed_mid_turn"


def mark_queued_prompts(lines: Sequence[TranscriptLine]) -> None:
    """Set the kind of the lines of a file that are about the queue: `queued` for a prompt, else `link`."""
    queues: dict[str, _Queue] = defaultdict(_Queue)
    for line in lines:
        queue = queues[line.session]
        if line.kind == "queue":
            line.kind = "link"
            queue.add_operation(line)
        elif line.kind in {"prompt", "queued"}:
            queue.add_prompt(line)
        elif line.kind == "answer" and line.text:
            queue.recent.clear()
    for queue in queues.values():
        for line in queue.waiting():
            _promote(line)


def _promote(line: TranscriptLine) -> None:
    """Let a line about the queue stand for the prompt that it holds."""
    line.kind, line.skipped = "queued", None


def _demote(line: TranscriptLine) -> None:
    """Let the other line for the same prompt stand for it."""
    line.kind, line.skipped = "link", "repeated"


class _Queue:
    """The prompts that wait, and the latest ones that were sent, by text."""

    def __init__(self) -> None:
        self.recent: dict[str, TranscriptLine] = {}
        self._waiting: dict[str, deque[TranscriptLine]] = defaultdict(deque)
        self._order: deque[TranscriptLine] = deque()
        self._settled: set[int] = set()

    def waiting(self) -> list[TranscriptLine]:
        """The prompts that were neither sent nor removed."""
        return [line for line in self._order if id(line) not in self._settled]

    def add_operation(self, line: TranscriptLine) -> None:
        """Apply an operation on the queue."""
        if line.operation == "enqueue":
            if line.text:
                self._waiting[line.text].append(line)
                self._order.append(line)
        elif line.operation == "popAll":
            self._settled.update(id(waiting) for waiting in self._order)
            self._order.clear()
        elif line.operation == "remove" and line.reason == _ABSORBED:
            if line.text and line.text not in self.recent:
                _promote(line)
                self.recent[line.text] = line
            self._settle(line.text)
        elif line.operation in {"dequeue", "remove"}:
            self._settle(line.text or self._oldest())

    def add_prompt(self, line: TranscriptLine) -> None:
        """Note that a prompt was sent; of two lines for one prompt, a message of its own counts first."""
        known = self.recent.get(line.text)
        self._settle(line.text)
        if known is not None and known.kind == "queued" and (line.kind == "prompt" or known.uuid is None):
            _demote(known)
        elif known is not None and line.kind == "queued":
            _demote(line)
            return
        if line.text:
            self.recent[line.text] = line

    def _oldest(self) -> str:
        while self._order and id(self._order[0]) in self._settled:
            self._order.popleft()
        return self._order[0].text if self._order else ""

    def _settle(self, text: str) -> None:
        """Take the oldest prompt of this text out of the queue."""
        waiting = self._waiting.get(text)
        while waiting:
            line = waiting.popleft()
            if id(line) not in self._settled:
                self._settled.add(id(line))
                return
