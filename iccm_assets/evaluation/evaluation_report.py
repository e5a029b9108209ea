"""Evaluation report: summary, forgetting matrix and Dagster metadata (E2)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite, isnan, nan
from statistics import fmean
from typing import Any

import numpy as np

from iccm_assets.evaluation.confidence_bounds import confidence_above, quantile
from iccm_assets.evaluation.gate_evidence import Verdict
from iccm_assets.evaluation.paired_evaluation import EvaluationOutcome, VersionScores
from iccm_assets.reporting.formatting import (
    format_number,
    markdown_image,
    markdown_table,
    snake_case_keys,
)
from iccm_assets.reporting.plots import render_png

MIN_HOLDOUT_ITEMS = 20


def summarize_versions(outcome: EvaluationOutcome) -> dict[str, dict[str, Any]]:
    """Summarize each version: means, worst slice, latencies (ms) and the number of cached scores."""
    return {role: _version_summary(outcome, index) for index, role in enumerate(("candidate", "production"))}


def tracked_figures(outcome: EvaluationOutcome) -> dict[str, float]:
    """Return the figures of an evaluation that experiment trackers show beside the training, by name."""
    figures: dict[str, Any] = {"gate/improvement": outcome.verdict.improvement}
    for role, summary in summarize_versions(outcome).items():
        for name in ("test_pass_rate", "implementation_variance", "api_compatibility", "error_rate"):
            figures[f"gate/{role}_{name}"] = summary[name]
        for unit in ("latency_ms", "latency_ms_per_token"):
            figures |= {f"gate/{role}_{unit}_{name}": value for name, value in summary[unit].items()}
        figures |= {f"gate/{role}_slice/{name}": rate for name, rate in summary["slices"].items()}
    for rule in outcome.verdict.rules:
        if rule.name == "improvement":
            figures |= {f"gate/improvement_{name}": value for name, value in rule.numbers.items()}
    return {name: float(value) for name, value in figures.items() if value is not None and isfinite(value)}


def slice_means(scores: VersionScores, slices: Mapping[str, str]) -> dict[str, float]:
    """Return the mean test pass rate of each slice, without items that have no score."""
    by_slice: dict[str, list[float]] = defaultdict(list)
    for item, score in scores.scores.items():
        if score.test_pass_rate is not None:
            by_slice[slices[item]].append(score.test_pass_rate)
    return {name: fmean(rates) for name, rates in sorted(by_slice.items())}


def slice_rows(outcome: EvaluationOutcome) -> list[dict[str, Any]]:
    """Return one row per slice of the canary set: both versions and the difference."""
    return [
        {
            "slice": row["slice"],
            "items": row["items"],
            "production": row[outcome.production.version],
            "candidate": row[outcome.candidate.version],
            "change": row["change"],
        }
        for row in forgetting_matrix(outcome)
    ]


def forgetting_matrix(outcome: EvaluationOutcome) -> list[dict[str, Any]]:
    """Return mean pass rates by slice and version: production's ancestors, production, the candidate.

    ``change`` is candidate minus production, ``forgotten`` how far the candidate is below the best version
    (0 if it is the best); NaN where a slice has no score.
    """
    columns = (*outcome.ancestors, outcome.canary[1], outcome.canary[0])
    means = {scores.version: slice_means(scores, outcome.slices) for scores in columns}
    sizes = Counter(outcome.slices.values())
    return matrix_rows(means, sizes, outcome.candidate.version, outcome.production.version)


def matrix_rows(
    means: Mapping[str, Mapping[str, float]], sizes: Mapping[str, int], candidate: str, production: str
) -> list[dict[str, Any]]:
    """Return the rows of a forgetting matrix from each version's mean pass rates by slice."""
    rows: list[dict[str, Any]] = []
    for name, items in sorted(sizes.items()):
        rates = {version: by_slice.get(name, nan) for version, by_slice in means.items()}
        best = max((rate for rate in rates.values() if not isnan(rate)), default=nan)
        rows.append(
            {
                "slice": name,
                "items": items,
                **{version: round(rate, 4) for version, rate in rates.items()},
                "change": round(rates[candidate] - rates[production], 4) + 0.0,
                "forgotten": round(best - rates[candidate], 4),
            }
        )
    return rows


def latency_rows(outcome: EvaluationOutcome) -> list[dict[str, Any]]:
    """Return latencies at batch 1 in milliseconds, per response and per output token (E2)."""
    return [
        {"version": version.version, "ms_per": unit, "responses": len(values), **_quantiles(values)}
        for version, latency in zip((outcome.candidate, outcome.production), outcome.latency, strict=True)
        for unit, values in (("response", latency.per_response), ("output token", latency.per_token))
    ]


def build_metadata(outcome: EvaluationOutcome) -> dict[str, Any]:
    """Return the materialization's metadata in Dagster Pipes form; Dagster plots the numbers over time."""
    parts = summarize_versions(outcome)
    candidate, production = parts["candidate"], parts["production"]
    values: dict[str, Any] = {
        "candidate_version": outcome.candidate.version,
        "production_version": outcome.production.version,
        "verdict": outcome.verdict.status,
        "summary": summarize(outcome),
        "improvement": outcome.verdict.improvement,
        "candidate_test_pass_rate": candidate["test_pass_rate"],
        "production_test_pass_rate": production["test_pass_rate"],
        "candidate_implementation_variance": candidate["implementation_variance"],
        "candidate_worst_slice": candidate["worst_slice"],
        "candidate_api_compatibility": candidate["api_compatibility"],
        "candidate_latency_p95_ms": candidate["latency_ms"]["p95"],
        "production_latency_p95_ms": production["latency_ms"]["p95"],
        "holdout_items": candidate["holdout_items"],
        "candidate_holdout_test_pass_rate": candidate["holdout_test_pass_rate"],
        "production_holdout_test_pass_rate": production["holdout_test_pass_rate"],
        **snake_case_keys(outcome.holdout_evidence, "holdout_evidence"),
    }
    rows = forgetting_matrix(outcome)
    texts = {
        "verdict_rules": describe_rules(outcome.verdict),
        "forgetting_matrix": markdown_table(rows),
        "forgetting_heat_map": markdown_image(plot_forgetting_matrix(rows), "forgetting matrix"),
        "latency": markdown_table(latency_rows(outcome)),
        "production_holdout": describe_holdout(outcome),
    }
    return {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in values.items()
        if value is not None
    } | {name: {"type": "md", "raw_value": text} for name, text in texts.items()}


def summarize(outcome: EvaluationOutcome) -> str:
    """Describe the verdict in one line: what was compared, the result, and what follows."""
    candidate, production = (part["test_pass_rate"] for part in summarize_versions(outcome).values())
    return describe_verdict(
        outcome.verdict,
        (outcome.candidate.version, candidate),
        (outcome.production.version, production),
    )


def describe_verdict(
    verdict: Verdict, candidate: tuple[str, float | None], production: tuple[str, float | None]
) -> str:
    """Describe a verdict on two versions in one line; each is given by its name and mean pass rate."""
    compared = (
        f"{candidate[0]} scores {format_number(candidate[1], missing='unknown')},"
        f" production ({production[0]}) {format_number(production[1], missing='unknown')}"
    )
    if verdict.status == "pass":
        return f"{compared}: better with evidence, it may be deployed."
    reasons = "; ".join(rule.reason for rule in verdict.rules if rule.outcome == verdict.status)
    result = "failed" if verdict.status == "fail" else verdict.status
    return f"{compared}: {result}, because {reasons}. Production is unchanged."


def describe_rules(verdict: Verdict) -> str:
    """Return the status and each rule's outcome with its reason, as Markdown."""
    lines = (f"- `{rule.name}` {rule.outcome}: {rule.reason}" for rule in verdict.rules)
    return "\n".join([f"**{verdict.status}**", "", *lines])


def plot_forgetting_matrix(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Plot the forgetting matrix as a PNG: pass rates by slice and version, and the candidate's change."""
    from matplotlib.figure import Figure  # 0.5 s: only where a plot is drawn

    versions = [name for name in rows[0] if name not in ("slice", "items", "change", "forgotten")]
    rates = np.array([[row[version] for version in versions] for row in rows], dtype=float)
    change = np.array([[row["change"]] for row in rows], dtype=float)
    size = (2.4 + 0.72 * len(versions) + 1.1, 1.5 + 0.3 * len(rows))
    figure = Figure(size, dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[len(versions), 1])
    # Most rates are close to 1: on a scale from 0, half of the colors would be wasted.
    low = min(0.5, float(np.nanmin(rates))) if np.isfinite(rates).any() else 0.0
    _draw_cells(left, rates, versions, "{:.2f}", cmap="viridis", vmin=low, vmax=1.0)
    _draw_cells(right, change, ["change"], "{:+.3f}", cmap="RdBu", vmin=-0.15, vmax=0.15)
    left.set_yticks(range(len(rows)), [f"{row['slice']} ({row['items']})" for row in rows])
    right.set_yticks([])
    left.set_title("test pass rate by slice and version", fontsize=9, loc="left")
    return render_png(figure)


def _draw_cells(axes: Any, grid: Any, columns: Sequence[str], form: str, **image_options: Any) -> None:
    """Draw a colored grid with its numbers; cells without a measurement are gray."""
    image = axes.imshow(np.ma.masked_invalid(grid), aspect="auto", **image_options)
    axes.set_facecolor("0.85")
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", fontsize=8)
    axes.set_xticks(np.arange(-0.5, len(columns)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(grid)), minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    for (y, x), value in np.ndenumerate(grid):
        measured = np.isfinite(value)
        red, green, blue, _ = image.cmap(image.norm(value)) if measured else (1, 1, 1, 1)
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
        text = form.format(value) if measured else "–"
        axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")


def describe_holdout(outcome: EvaluationOutcome) -> str:
    """Describe both versions on the production holdout: reported only, and not compared on few sessions."""
    candidate, production = (measured.scores for measured in outcome.holdout)
    pairs = [(score.test_pass_rate, production[item].test_pass_rate) for item, score in candidate.items()]
    complete = np.array([pair for pair in pairs if None not in pair], dtype=float)
    scored = f"production holdout: {len(complete)} of {len(pairs)} recent sessions scored for both versions"
    if weaker := outcome.holdout_evidence.get("pytest"):
        scored += f" ({weaker} by pytest suites, the weaker evidence)"
    if len(complete) < MIN_HOLDOUT_ITEMS:
        return f"{scored}; fewer than {MIN_HOLDOUT_ITEMS} are not compared"
    means, change = complete.mean(axis=0), complete[:, 0] - complete[:, 1]
    better, worse = (confidence_above((sign * change).tolist(), 0.0, -1.0) for sign in (1, -1))
    return (
        f"{scored}: candidate {means[0]:.3f}, production {means[1]:.3f}, change {change.mean():+.4f}"
        f" (confidence {better:.3f} better, {worse:.3f} worse); it does not affect the verdict"
    )


def _version_summary(outcome: EvaluationOutcome, index: int) -> dict[str, Any]:
    measured, holdout, latency = outcome.canary[index], outcome.holdout[index], outcome.latency[index]
    means = slice_means(measured, outcome.slices)
    worst = min(means, key=lambda name: (means[name], name), default=None)
    scores = measured.scores.values()
    return {
        "test_pass_rate": _mean(score.test_pass_rate for score in scores),
        "implementation_variance": _mean(score.implementation_variance for score in scores),
        "api_compatibility": _mean(score.api_compatibility for score in scores),
        "error_rate": sum(score.test_pass_rate is None for score in scores) / max(1, len(scores)),
        "items": len(scores),
        "cached": measured.cached,
        "slices": {name: round(value, 6) for name, value in means.items()},
        "worst_slice": means[worst] if worst else None,
        "worst_slice_name": worst,
        "holdout_items": len(holdout.scores),
        "holdout_test_pass_rate": _mean(score.test_pass_rate for score in holdout.scores.values()),
        "latency_ms": _quantiles(latency.per_response),
        "latency_ms_per_token": _quantiles(latency.per_token),
    }


def _quantiles(values: Sequence[float]) -> dict[str, float | None]:
    return {
        name: round(quantile(values, q), 4) if values else None
        for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    }


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return fmean(present) if present else None
