"""What several weeks came to: week by week, then the last version against the base (acceptance story 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from iccm_assets.cli.cycle import Week
from iccm_assets.cli.demo_report import slice_rows
from iccm_assets.settings import Settings

if TYPE_CHECKING:
    from iccm_assets.judging.comparison import Comparison
    from iccm_assets.judging.evaluation import Subject
    from iccm_assets.judging.verdict import GateEvidence
    from iccm_assets.learning.versions import ModelVersion
    from iccm_assets.models.seq import Answer, LoadedModel

COLOURS = {"gate_passed": "green", "gate_failed": "red", "failed": "red"}


@dataclass(frozen=True)
class Story:
    """The base and the last version in production, measured on the same items."""

    base: str
    last: str
    evidence: GateEvidence
    comparison: Comparison

    @property
    def holds(self) -> bool:
        """Another version than the base serves, it is better with evidence, and no slice was lost."""
        return self.base != self.last and self.comparison.holds

    @property
    def reason(self) -> str:
        """What is missing, or, when it holds, on what it stands."""
        if self.base == self.last:
            return f"{self.base} is still in production: no candidate passed the quality gate"
        return self.comparison.reason


def tell(engine: sa.Engine, settings: Settings, base: str) -> Story:
    """Compare the version in production with ``base`` on the canary set; scores that are stored are read."""
    from iccm_assets.judging import evaluation
    from iccm_assets.judging.comparison import compare
    from iccm_assets.judging.orchestra import orchestra_of
    from iccm_assets.learning import versions

    with engine.connect() as conn:
        serving = versions.get(conn, "production")
        subjects = [_subject(versions.get(conn, base), settings), _subject(serving, settings)]
    chosen, orchestra = evaluation.canary_items(settings), orchestra_of(settings)
    before, after = (evaluation.measure(engine, one, chosen, orchestra, settings) for one in subjects)
    evidence = evaluation.gate_evidence((after, before), chosen, (evaluation.Latency(), evaluation.Latency()))
    return Story(base, serving.version, evidence, compare(evidence, settings.evaluation))


def show(weeks: Sequence[Week], story: Story, console: Console) -> None:
    """The weeks, the traffic, the comparison by slice, and the outcome."""
    console.print(_weeks(weeks))
    told = [(f"[bold]week {week.number}[/]", line) for week in weeks for line in _sentences(week)]
    console.print(_indented(told))
    console.print(
        "[dim]at first: test pass rate of CET-D's own answers to the week's sessions; canary: pass rate"
        " on the canary set of the version in production at the week's end[/]"
    )
    console.print()
    console.print(_mix(weeks))
    console.print()
    console.print(_slices(story))
    console.print("[dim]better, worse: one-sided paired confidence that the mean changed that way[/]")
    _show_outcome(story, console)


def as_json(weeks: Sequence[Week], story: Story) -> dict[str, Any]:
    """The whole report as plain values."""
    found = story.comparison
    return {
        "weeks": [{**asdict(week), "outcome": week.outcome} for week in weeks],
        "base": story.base,
        "last": story.last,
        "holds": story.holds,
        "reason": story.reason,
        "comparison": asdict(found),
        "slices": slice_rows(story.evidence),
    }


def _subject(version: ModelVersion, settings: Settings) -> Subject:
    """A version whose weights are only loaded when an answer is missing from the stored ones."""
    from iccm_assets.judging.evaluation import Subject

    @cache
    def loaded() -> LoadedModel:
        from iccm_assets.models.seq import load_model, set_threads

        set_threads(settings.training.threads)
        return load_model(version.path)

    def answer(sources: Sequence[str], batch_size: int) -> list[Answer]:
        from iccm_assets.models.seq import generate

        limit = settings.evaluation.max_new_tokens
        return generate(loaded(), sources, max_new_tokens=limit, batch_size=batch_size)

    return Subject(version, answer)


def _weeks(weeks: Sequence[Week]) -> Table:
    drawn = Table(
        title="Weeks",
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    drawn.add_column("", justify="right")
    drawn.add_column("ends")
    for name in ("sessions", "new", "at first", "kept", "learned"):
        drawn.add_column(name, justify="right")
    drawn.add_column("quality gate")
    drawn.add_column("canary", justify="right")
    for week in weeks:
        first = week.funnel.first_answers
        drawn.add_row(
            str(week.number),
            f"{week.last:%b %d}",
            str(week.traffic.conversations),
            f"{week.traffic.new_domain / max(1, week.traffic.conversations):.0%}",
            "-" if first is None else f"{first:.3f}",
            str(week.funnel.filtered),
            str(week.learned_from.get("origin pool", 0)),
            _verdict(week),
            "-" if week.pass_rate is None else f"{week.pass_rate:.3f}",
        )
    return drawn


def _verdict(week: Week) -> str:
    colour = COLOURS.get(week.outcome, "yellow")
    gain = week.run.improvement if week.run else None
    word = week.outcome.removeprefix("gate_")
    return f"[{colour}]{word}[/]" + ("" if gain is None else f" {gain:+.3f}")


def _sentences(week: Week) -> list[str]:
    counts = week.learned_from
    lines = [f"{week.trigger}; {week.production} serves"]
    if counts:
        lines.append(
            f"learned from {counts.get('origin pool', 0)} new examples, {counts.get('origin pinned', 0)}"
            f" of earlier weeks, {counts.get('origin sample', 0)} of the base's sample"
        )
    if week.run and week.outcome != "gate_passed":
        lines.append(week.run.error or (week.run.notes or "").split("\n")[-1])
    late = f"{week.late} late acceptances of the week before arrived; " if week.late else ""
    lines.append(late + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in week.seconds.items()))
    return lines


def _indented(rows: Sequence[tuple[str, str]]) -> Table:
    """Lines under a label that is said once, wrapped beside it."""
    drawn = Table.grid(padding=(0, 2))
    said = ""
    for label, line in rows:
        drawn.add_row("" if label == said else label, escape(line))
        said = label
    return drawn


def _mix(weeks: Sequence[Week]) -> Table:
    from iccm_assets.reference.world import NEW_FAMILIES

    drawn = Table(title="Traffic by domain", title_justify="left", header_style="bold")
    drawn.add_column("domain")
    for week in weeks:
        drawn.add_column(f"week {week.number}", justify="right")
    old = [week.traffic.conversations - week.traffic.new_domain for week in weeks]
    drawn.add_row("known to the base model", *map(str, old))
    for name in NEW_FAMILIES:
        drawn.add_row(f"new: {name}", *(str(week.traffic.domains.get(name, 0) or "-") for week in weeks))
    return drawn


def _slices(story: Story) -> Table:
    from iccm_assets.cli.console import table

    return table(f"{story.base} (base) and {story.last} (last), by slice", slice_rows(story.evidence))


def _show_outcome(story: Story, console: Console) -> None:
    found = story.comparison
    p = "p < 0.001" if found.p < 0.001 else f"p = {found.p:.3f}"
    console.print(
        f"\n[bold]{story.last} against {story.base}[/] on {found.items} items: {found.before:.3f} →"
        f" {found.after:.3f}, difference {found.difference:+.3f}"
        f" (95 % confidence interval {found.low:+.3f} to {found.high:+.3f}, {p})",
        highlight=False,
    )
    colours = {"pass": "green", "fail": "red", "inconclusive": "yellow"}
    rules = (found.better, found.nothing_lost)
    said = [(f"  [{colours[rule.outcome]}]{rule.outcome}[/] {rule.name}", rule.reason) for rule in rules]
    console.print(_indented(said))
    if story.holds:
        console.print("\n[bold green]Better than the base with evidence, and no slice lost.[/]")
