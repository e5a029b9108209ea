"""Reading a worker's messages line by whole line.

Dagster's own reader takes what it finds at the end of the file for a line: a long message that the worker has
half written is no JSON, the reader gives up, and the result of hours is lost. Drop this when `tail_file` of
the pinned Dagster waits for the end of the line.
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

PAUSE_SECONDS = 0.01


def whole_lines(path: str, over: Callable[[], bool]) -> Iterator[str]:
    """The lines of a file that grows, each once its end is there, until ``over`` and nothing more comes.

    What a killed writer has left without an end is no line.
    """
    begun = ""
    with open(path, encoding="utf-8") as file:
        while True:
            last = over()  # asked first: what was written before it became true is still read
            begun += file.readline()
            if begun.endswith("\n"):
                yield begun
                begun = ""
            elif last:
                return
            else:
                time.sleep(PAUSE_SECONDS)


class _WholeLines(dg.PipesFileMessageReader):
    def _reader_thread(self, handler: PipesMessageHandler, is_resource_complete: Event) -> None:
        try:
            for line in whole_lines(self._path, is_resource_complete.is_set):
                handler.handle_message(json.loads(line))
        except BaseException:
            handler.report_pipes_framework_exception(f"{type(self).__name__} reader thread", sys.exc_info())
            raise


class WholeMessages(dg.PipesTempFileMessageReader):
    """Dagster's reader of a temporary file, with nothing read by halves."""

    @contextmanager
    def read_messages(self, handler: PipesMessageHandler):
        with tempfile.TemporaryDirectory() as directory:
            reader = _WholeLines(
                str(Path(directory) / "messages"), include_stdio_in_messages=self._include_stdio_in_messages
            )
            with reader.read_messages(handler) as params:
                yield params


def workers() -> dg.PipesSubprocessClient:
    """The client that runs the platform's workers."""
    return dg.PipesSubprocessClient(message_reader=WholeMessages())
