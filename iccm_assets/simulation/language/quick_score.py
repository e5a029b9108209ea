"""Score requirements in this process, for building and testing the simulation only.

It runs code that the builtin reconstructors wrote and nothing else, so it needs no sandbox; the platform's
own scores come from ``scoring``.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping
from typing import Any

from iccm_assets.simulation.reconstructors import RECONSTRUCTORS, ReconstructionError


def measure_pass_rate(code: str, suite: Mapping[str, Any]) -> float:
    """Return the fraction of a suite's cases that a reconstruction passes."""
    namespace: dict[str, Any] = {}
    try:
        exec(code, namespace)  # written by a reconstructor, see above
    except SyntaxError:  # odd requirements, e.g. a parameter named twice, make odd code
        return 0.0
    cases = suite["cases"]
    return sum(_passes(namespace, case) for case in cases) / len(cases)


def _passes(namespace: dict[str, Any], case: Mapping[str, Any]) -> bool:
    target = namespace.get(case.get("new") or case["call"])
    if "steps" not in case:
        return _meets(target, case)
    try:
        instance = target(*copy.deepcopy(case["args"]))  # type: ignore[misc]
    except Exception:  # any exception is an outcome here
        return False
    return all(_meets(getattr(instance, step["call"], None), step) for step in case["steps"])


def _meets(function: Any, case: Mapping[str, Any]) -> bool:
    if not callable(function):
        return False
    try:
        value = function(*copy.deepcopy(case["args"]))
    except Exception as error:  # any exception is an outcome here
        return type(error).__name__ == case.get("raises")
    if "expect" not in case:
        return "raises" not in case
    return type(value) is type(case["expect"]) and bool(value == case["expect"])


def score_requirements(requirements: str, suite: Mapping[str, Any]) -> tuple[float, float]:
    """Return mean and population variance of the pass rates over the builtin reconstructors.

    A reconstructor that can write nothing counts 0, as content that cannot be scored does (R11).
    """
    rates = []
    for reconstruct in RECONSTRUCTORS.values():
        try:
            rates.append(measure_pass_rate(reconstruct(requirements), suite))
        except ReconstructionError:
            rates.append(0.0)
    return statistics.fmean(rates), statistics.pvariance(rates)
