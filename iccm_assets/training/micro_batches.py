"""Divide the examples of an optimizer step into forward passes.

The loss is a mean over the target tokens of the step, so the gradient is the same however its examples are
divided, but the time is not: a pass pads its examples to the longest one, and has a cost of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

# What a forward and backward pass costs besides its tokens, in tokens: 320 for the packaged model on a CPU,
# where dividing by half or twice as much is as fast. A large model reads its weights in each pass.
PASS_COST_TOKENS = 256
# The padded tokens of a pass for which a CPU has memory, with any model that it can train.
MIN_CPU_TOKENS = 2048


class Widths(NamedTuple):
    """Tokens of an example or a padded row; a causal model's labels are among its inputs and count 0."""

    inputs: int
    labels: int


class MicroBatch(NamedTuple):
    """The examples of one forward pass, by their positions in the step, and their padded widths."""

    rows: list[int]
    widths: Widths


def get_max_tokens(examples: Iterable[Widths], batch_size: int, *, on_cpu: bool) -> Widths:
    """Return the maximum padded tokens of a pass, on either side: those of ``batch_size`` longest examples.

    A pass never needs more memory than ``batch_size`` examples can; a CPU has some in any case.
    """
    minimum = MIN_CPU_TOKENS if on_cpu else 0
    return Widths(*(max(batch_size * max(widths), minimum) for widths in zip(*examples, strict=True)))


def divide_step(examples: Sequence[Widths], max_tokens: Widths) -> list[MicroBatch]:
    """Divide a step's examples, by length, into the passes that cost least together.

    An example that alone exceeds ``max_tokens`` is a pass of its own.
    """
    order = sorted(range(len(examples)), key=lambda row: (sum(examples[row]), row))
    cheapest: list[tuple[int, list[MicroBatch]]] = [(0, [])]  # of the n shortest examples
    for stop in range(1, len(order) + 1):
        options: list[tuple[int, list[MicroBatch]]] = []
        widths = Widths(0, 0)
        for start in reversed(range(stop)):
            widths = Widths(*map(max, widths, examples[order[start]]))
            rows = stop - start
            if options and any(rows * width > most for width, most in zip(widths, max_tokens, strict=True)):
                break
            cost, passes = cheapest[start]
            micro_batch = MicroBatch(order[start:stop], widths)
            options.append((cost + PASS_COST_TOKENS + rows * sum(widths), [*passes, micro_batch]))
        cheapest.append(min(options))
    return cheapest[-1][1]


def share_step(examples: Sequence[Widths], max_tokens: Widths, processes: int, rank: int) -> list[MicroBatch]:
    """Return the passes of one of several processes that compute the gradient of a step together (K4).

    The examples are dealt by length, so that all have about the same work. All make the same number of
    passes, which a model that is divided among them requires; a pass without ``rows`` counts nothing.
    """
    order = sorted(range(len(examples)), key=lambda row: (sum(examples[row]), row))
    shares = [order[start::processes] for start in range(processes)]
    passes = [divide_step([examples[row] for row in share], max_tokens) if share else [] for share in shares]
    idle = MicroBatch([], examples[order[0]])
    return [
        *[idle] * (max(map(len, passes)) - len(passes[rank])),
        *(MicroBatch([shares[rank][row] for row in part.rows], part.widths) for part in passes[rank]),
    ]
