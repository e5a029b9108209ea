"""How often the degradation trigger is wrong, and how soon it is right (T2).

    python -m benchmarks.degradation [--lives 400]

A version serves for 28 days and is measured four times a day on the newest 200 held-out conversations of the
last 28 days; its baseline is the mean of those there were at its deployment. Pass rates are those of a model
that gets most texts right: 1 with probability q, else anything. In an unchanged world every emergency is a
false one; in the others q falls on the third day.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from iccm_assets.monitoring.degradation import unpaired_drop
from iccm_assets.registry.training_runs import TriggerFired
from iccm_assets.retraining.triggers import QualityMeasurement, decide_degradation
from iccm_assets.settings import TriggerSettings

DAYS, LOOKS, WINDOW, MOST = 28, 4, 28, 200
TRIGGERS = TriggerSettings()


def scores(rng: np.random.Generator, count: int, quality: float) -> np.ndarray:
    """Pass rates whose mean is ``quality``."""
    right = rng.random(count) < 2 * quality - 1
    return np.where(right, 1.0, rng.random(count))


def life(rng: np.random.Generator, a_day: int, before: float, after: float) -> int | None:
    """The look at which an emergency was asked for, or None."""
    history = scores(rng, WINDOW * a_day, before)
    base = list(history[-MOST:])
    for look in range(1, DAYS * LOOKS + 1):
        new = round(a_day * look / LOOKS) - round(a_day * (look - 1) / LOOKS)
        history = np.append(history, scores(rng, new, before if look <= 3 * LOOKS else after))
        newest = history[-min(MOST, WINDOW * a_day) :]
        drop = unpaired_drop({str(n): float(rate) for n, rate in enumerate(newest)}, base)
        measurement = QualityMeasurement(
            look, "v", "production_holdout", drop.n, drop.mean, drop.standard_error, drop.baseline_mean
        )
        if isinstance(decide_degradation(measurement, TRIGGERS), TriggerFired):
            return look
    return None


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Print shares and times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lives", type=int, default=400)
    options = parser.parse_args()
    rng = np.random.default_rng(11)
    say("held out a day | world | emergencies | median days until one")
    for a_day in (2, 10):
        for before, after in ((0.85, 0.85), (0.85, 0.75), (0.85, 0.65), (0.85, 0.55)):
            looks = [life(rng, a_day, before, after) for _ in range(options.lives)]
            emergencies = [look for look in looks if look is not None]
            days = f"{np.median(emergencies) / LOOKS - 3:.1f}" if emergencies and after < before else "-"
            say(f"{a_day:3} | {before:.2f} -> {after:.2f} | {len(emergencies) / options.lives:.3f} | {days}")


if __name__ == "__main__":
    main()
