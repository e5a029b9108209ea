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

from iccm_assets.cli.console import make_grid, table
from iccm_assets.cli.cycle import Week
from iccm_assets.cli.demo_report import CONFIDENCE_NOTE, OUTCOME_COLORS, slice_rows
from iccm_assets.judging import evaluation
from iccm_assets.judging.comparison import Comparison, compare
from iccm_assets.judging.orchestra import orchestra_of
from iccm_assets.judging.verdict import GateEvidence
from iccm_assets.learning import versions
from iccm_assets.learning.versions import ModelVersion
from iccm_assets.reference.world import NEW_FAMILIES
from iccm_assets.settings import Settings

if TYPE_CHECKING:
    from iccm_assets.models.seq import Answer, LoadedModel

STATUS_COLORS = {"gate_passed": "green", "gate_failed": "red", "failed": "red"}


@dataclass(frozen=True)
class Story:
    """The base and the last version in production, measured on the same items."""

    base: str
    last: str
    evidence: GateEvidence
    comparison: Comparison

    @property
    def is_improvement(self) -> bool:
        """Whether a version other than the base serves and is better with evidence, without forgetting."""
        return self.base != self.last and self.comparison.holds

    @property
    def reason(self) -> str:
        """What is missing, or the evidence of the improvement."""
        if self.base == self.last:
            return f"{self.base} is still in production: no candidate passed the quality gate"
        return self.comparison.reason


def tell(engine: Engine, settings: Settings, base: str) -> Story:
    """Compare the version in production with ``base`` on the canary set; reuses stored scores."""
    with engine.connect() as conn:
        pair = [versions.get(conn, name) for name in ("production", base)]
    items, orchestra = evaluation.canary_items(settings), orchestra_of(settings)
    last, first = (
        evaluation.measure(engine, _make_subject(version, settings), items, orchestra, settings)
        for version in pair
    )
    evidence = evaluation.gate_evidence((last, first), items, (evaluation.Latency(), evaluation.Latency()))
    return Story(base, pair[0].version, evidence, compare(evidence, settings.evaluation))


def show(weeks: Sequence[Week], story: Story, console: Console) -> None:
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
    console.print(table(f"{story.base} (base) and {story.last} (last), by slice", slice_rows(story.evidence)))
    console.print(CONFIDENCE_NOTE)
    _print_outcome(story, console)


def as_json(weeks: Sequence[Week], story: Story) -> dict[str, Any]:
    """The whole report as values for ``echo_json``."""
    return {
        "weeks": [{**asdict(week), "outcome": week.outcome} for week in weeks],
        "base": story.base,
        "last": story.last,
        "is_improvement": story.is_improvement,
        "reason": story.reason,
        "comparison": asdict(story.comparison),
        "slices": slice_rows(story.evidence),
    }


def _make_subject(version: ModelVersion, settings: Settings) -> evaluation.Subject:
    """A version whose weights are loaded only if a stored response is missing."""

    @cache
    def load() -> LoadedModel:
        from iccm_assets.models.seq import load_model, set_threads

        set_threads(settings.training.threads)
        return load_model(version.path)

    def generate_responses(sources: Sequence[str], batch_size: int) -> list[Answer]:
        from iccm_assets.models.seq import generate

        return generate(
            load(), sources, max_new_tokens=settings.evaluation.max_new_tokens, batch_size=batch_size
        )

    return evaluation.Subject(version, generate_responses)


def _week_table(weeks: Sequence[Week]) -> Table:
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
    return table("Weeks", rows, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def _format_outcome(week: Week) -> Text:
    gain = week.run.improvement if week.run else None
    change = "" if gain is None else f" {gain:+.3f}"
    return Text.assemble(
        (week.outcome.removeprefix("gate_"), STATUS_COLORS.get(week.outcome, "yellow")), change
    )


def _describe(week: Week) -> list[str]:
    lines = [f"{week.trigger}; {week.production} serves"]
    if counts := week.trained_on:
        pool, pinned, sample = (counts.get(f"origin {name}", 0) for name in ("pool", "pinned", "sample"))
        lines.append(
            f"trained on {pool} new examples, {pinned} of earlier weeks, {sample} of the base's sample"
        )
    if week.run and week.outcome != "gate_passed":
        lines.append(week.run.error or (week.run.notes or "").split("\n")[-1])
    late = f"{week.late} late acceptances of the week before arrived; " if week.late else ""
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


def _domain_table(weeks: Sequence[Week]) -> Table:
    known = [week.traffic.conversations - week.traffic.new_domain for week in weeks]
    columns = [f"week {week.number}" for week in weeks]
    rows: list[dict[str, Any]] = [
        {"domain": "known to the base model", **dict(zip(columns, known, strict=True))}
    ]
    for name in NEW_FAMILIES:
        counts = (week.traffic.domains.get(name, 0) or None for week in weeks)
        rows.append({"domain": f"new: {name}", **dict(zip(columns, counts, strict=True))})
    return table("Traffic by domain", rows)


def _print_outcome(story: Story, console: Console) -> None:
    comparison = story.comparison
    p = "p < 0.001" if comparison.p < 0.001 else f"p = {comparison.p:.3f}"
    console.print(
        f"\n[bold]{story.last} against {story.base}[/] on {comparison.items} items: {comparison.before:.3f} →"
        f" {comparison.after:.3f}, difference {comparison.difference:+.3f}"
        f" (95 % confidence interval {comparison.low:+.3f} to {comparison.high:+.3f}, {p})",
        highlight=False,
    )
    rules = (comparison.better, comparison.nothing_lost)
    console.print(
        _make_list(
            [
                (f"  [{OUTCOME_COLORS[rule.outcome]}]{rule.outcome}[/] {rule.name}", rule.reason)
                for rule in rules
            ]
        )
    )
    if story.is_improvement:
        console.print("\n[bold green]Better than the base with evidence, no forgetting.[/]")
