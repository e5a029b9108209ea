"""Report of a demo: funnel, training curve, pass rates by slice, lineage, locations."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy import Connection, Engine, select, text

from iccm_assets.cli.console import make_table
from iccm_assets.cli.run_job import JobResult
from iccm_assets.db import tables as t
from iccm_assets.evaluation.confidence_bounds import confidence_above, confidence_of_harm
from iccm_assets.evaluation.gate_evidence import GateEvidence, Verdict
from iccm_assets.evaluation.quality_gate import find_detectable_loss
from iccm_assets.registry import training_runs, versions
from iccm_assets.registry.model_store import fetch_model
from iccm_assets.registry.training_runs import TrainingRun
from iccm_assets.reporting.lineage import load_conversation_lineage
from iccm_assets.settings import EvaluationSettings, Settings

ALL_ITEMS = "all"
SPARKLINE_BLOCKS = "▁▂▃▄▅▆▇█"
OUTCOME_COLORS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}
CONFIDENCE_NOTE = (
    "[dim]better: one-sided paired confidence that the mean rose; worse: that it fell, as the gate"
    " computes it; detectable: the smallest loss of the slice that the gate would have called forgetting[/]"
)

# Only filtered days count: conversations during a rollout belong to later days.
_FUNNEL = """
with week as (
    select c.session_id from iccm.filtered_days d join iccm.conversations c
    on c."timestamp" >= d.day::timestamp at time zone 'UTC'
    and c."timestamp" < (d.day + 1)::timestamp at time zone 'UTC'
), accepted as (
    select r.test_pass_rate from week join iccm.requirements r
    on r.session_id = week.session_id and r.kind = 'accepted'
)
select
    (select count(*) from week) as captured,
    (select count(*) from accepted) as accepted,
    (select count(*) from accepted where test_pass_rate is not null) as scored,
    (select count(*) from iccm.filtered_conversations) as filtered,
    (select count(*) from iccm.phase4_training_data) as deduplicated,
    (select count(*) from iccm.training_run_examples where training_run_id = :id) as "selected for training"
"""
_ORIGINS = """
select r.test_suite_origin as origin, count(*) as texts
from iccm.filtered_days d
join iccm.conversations c on c."timestamp" >= d.day::timestamp at time zone 'UTC'
    and c."timestamp" < (d.day + 1)::timestamp at time zone 'UTC'
join iccm.requirements r on r.session_id = c.session_id and r.kind = 'accepted'
where r.test_pass_rate is not null
group by 1 order by 1
"""
_REASONS = """
select stage, reason, count(*) as conversations from iccm.phase4_rejections
group by stage, reason order by stage, count(*) desc
"""
_EXAMPLE = """
select min(conversation_id) from iccm.training_run_examples where training_run_id = :id and role = 'new'
"""


_MISSING_CAUSE = """
select reconstructor, reason, count(*) as texts from iccm.reconstructions
where status = 'missing' and not exists (select from iccm.requirements where test_pass_rate is not null)
group by reconstructor, reason
order by count(*) desc, reconstructor limit 1
"""


def find_missing_cause(conn: Connection) -> str | None:
    """Return the most frequent reason why reconstructors gave no implementation, if no text was scored."""
    row = conn.execute(text(_MISSING_CAUSE)).one_or_none()
    return (
        None if row is None else f"no text was scored; {row.reconstructor}: {row.reason} ({row.texts} texts)"
    )


def print_retrain(
    engine: Engine, training_run_id: int, retrain: JobResult, settings: EvaluationSettings, console: Console
) -> None:
    """Print the funnel, the training, the quality gate, an example's lineage and the outcome of a retrain."""
    with engine.connect() as conn:
        run = training_runs.get_run(conn, training_run_id)
        print_funnel(conn, run, console)
        if run.candidate_version:
            _print_training(conn, run.candidate_version, console)
            _print_gate(conn, run.candidate_version, settings, console)
            _print_lineage(conn, run, console)
        _print_outcome(conn, run, retrain, console)


def print_funnel(conn: Connection, run: TrainingRun | None, console: Console) -> None:
    """Print how many conversations came how far, and the reasons of the others."""
    counts = conn.execute(text(_FUNNEL), {"id": run.id if run else None}).mappings().one()
    reasons = conn.execute(text(_REASONS)).mappings().all()
    origins = conn.execute(text(_ORIGINS)).all()
    max_count = max(1, counts["captured"])
    funnel = Table(title="Funnel", title_justify="left", show_header=False)
    for name, count in counts.items():
        funnel.add_row(name, str(count), "█" * round(40 * count / max_count))
    console.print(funnel)
    if origins:
        counts_by_origin = ", ".join(f"{row.texts} {row.origin}" for row in origins)
        console.print(f"Scored by origin of their test suites: {counts_by_origin}", highlight=False)
    if reasons:
        console.print(make_table("Rejections", [dict(row) for row in reasons]))


def _print_training(conn: Connection, version: str, console: Console) -> None:
    candidate = versions.get_version(conn, version)
    history = json.loads((fetch_model(candidate.path) / "training_history.json").read_text(encoding="utf-8"))
    training, validation = (
        [point[key] for point in history if key in point] for key in ("loss", "validation_loss")
    )
    epochs = average_by_epoch(history)
    metrics = candidate.metrics.get("training", {})
    counts = ", ".join(f"{count} {name}" for name, count in metrics.get("counts", {}).items())
    best, epoch = metrics.get("validation_loss", float("nan")), metrics.get("best_epoch", 0)
    console.print(f"\n[bold]Training curve[/] of {version} ({counts})")
    for name, ends, losses, note in (
        ("training loss", epochs, training, f"means of the first and the last epoch; {len(training)} steps"),
        ("validation loss", validation, validation, f"best {best:.3f} in epoch {epoch:g}"),
    ):
        console.print(f"  {name:15}  {ends[0]:.3f} {_sparkline(losses)} {ends[-1]:.3f}  ({note})")


def average_by_epoch(history: Sequence[dict[str, Any]]) -> list[float]:
    """Return the mean training loss of each epoch: single steps of few examples vary too much."""
    epochs: dict[int, list[float]] = {}
    for point in history:
        if "loss" in point:
            epochs.setdefault(math.ceil(point["epoch"]), []).append(point["loss"])
    return [fmean(losses) for _, losses in sorted(epochs.items())]


def _print_gate(conn: Connection, version: str, settings: EvaluationSettings, console: Console) -> None:
    verdicts = t.gate_verdicts.c
    query = select(verdicts.verdict, verdicts.evidence).where(verdicts.version == version)
    row = conn.execute(query.order_by(verdicts.id.desc()).limit(1)).one_or_none()
    if row is None:
        return
    evidence = GateEvidence.from_json(row.evidence)
    console.print()
    title = f"Before and after: {evidence.production_version} (production) and {version} (candidate)"
    rows = make_slice_rows(evidence, settings)
    console.print(make_table(title, rows))
    console.print(CONFIDENCE_NOTE)
    console.print(f"  {summarize_slices(rows)}", highlight=False)
    for rule in Verdict.from_json(row.verdict).rules:
        color = OUTCOME_COLORS[rule.outcome]
        console.print(f"  [{color}]{rule.outcome:12}[/] {rule.name}: {escape(rule.reason)}", highlight=False)


def summarize_slices(rows: Sequence[dict[str, Any]]) -> str:
    """Say which slices moved most, and how many fell."""
    slices = sorted((row for row in rows if row["slice"] != ALL_ITEMS), key=lambda row: -row["change"])
    gains = [f"{row['slice']} {row['change']:+.3f}" for row in slices[:3] if row["change"] > 0]
    losses = [f"{row['slice']} {row['change']:+.3f}" for row in reversed(slices) if row["change"] < 0]
    more = f" and {len(losses) - 3} more" if len(losses) > 3 else ""
    return (
        f"Largest gains: {', '.join(gains) or 'none'}. {len(losses)} of {len(slices)} slices fell"
        f"{': ' if losses else ''}{', '.join(losses[:3])}{more}."
    )


def make_slice_rows(evidence: GateEvidence, settings: EvaluationSettings) -> list[dict[str, Any]]:
    """Rows per slice and for all items: both means, change, confidence of each direction, detectable loss."""
    slices: dict[str, list[Any]] = {}
    for item in evidence.items:
        if item.reliable:
            slices.setdefault(item.slice, []).append(item)
    all_items = [item for items in slices.values() for item in items]
    rows = []
    for name, items in [*sorted(slices.items()), (ALL_ITEMS, all_items)] if all_items else []:
        differences = [item.difference for item in items]
        rows.append(
            {
                "slice": name,
                "items": len(items),
                "before": fmean(item.production for item in items),
                "after": fmean(item.candidate for item in items),
                "change": fmean(differences),
                "better": confidence_above(differences, 0.0, -1.0),
                "worse": confidence_of_harm([-difference for difference in differences], 0.0, -1.0),
                "detectable": find_detectable_loss([item.production for item in items], settings),
            }
        )
    return rows


def _print_lineage(conn: Connection, run: TrainingRun, console: Console) -> None:
    example = conn.execute(text(_EXAMPLE), {"id": run.id}).scalar_one()
    if example is None:
        return
    lineage = load_conversation_lineage(conn, example)
    console.print(
        f"\n[bold]Lineage[/] of conversation {lineage.conversation_id} (session {lineage.session_id})"
    )
    console.print(
        f"  accepted {lineage.timestamp:%Y-%m-%d %H:%M} UTC, test pass rate {lineage.test_pass_rate:.3f},"
        f" variance {lineage.implementation_variance:.4f}, quality {lineage.quality_score:.3f}"
    )
    strength = "" if lineage.suite_strength is None else f", strength {lineage.suite_strength:.2f}"
    console.print(f"  evidence: {lineage.test_suite_origin} suite of kind {lineage.evidence}{strength}")
    for use in lineage.uses:
        console.print(f"  training run {use.training_run_id} used it as {use.role}: {use.status}")
    for version in lineage.versions:
        console.print(f"  {version.version} ({version.status}) was trained on it")


def _print_outcome(conn: Connection, run: TrainingRun, retrain: JobResult, console: Console) -> None:
    production = versions.get_production_version(conn)
    name = production.version if production else "nothing"
    console.print()
    if retrain.success and run.status == "gate_passed":
        gain = f", improvement {run.improvement:+.4f} on the canary set" if run.improvement else ""
        console.print(f"[bold green]The quality gate passed[/]{gain}; {name} is in production now.")
    else:
        reason = escape(run.error or run.notes or retrain.error)
        console.print(
            f"[bold yellow]Nothing was deployed ({run.status}), {name} stays in production[/]: {reason}"
        )


def print_locations(settings: Settings, summary: str, console: Console) -> None:
    """Print where the demo's data are, what to try next, and the summary."""
    database = settings.database_url or f"embedded, {settings.home / 'postgres'}"
    console.print("\n[bold]Locations[/]")
    console.print(f"  database  {database.split('@')[-1]}")
    console.print(f"  models    {settings.home / 'models'}")
    console.print(f"  datasets  {settings.home / 'datasets'}")
    console.print("\n[bold]What to try next[/]")
    for command, description in (
        ("make dev", "the Dagster UI, with these runs, materializations and lineage"),
        (".venv/bin/iccm status", "the version in production, and why"),
        (".venv/bin/iccm lineage VERSION", "the conversations a version was trained on"),
        (".venv/bin/iccm simulate", "another week of conversations; then .venv/bin/iccm retrain"),
    ):
        console.print(f"  {command:32} {description}", highlight=False)
    console.print(f"\n[bold]{escape(summary[:1].upper() + summary[1:])}[/]", highlight=False, soft_wrap=True)


def _sparkline(values: Sequence[float], width: int = 32) -> str:
    """Values as a line of blocks, averaged to at most `width` of them."""
    size = -(-len(values) // width)
    chunks = [values[start : start + size] for start in range(0, len(values), size)]
    means = [fmean(chunk) for chunk in chunks]
    low, high = min(means), max(means)
    scale = (len(SPARKLINE_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKLINE_BLOCKS[round((mean - low) * scale)] for mean in means)
