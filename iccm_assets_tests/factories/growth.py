"""Measure how the time of a call grows with the size of what it reads."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

# Four times the size takes four times as long, on a busy machine up to six: the larger one meets more of what
# else happens. With n·√n it takes eight times as long, if quadratic sixteen.
GROWTH, MAX_FACTOR = 4, 6.0
ROUNDS = 15


def cpu_seconds(work: Callable[[], object], refusals: tuple[type[BaseException], ...] = ()) -> float:
    """The CPU time of a call without garbage collections, which depend on what else is alive.

    To refuse an input with one of ``refusals`` takes time, too.
    """
    gc.collect(0)
    gc.disable()
    started = time.process_time()
    try:
        work()
    except refusals:
        pass
    finally:
        elapsed = time.process_time() - started
        gc.enable()
    return elapsed


def assert_linear(
    seconds: Callable[[int], float],
    size: int,
    what: object = "",
    *,
    floor: float = 1e-3,
    cache_step: float = 0.0,
    reference: Callable[[int], float] | None = None,
) -> None:
    """Assert that ``GROWTH`` times ``size`` takes at most ``MAX_FACTOR`` times as long.

    The sizes take turns, so that a slow moment of the machine hits both, and the shortest time of each
    counts. Times below ``floor`` say nothing. ``cache_step``: what the larger size may take in addition
    because its syntax tree alone does not fit into the processor's caches. ``reference``: the time of a
    linear call that allocates as much. Where pages must first be mapped for the larger size, it grows by
    more than ``GROWTH``, too, and as much more is granted.
    """
    shortest = longest = shortest_reference = longest_reference = float("inf")
    for _ in range(ROUNDS):
        shortest, longest = min(shortest, seconds(size)), min(longest, seconds(GROWTH * size))
        granted = 1.0
        if reference is not None:
            shortest_reference = min(shortest_reference, reference(size))
            longest_reference = min(longest_reference, reference(GROWTH * size))
            granted = max(1.0, longest_reference / GROWTH / max(shortest_reference, floor / 10))
        if longest <= MAX_FACTOR * granted * max(shortest, floor) + cache_step:
            return
    raise AssertionError(f"{shortest:.4f} s, then {longest:.4f} s for {GROWTH} times as much: {what}")
