"""A Pipes message reader that reads complete lines only.

Dagster's own reader takes the end of the file for the end of a line: half of a long message is invalid JSON,
the reader stops, and the result of hours of training is lost. Remove this module when `tail_file` of the
pinned Dagster waits for the end of the line.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from dagster._core.pipes.context import PipesMessageHandler
    from dagster_pipes import PipesParams

POLL_INTERVAL_SECONDS = 0.01


def iter_complete_lines(path: str, is_complete: Callable[[], bool]) -> Iterator[str]:
    """Yield the complete lines of a growing file until ``is_complete()`` and nothing more is written.

    A last line that a killed writer left without its end is dropped.
    """
    line = ""
    with open(path, encoding="utf-8") as file:
        while True:
            last = is_complete()  # before reading: what was written before it became true is still read
            line += file.readline()
            if line.endswith("\n"):
                yield line
                line = ""
            elif last:
                return
            else:
                time.sleep(POLL_INTERVAL_SECONDS)


class _LineReader(dg.PipesFileMessageReader):
    def _reader_thread(self, handler: PipesMessageHandler, is_resource_complete: Event) -> None:
        try:
            for line in iter_complete_lines(self._path, is_resource_complete.is_set):
                handler.handle_message(json.loads(line))
        except BaseException:
            handler.report_pipes_framework_exception(f"{type(self).__name__} reader thread", sys.exc_info())
            raise


class LineBufferedMessageReader(dg.PipesTempFileMessageReader):
    """Dagster's temporary-file reader, on complete lines."""

    @contextmanager
    def read_messages(self, handler: PipesMessageHandler) -> Iterator[PipesParams]:
        with tempfile.TemporaryDirectory() as directory:
            reader = _LineReader(
                str(Path(directory) / "messages"), include_stdio_in_messages=self._include_stdio_in_messages
            )
            with reader.read_messages(handler) as params:
                yield params


def pipes_client() -> dg.PipesSubprocessClient:
    """The Pipes client that runs the platform's worker processes."""
    return dg.PipesSubprocessClient(message_reader=LineBufferedMessageReader())
