"""Report of several weeks: week by week, then the last version compared with the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from sqlalchemy import Engine

from iccm_assets.cli.console import make_grid, make_table
from iccm_assets.demo.demo_report import (
    CONFIDENCE_NOTE,
    OUTCOME_COLORS,
    make_slice_rows,
    summarize_slices,
)
from iccm_assets.demo.weekly_cycle import WeekResult
from iccm_assets.evaluation import paired_evaluation
from iccm_assets.evaluation.gate_evidence import GateEvidence
from iccm_assets.evaluation.version_comparison import VersionComparison, compare_versions
from iccm_assets.registry import versions
from iccm_assets.registry.model_store import fetch_model
from iccm_assets.registry.versions import ModelVersion
from iccm_assets.scoring.orchestra import load_orchestra_from_settings
from iccm_assets.settings import EvaluationSettings, Settings
from iccm_assets.simulation.language.families import NEW_FAMILIES

if TYPE_CHECKING:
    from iccm_assets.models.generation import GeneratedResponse, LoadedModel

STATUS_COLORS = {"gate_passed": "green", "gate_failed": "red", "failed": "red"}


@dataclass(frozen=True)
class ComparisonReport:
    """The base and the last version in production, measured on the same items."""

    base: str
    last: str
    set: str
    evidence: GateEvidence
    comparison: VersionComparison
    settings: EvaluationSettings

    @property
    def is_improvement(self) -> bool:
        """Whether a version other than the base serves and is better with evidence, without forgetting."""
        return self.base != self.last and self.comparison.is_improvement

    @property
    def reason(self) -> str:
        """The missing condition, or the evidence of the improvement."""
        if self.base == self.last:
            return f"{self.base} is still in production: no candidate passed the quality gate"
        return self.comparison.reason


def compare_with_base(engine: Engine, settings: Settings, base: str) -> ComparisonReport:
    """Compare the version in production with ``base`` on the audit set, which no decision has used."""
    with engine.connect() as conn:
        pair = [versions.get_version(conn, name) for name in ("production", base)]
    items, orchestra = paired_evaluation.load_audit_items(settings), load_orchestra_from_settings(settings)
    last, first = (
        paired_evaluation.evaluate_version(
            engine, _prepare_version(version, settings), items, orchestra, settings
        )
        for version in pair
    )
    evidence = paired_evaluation.build_gate_evidence(
        (last, first), items, (paired_evaluation.Latency(), paired_evaluation.Latency())
    )
    comparison = compare_versions(evidence, settings.evaluation)
    return ComparisonReport(base, pair[0].version, items.name, evidence, comparison, settings.evaluation)


def print_report(weeks: Sequence[WeekResult], comparison: ComparisonReport, console: Console) -> None:
    """Print the weeks, the traffic, the comparison by slice, and the outcome."""
    console.print(_week_table(weeks))
    console.print(
        _make_list([(f"[bold]week {week.number}[/]", line) for week in weeks for line in _describe(week)])
    )
    console.print(
        "[dim]first response: test pass rate of CET-D's first responses to the week's sessions; canary: pass"
        " rate on the canary set of the version in production at the week's end[/]"
    )
    console.print()
    console.print(_domain_table(weeks))
    console.print()
    rows = make_slice_rows(comparison.evidence, comparison.settings)
    measured_on = comparison.set.replace("_", " ")
    console.print(
        make_table(
            f"{comparison.base} (base) and {comparison.last} (last) on the {measured_on}",
            rows,
        )
    )
    console.print(CONFIDENCE_NOTE)
    console.print(f"  {summarize_slices(rows)}", highlight=False)
    _print_outcome(comparison, console)


def to_json(weeks: Sequence[WeekResult], comparison: ComparisonReport) -> dict[str, Any]:
    """The whole report as values for ``echo_json``."""
    return {
        "weeks": [{**asdict(week), "outcome": week.outcome} for week in weeks],
        "base": comparison.base,
        "last": comparison.last,
        "set": comparison.set,
        "is_improvement": comparison.is_improvement,
        "reason": comparison.reason,
        "comparison": asdict(comparison.comparison),
        "slices": make_slice_rows(comparison.evidence, comparison.settings),
    }


def _prepare_version(version: ModelVersion, settings: Settings) -> paired_evaluation.EvaluatedVersion:
    """A version whose weights are loaded only if a stored response is missing."""

    @cache
    def load() -> LoadedModel:
        from iccm_assets.models.generation import load_model, set_threads

        set_threads(settings.training.threads)
        return load_model(fetch_model(version.path, settings))

    def generate_responses(sources: Sequence[str], batch_size: int) -> list[GeneratedResponse]:
        from iccm_assets.models.generation import generate

        return generate(
            load(),
            sources,
            max_new_tokens=settings.evaluation.max_new_tokens,
            batch_size=batch_size,
            max_source_tokens=settings.training.max_source_tokens,
        )

    return paired_evaluation.EvaluatedVersion(version, generate_responses)


def _week_table(weeks: Sequence[WeekResult]) -> Table:
    rows = [
        {
            "": week.number,
            "ends": f"{week.last:%b %d}",
            "sessions": week.traffic.conversations,
            "new": f"{week.traffic.new_domain / max(1, week.traffic.conversations):.0%}",
            "first\nresponse": week.funnel["first_response_pass_rate"],
            "filtered": week.funnel["filtered"],
            "trained\non": week.trained_on.get("origin pool", 0),
            "quality gate": _format_outcome(week),
            "canary": week.pass_rate,
        }
        for week in weeks
    ]
    return make_table("Weeks", rows, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def _format_outcome(week: WeekResult) -> Text:
    gain = week.run.improvement if week.run else None
    change = "" if gain is None else f" {gain:+.3f}"
    return Text.assemble(
        (week.outcome.removeprefix("gate_"), STATUS_COLORS.get(week.outcome, "yellow")), change
    )


def _describe(week: WeekResult) -> list[str]:
    lines = [f"{week.trigger}; {week.production} serves"]
    if counts := week.trained_on:
        pool, pinned, sample = (counts.get(f"origin {name}", 0) for name in ("pool", "pinned", "sample"))
        lines.append(
            f"trained on {pool} new examples, {pinned} of earlier weeks, {sample} of the base's sample"
        )
    if week.run and week.outcome != "gate_passed":
        lines.append(week.run.error or (week.run.notes or "").split("\n")[-1])
    late = f"{week.late_sessions} late acceptances of the week before arrived; " if week.late_sessions else ""
    lines.append(late + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in week.seconds.items()))
    return lines


def _make_list(rows: Sequence[tuple[str, str]]) -> Table:
    """A table of lines with labels, each label only where it changes."""
    previous = ["", *(label for label, _ in rows)]
    return make_grid(
        [
            ("" if label == before else label, escape(line))
            for (label, line), before in zip(rows, previous, strict=False)
        ]
    )


def _domain_table(weeks: Sequence[WeekResult]) -> Table:
    known = [week.traffic.conversations - week.traffic.new_domain for week in weeks]
    columns = [f"week {week.number}" for week in weeks]
    rows: list[dict[str, Any]] = [
        {"domain": "known to the base model", **dict(zip(columns, known, strict=True))}
    ]
    for name in NEW_FAMILIES:
        counts = (week.traffic.domains.get(name, 0) or None for week in weeks)
        rows.append({"domain": f"new: {name}", **dict(zip(columns, counts, strict=True))})
    return make_table("Traffic by domain", rows)


def _print_outcome(report: ComparisonReport, console: Console) -> None:
    comparison = report.comparison
    p = "p < 0.001" if comparison.p_value < 0.001 else f"p = {comparison.p_value:.3f}"
    console.print(
        f"\n[bold]{report.last} against {report.base}[/] on {comparison.items} items:"
        f" {comparison.before:.3f} → {comparison.after:.3f}, difference {comparison.difference:+.3f}"
        f" (95 % confidence interval {comparison.low:+.3f} to {comparison.high:+.3f}, {p})",
        highlight=False,
    )
    console.print(
        _make_list(
            [
                (f"  [{OUTCOME_COLORS[rule.outcome]}]{rule.outcome}[/] {rule.name}", rule.reason)
                for rule in comparison.rules
            ]
        )
    )
    if report.is_improvement:
        console.print(
            "\n[bold green]Better than the base with evidence; no slice is proven lost"
            " (a loss below the detectable one cannot be shown).[/]"
        )
