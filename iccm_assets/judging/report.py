"""What an evaluation looks like to a person: summary, forgetting matrix, Dagster metadata (E2)."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from iccm_assets.judging.evaluation import EvaluationOutcome, Measured
from iccm_assets.judging.statistics import quantile


def summary(outcome: EvaluationOutcome) -> dict[str, dict[str, Any]]:
    """Per version: means, worst slice, latencies (ms) and how many scores came from the cache."""
    return {role: _version_summary(outcome, index) for index, role in enumerate(("candidate", "production"))}


def slice_means(scores: Measured, slices: Mapping[str, str]) -> dict[str, float]:
    """Mean test pass rate of each slice, items without a score left out."""
    by_slice: dict[str, list[float]] = {}
    for item, score in scores.scores.items():
        if score.test_pass_rate is not None:
            by_slice.setdefault(slices[item], []).append(score.test_pass_rate)
    return {name: fmean(rates) for name, rates in sorted(by_slice.items())}


def slice_rows(outcome: EvaluationOutcome) -> list[dict[str, Any]]:
    """The forgetting matrix, long form: one row per slice with both versions and the difference."""
    candidate = slice_means(outcome.canary[0], outcome.slices)
    production = slice_means(outcome.canary[1], outcome.slices)
    counts = list(outcome.slices.values())
    return [
        {
            "slice": name,
            "items": counts.count(name),
            "production": round(production.get(name, float("nan")), 4),
            "candidate": round(candidate.get(name, float("nan")), 4),
            "change": round(candidate.get(name, float("nan")) - production.get(name, float("nan")), 4),
        }
        for name in sorted(set(candidate) | set(production))
    ]


def metadata(outcome: EvaluationOutcome) -> dict[str, Any]:
    """The materialization's metadata in Dagster Pipes form; numbers become plots over time."""
    parts = summary(outcome)
    mine, theirs = parts["candidate"], parts["production"]
    verdict = outcome.verdict
    plain: dict[str, Any] = {
        "candidate_version": outcome.candidate.version,
        "production_version": outcome.production.version,
        "verdict": verdict.status,
        "improvement": verdict.improvement,
        "candidate_test_pass_rate": mine["test_pass_rate"],
        "production_test_pass_rate": theirs["test_pass_rate"],
        "candidate_implementation_variance": mine["implementation_variance"],
        "candidate_worst_slice": mine["worst_slice"],
        "candidate_api_compatibility": mine["api_compatibility"],
        "candidate_latency_p95_ms": mine["latency_ms"]["p95"],
        "production_latency_p95_ms": theirs["latency_ms"]["p95"],
        "holdout_items": mine["holdout_items"],
        "candidate_holdout_test_pass_rate": mine["holdout_test_pass_rate"],
        "production_holdout_test_pass_rate": theirs["holdout_test_pass_rate"],
    }
    shown: dict[str, Any] = {name: value for name, value in plain.items() if value is not None}
    rows = slice_rows(outcome)
    shown["verdict_in_words"] = {"type": "md", "raw_value": _verdict_markdown(outcome)}
    shown["forgetting_matrix"] = {"type": "md", "raw_value": markdown_table(rows)}
    shown["forgetting_heat_map"] = {"type": "md", "raw_value": heat_map(rows, outcome)}
    return shown


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as a Markdown table; empty for no rows."""
    if not rows:
        return "nothing was measured"
    names = list(rows[0])
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    lines += [" | ".join(str(row[name]) for name in names) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def heat_map(rows: Sequence[Mapping[str, Any]], outcome: EvaluationOutcome) -> str:
    """Slice x version as a picture, embedded in Markdown."""
    import matplotlib  # 0.5 s: only where a picture is drawn

    matplotlib.use("Agg")
    from matplotlib import pyplot

    grid = [[row["production"], row["candidate"]] for row in rows]
    figure, axes = pyplot.subplots(figsize=(4.6, 0.36 * len(rows) + 1.2), layout="constrained")
    image = axes.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    axes.set_xticks([0, 1], [outcome.production.version, outcome.candidate.version])
    axes.set_yticks(range(len(rows)), [f"{row['slice']} ({row['items']})" for row in rows])
    for y, row in enumerate(grid):
        for x, value in enumerate(row):
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8)
    figure.colorbar(image, label="test pass rate")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    pyplot.close(figure)
    return f"![forgetting matrix](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})"


def _version_summary(outcome: EvaluationOutcome, index: int) -> dict[str, Any]:
    measured, holdout = outcome.canary[index], outcome.holdout[index]
    means = slice_means(measured, outcome.slices)
    worst = min(means, key=lambda name: (means[name], name)) if means else None
    scores = list(measured.scores.values())
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
        "latency_ms": _quantiles(outcome.latency[index].per_answer),
        "latency_ms_per_token": _quantiles(outcome.latency[index].per_token),
    }


def _quantiles(values: Sequence[float]) -> dict[str, float | None]:
    return {
        name: round(quantile(values, q), 4) if values else None
        for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    }


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _verdict_markdown(outcome: EvaluationOutcome) -> str:
    lines = [f"**{outcome.verdict.status}**", ""]
    lines += [f"- `{rule.name}` {rule.outcome}: {rule.reason}" for rule in outcome.verdict.rules]
    return "\n".join(lines)
