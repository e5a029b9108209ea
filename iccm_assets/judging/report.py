"""What an evaluation looks like to a person: summary, forgetting matrix, Dagster metadata (E2)."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from math import isnan
from statistics import fmean
from typing import Any

import numpy as np

from iccm_assets.judging.evaluation import EvaluationOutcome, Measured
from iccm_assets.judging.statistics import confidence_above, quantile

FEWEST_HOLDOUT = 20


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
    """Before and after, one row per slice of the canary set: both versions and the difference."""
    return [
        {name: row[name] for name in ("slice", "items")}
        | {
            "production": row[outcome.production.version],
            "candidate": row[outcome.candidate.version],
            "change": row["change"],
        }
        for row in forgetting_matrix(outcome)
    ]


def forgetting_matrix(outcome: EvaluationOutcome) -> list[dict[str, Any]]:
    """Slice x version: mean pass rates of the ancestors measured on these items, production, the candidate.

    ``change`` is candidate minus production, ``forgotten`` how far the candidate is below the best version
    of the line (0 where it is the best); NaN where a slice has no score.
    """
    columns = {one.version: slice_means(one, outcome.slices) for one in versions_of(outcome)}
    counts = Counter(outcome.slices.values())
    rows = []
    for name in sorted(counts):
        rates = {version: means.get(name, float("nan")) for version, means in columns.items()}
        mine = rates[outcome.candidate.version]
        best = max((rate for rate in rates.values() if not isnan(rate)), default=float("nan"))
        row: dict[str, Any] = {"slice": name, "items": counts[name]}
        row |= {version: round(rate, 4) for version, rate in rates.items()}
        row["change"] = round(mine - rates[outcome.production.version], 4) + 0.0
        row["forgotten"] = round(best - mine, 4)
        rows.append(row)
    return rows


def versions_of(outcome: EvaluationOutcome) -> list[Measured]:
    """The matrix's columns, oldest first: production's ancestors, production, the candidate."""
    return [*outcome.ancestors, outcome.canary[1], outcome.canary[0]]


def latency_rows(outcome: EvaluationOutcome) -> list[dict[str, Any]]:
    """Latencies at batch 1 in milliseconds, per answer and per output token (E2)."""
    rows = []
    for index, version in enumerate((outcome.candidate, outcome.production)):
        found = outcome.latency[index]
        for what, values in (("answer", found.per_answer), ("output token", found.per_token)):
            rows.append(
                {"version": version.version, "ms per": what, "answers": len(values), **_quantiles(values)}
            )
    return rows


def metadata(outcome: EvaluationOutcome) -> dict[str, Any]:
    """The materialization's metadata in Dagster Pipes form; numbers become plots over time."""
    parts = summary(outcome)
    mine, theirs = parts["candidate"], parts["production"]
    verdict = outcome.verdict
    plain: dict[str, Any] = {
        "candidate_version": outcome.candidate.version,
        "production_version": outcome.production.version,
        "verdict": verdict.status,
        "in_a_sentence": in_a_sentence(outcome),
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
    shown: dict[str, Any] = {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in plain.items()
        if value is not None
    }
    rows = forgetting_matrix(outcome)
    told = {
        "verdict_in_words": _verdict_markdown(outcome),
        "forgetting_matrix": markdown_table(rows),
        "forgetting_heat_map": _embedded(heat_map(rows)),
        "latency": markdown_table(latency_rows(outcome)),
        "production_holdout": holdout_in_words(outcome),
    }
    return shown | {name: {"type": "md", "raw_value": text} for name, text in told.items()}


def in_a_sentence(outcome: EvaluationOutcome) -> str:
    """The verdict as one would say it: what was compared, what came out, and what follows."""
    verdict = outcome.verdict
    rates = (part["test_pass_rate"] for part in summary(outcome).values())
    mine, theirs = ("unknown" if rate is None else f"{rate:.3f}" for rate in rates)
    compared = (
        f"{outcome.candidate.version} scores {mine}, production ({outcome.production.version}) {theirs}"
    )
    reasons = "; ".join(rule.reason for rule in verdict.rules if rule.outcome == verdict.status)
    return {
        "pass": f"{compared}: better with evidence, it may be deployed.",
        "fail": f"{compared}: refused, because {reasons}.",
        "inconclusive": f"{compared}: no verdict, because {reasons}. Production stays.",
    }[verdict.status]


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as a Markdown table; empty for no rows."""
    if not rows:
        return "nothing was measured"
    names = list(rows[0])
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    lines += [" | ".join(str(row[name]) for name in names) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def heat_map(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The forgetting matrix as a PNG: pass rates by slice and version, beside them the candidate's change."""
    import matplotlib  # 0.5 s: only where a picture is drawn

    matplotlib.use("Agg")
    from matplotlib import pyplot

    versions = [name for name in rows[0] if name not in ("slice", "items", "change", "forgotten")]
    rates = np.array([[row[version] for version in versions] for row in rows], dtype=float)
    change = np.array([[row["change"]] for row in rows], dtype=float)
    labels = [f"{row['slice']} ({row['items']})" for row in rows]
    size = (2.4 + 0.72 * len(versions) + 1.1, 1.5 + 0.3 * len(rows))
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=size, layout="constrained", width_ratios=[len(versions), 1]
    )
    # Most rates lie close to 1: half of the colours for the upper tenth would be lost on a scale from 0.
    low = min(0.5, float(np.nanmin(rates))) if np.isfinite(rates).any() else 0.0
    _cells(left, rates, versions, "{:.2f}", cmap="viridis", vmin=low, vmax=1.0)
    _cells(right, change, ["change"], "{:+.3f}", cmap="RdBu", vmin=-0.15, vmax=0.15)
    left.set_yticks(range(len(rows)), labels)
    right.set_yticks([])
    left.set_title("test pass rate by slice and version", fontsize=9, loc="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    return buffer.getvalue()


def _cells(axes: Any, grid: Any, columns: Sequence[str], form: str, **colours: Any) -> None:
    """A coloured grid with its numbers in it; what was not measured is grey and says so."""
    image = axes.imshow(np.ma.masked_invalid(grid), aspect="auto", **colours)
    axes.set_facecolor("0.85")
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", fontsize=8)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(-0.5, len(columns)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(grid)), minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)
    for (y, x), value in np.ndenumerate(grid):
        known = np.isfinite(value)
        red, green, blue, _ = image.cmap(image.norm(value)) if known else (1, 1, 1, 1)
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
        text = form.format(value) if known else "–"
        axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")


def _embedded(png: bytes) -> str:
    return f"![forgetting matrix](data:image/png;base64,{base64.b64encode(png).decode()})"


def holdout_in_words(outcome: EvaluationOutcome) -> str:
    """Both versions on the production holdout: reported, never a verdict, not compared on few sessions."""
    mine, theirs = (
        {item: score.test_pass_rate for item, score in one.scores.items()} for one in outcome.holdout
    )
    pairs = [
        (rate, theirs[item]) for item, rate in mine.items() if rate is not None and theirs[item] is not None
    ]
    told = f"production holdout: {len(pairs)} of {len(mine)} recent sessions scored for both versions"
    if len(pairs) < FEWEST_HOLDOUT:
        return f"{told}; fewer than {FEWEST_HOLDOUT} are not compared"
    candidate, production = (np.array(rates) for rates in zip(*pairs, strict=True))
    change = candidate - production
    better, worse = (confidence_above((sign * change).tolist(), 0.0, -1.0) for sign in (1, -1))
    return (
        f"{told}: candidate {candidate.mean():.3f}, production {production.mean():.3f}, change "
        f"{change.mean():+.4f} (confidence {better:.3f} better, {worse:.3f} worse); no verdict rests on it"
    )


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
