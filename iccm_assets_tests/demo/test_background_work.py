"""Work in the background is done once; what is ahead of its step may end early, and hides no other error."""

from __future__ import annotations

import threading

import pytest

from iccm_assets.demo.background_work import BackgroundWork, WorkAhead


def test_work_is_done_once_and_its_error_is_raised_at_the_end() -> None:
    calls: list[str] = []
    work = BackgroundWork("w", lambda: calls.append(threading.current_thread().name))
    work.start().start()
    work.finish()
    work.finish()
    assert calls == ["w"]
    never_started = BackgroundWork("w", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        never_started.finish()


def test_work_ahead_stops_after_its_present_part() -> None:
    parts: list[int] = []
    began, may_end = threading.Event(), threading.Event()

    def work(check: object) -> None:
        assert callable(check)
        for part in range(3):
            check()
            parts.append(part)
            began.set()
            may_end.wait(30)

    ahead = WorkAhead("parts", work)
    assert began.wait(30)
    threading.Timer(0.1, may_end.set).start()
    ahead.stop()
    assert parts == [0]


def test_an_error_of_work_ahead_is_shown_and_left_to_the_step_that_needs_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    WorkAhead("embeddings", lambda check: 1 / 0).stop()
    assert "embeddings, ahead of time: division by zero" in capsys.readouterr().err
