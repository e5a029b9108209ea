"""Pass a response on while a model writes it, from one attempt at a time (G8)."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from iccm_assets.capture.sanitizing import Sanitizer
from iccm_assets.models.token_streaming import TextListener


class ResponseListener(Protocol):
    """What gets a response while it is written."""

    def begin(self, version: str) -> None:
        """The response comes from this version, and no other one will answer."""

    def add(self, text: str, tokens: int) -> None:
        """Take a piece of the response, and the number of tokens so far."""


class ResponseStream:
    """Passes a response on, and knows whether anything of it was: then no other arm may answer."""

    def __init__(self, listener: ResponseListener, deadline: float) -> None:
        self._listener, self._deadline = listener, deadline
        self._attempts = 0
        self.has_begun = False

    def open(self, version: str, timeout: asyncio.Timeout) -> TextListener:
        """Return a listener for one more attempt; those of earlier ones are silent from now on."""
        self._attempts += 1
        attempt, blank = self._attempts, ""

        def listen(text: str, tokens: int) -> None:
            nonlocal blank
            if attempt != self._attempts:
                return
            blank += Sanitizer().clean_text(text)
            if not self.has_begun and blank.strip():  # until then it may be an empty response
                # What has begun cannot fall back any more: it gets all the time there is.
                seconds = self._deadline - time.perf_counter()
                try:
                    timeout.reschedule(asyncio.get_running_loop().time() + seconds)
                except RuntimeError:  # it has just timed out
                    return
                self.has_begun = True
                self._listener.begin(version)
            if self.has_begun:
                self._listener.add(blank, tokens)
                blank = ""

        return listen
