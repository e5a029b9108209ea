"""Work of the demo that need not wait for its turn, in a thread, while the machine would be idle."""

from __future__ import annotations

import threading
from collections.abc import Callable

from rich.markup import escape

from iccm_assets.cli.console import err
from iccm_assets.errors import first_line


class BackgroundWork:
    """One call in a thread, from ``start`` on; ``finish`` starts it if it has not been, and waits for it."""

    def __init__(self, name: str, work: Callable[[], object]) -> None:
        self._work = work
        self._error: Exception | None = None
        # A daemon, so that Ctrl-C ends the command.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> BackgroundWork:
        """Start the work, unless it has been started."""
        if self._thread.ident is None:
            self._thread.start()
        return self

    def finish(self) -> None:
        """Wait for the end of the work, and raise its error."""
        self.start()
        while self._thread.is_alive():
            self._thread.join(0.5)  # a join without a timeout would block Ctrl-C
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:  # raised by `finish`
            self._error = error


class WorkAhead:
    """Work in the background that a later step finds done, and does itself where it is not.

    The work calls ``check`` between its parts, which ends it after ``stop``. An error is only shown: the
    later step meets it again, and reports it.
    """

    def __init__(self, name: str, work: Callable[[Callable[..., None]], object]) -> None:
        self._name, self._call = name, work
        self._stopping = threading.Event()
        self._work = BackgroundWork(name, self._run).start()

    def stop(self) -> None:
        """End the work after its present part."""
        self._stopping.set()
        self._work.finish()

    def check(self, *_: object) -> None:
        """Raise ``_Stopped`` after ``stop``."""
        if self._stopping.is_set():
            raise _Stopped

    def _run(self) -> None:
        try:
            self._call(self.check)
        except _Stopped:
            pass
        except Exception as error:
            err.print(f"[dim]{self._name}, ahead of time: {escape(first_line(error))}[/]", highlight=False)


class _Stopped(Exception):
    """The rest of the work is left to the step that needs it."""
