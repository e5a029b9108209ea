"""Measure how often the degradation trigger is wrong, and how soon it is right.

    python -m benchmarks.degradation [--lives 400]

A version serves for 28 days and is measured four times a day on the newest 200 held-out conversations of the
last 28 days; its baseline is the mean of those at its deployment. Pass rates are those of a model
that is right on most texts: 1 with probability q, else uniform. Without a change every emergency is a
false alarm; otherwise q falls on the third day.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from iccm_assets.monitoring.degradation import unpaired_drop
from iccm_assets.registry.training_runs import TriggerFired
from iccm_assets.retraining.triggers import QualityMeasurement, decide_degradation
from iccm_assets.settings import TriggerSettings

DAYS, MEASUREMENTS_PER_DAY, WINDOW_DAYS, MAX_ITEMS = 28, 4, 28, 200
TRIGGERS = TriggerSettings()


def scores(rng: np.random.Generator, count: int, quality: float) -> np.ndarray:
    """Pass rates with mean ``quality``."""
    right = rng.random(count) < 2 * quality - 1
    return np.where(right, 1.0, rng.random(count))


def simulate(rng: np.random.Generator, per_day: int, before: float, after: float) -> int | None:
    """Return the measurement at which an emergency retrain is triggered, or None."""
    history = scores(rng, WINDOW_DAYS * per_day, before)
    base = list(history[-MAX_ITEMS:])
    for number in range(1, DAYS * MEASUREMENTS_PER_DAY + 1):
        new = round(per_day * number / MEASUREMENTS_PER_DAY) - round(
            per_day * (number - 1) / MEASUREMENTS_PER_DAY
        )
        history = np.append(
            history, scores(rng, new, before if number <= 3 * MEASUREMENTS_PER_DAY else after)
        )
        newest = history[-min(MAX_ITEMS, WINDOW_DAYS * per_day) :]
        drop = unpaired_drop({str(n): float(rate) for n, rate in enumerate(newest)}, base)
        measurement = QualityMeasurement(
            number, "v", "production_holdout", drop.n, drop.mean, drop.standard_error, drop.baseline_mean
        )
        if isinstance(decide_degradation(measurement, TRIGGERS), TriggerFired):
            return number
    return None


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Print rates and times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lives", type=int, default=400)
    options = parser.parse_args()
    rng = np.random.default_rng(11)
    say("held out a day | quality | emergencies | median days until one")
    for per_day in (2, 10):
        for before, after in ((0.85, 0.85), (0.85, 0.75), (0.85, 0.65), (0.85, 0.55)):
            triggered_at = [simulate(rng, per_day, before, after) for _ in range(options.lives)]
            emergencies = [number for number in triggered_at if number is not None]
            days = (
                f"{np.median(emergencies) / MEASUREMENTS_PER_DAY - 3:.1f}"
                if emergencies and after < before
                else "-"
            )
            say(
                f"{per_day:3} | {before:.2f} -> {after:.2f} | {len(emergencies) / options.lives:.3f} | {days}"
            )


if __name__ == "__main__":
    main()
