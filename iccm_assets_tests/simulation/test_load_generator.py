"""The load generator completes every task at its rate and loses no failure."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

import pytest

from iccm_assets.errors import InputError
from iccm_assets.simulation.developers.load_generator import LoadGenerator


def test_every_item_is_done_once_and_failures_are_kept() -> None:
    done: list[int] = []
    mutex = threading.Lock()

    def task(item: int) -> None:
        if item % 10 == 3:
            raise InputError(f"item {item}")
        with mutex:
            done.append(item)

    generator = LoadGenerator(range(50), task, workers=8).start()
    generator.join()
    assert sorted(done) == [number for number in range(50) if number % 10 != 3] and generator.completed == 45
    assert sorted(generator.failures) == sorted(
        InputError(f"item {number}").message for number in range(3, 50, 10)
    )


def test_an_unexpected_error_stops_the_generator_and_is_raised() -> None:
    def task(item: int) -> None:
        if item == 5:
            raise ZeroDivisionError("a mistake")

    generator = LoadGenerator(itertools.count(), task, workers=3).start()
    with pytest.raises(ZeroDivisionError, match="a mistake"):
        generator.join()
    assert generator.has_failed


def test_an_endless_generator_keeps_its_rate_until_it_is_stopped() -> None:
    moments: list[float] = []
    generator = LoadGenerator(
        itertools.count(), lambda item: moments.append(time.monotonic()), workers=4, rate=50
    )
    generator.start()
    while len(moments) < 40:
        time.sleep(0.01)
    generator.stop()
    generator.join()
    # Never faster than asked, but for the second of delay that may be made up for.
    assert 50 * (max(moments) - min(moments) + 1.0) >= len(moments) - 4


def test_a_new_rate_applies_to_waiting_threads() -> None:
    done: list[int] = []
    generator = LoadGenerator(itertools.count(), done.append, workers=20, rate=1 / 3600).start()
    deadline = time.monotonic() + 60
    while not done and time.monotonic() < deadline:
        time.sleep(0.01)
    generator.set_rate(200)
    while len(done) < 50 and time.monotonic() < deadline:
        time.sleep(0.01)
    generator.stop()
    generator.join()
    assert len(done) >= 50


def test_no_more_tasks_run_at_a_time_than_allowed_and_a_new_limit_applies_to_waiting_threads() -> None:
    running, highest, completed = 0, 0, 0
    mutex = threading.Lock()

    def task(_item: int) -> None:
        nonlocal running, highest, completed
        with mutex:
            running += 1
            highest = max(highest, running)
        time.sleep(0.02)
        with mutex:
            running -= 1
            completed += 1

    def wait_for(done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not done() and time.monotonic() < deadline:
            time.sleep(0.01)

    generator = LoadGenerator(itertools.count(), task, workers=12, max_running=2).start()
    wait_for(lambda: completed >= 20)
    assert highest == 2
    generator.set_max_running(8)
    wait_for(lambda: highest == 8)
    generator.stop()
    generator.join()
    assert highest == 8
