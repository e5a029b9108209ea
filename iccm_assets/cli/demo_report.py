"""The report a demo ends with: funnel, training curve, before and after by slice, lineage, places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from iccm_assets.cli.console import table
from iccm_assets.settings import Settings

if TYPE_CHECKING:
    import sqlalchemy as sa

    from iccm_assets.cli.launch import Launched
    from iccm_assets.judging.verdict import GateEvidence, Verdict
    from iccm_assets.learning.training_runs import TrainingRun

BARS = "▁▂▃▄▅▆▇█"

# Of the days that were filtered: what came during a rollout is material for later days.
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
    (select count(*) from iccm.phase4_training_data) as deduplicated
"""
_REASONS = """
select stage, reason, count(*) as conversations from iccm.phase4_rejections
group by stage, reason order by stage, count(*) desc
"""


def show_learning(engine: sa.Engine, training_run_id: int, retrain: Launched, console: Console) -> None:
    """What was learned from what, whether it is better, and what became of it."""
    from iccm_assets.learning import training_runs

    with engine.connect() as conn:
        run = training_runs.get(conn, training_run_id)
    _show_funnel(engine, run, console)
    if run.candidate_version:
        _show_training(engine, run.candidate_version, console)
        _show_gate(engine, run.candidate_version, console)
        _show_lineage(engine, run, console)
    _show_outcome(engine, run, retrain, console)


def _show_funnel(engine: sa.Engine, run: TrainingRun, console: Console) -> None:
    import sqlalchemy as sa

    with engine.connect() as conn:
        counts = dict(conn.execute(sa.text(_FUNNEL)).mappings().one())
        reasons = conn.execute(sa.text(_REASONS)).mappings().all()
        learned = conn.execute(
            sa.text("select count(*) from iccm.training_run_examples where training_run_id = :id"),
            {"id": run.id},
        ).scalar_one()
    largest = max(1, counts["captured"])
    drawn = Table(title="Funnel", title_justify="left", show_header=False)
    for name, count in {**counts, "selected for training": learned}.items():
        drawn.add_row(name, str(count), "█" * round(40 * count / largest))
    console.print(drawn)
    if reasons:
        console.print(table("Left out, and why", [dict(row) for row in reasons]))


def _show_training(engine: sa.Engine, version: str, console: Console) -> None:
    from iccm_assets.learning import versions

    with engine.connect() as conn:
        candidate = versions.get(conn, version)
    history = json.loads((Path(candidate.path) / "training_history.json").read_text(encoding="utf-8"))
    losses = [point["loss"] for point in history if "loss" in point]
    validation = [point["validation_loss"] for point in history if "validation_loss" in point]
    facts = candidate.metrics.get("training", {})
    counts = facts.get("counts", {})
    console.print(
        f"\n[bold]Training curve[/] of {version} ({', '.join(f'{v} {k}' for k, v in counts.items())})"
    )
    console.print(
        f"  training loss    {losses[0]:.3f} {_sparkline(losses)} {losses[-1]:.3f}  ({len(losses)} steps)"
    )
    console.print(
        f"  validation loss  {validation[0]:.3f} {_sparkline(validation)} {validation[-1]:.3f}"
        f"  (best {facts.get('validation_loss', float('nan')):.3f} in epoch {facts.get('best_epoch', 0):g})"
    )


def _show_gate(engine: sa.Engine, version: str, console: Console) -> None:
    found = _verdict(engine, version)
    if found is None:
        return
    verdict, evidence = found
    title = f"Before and after: {evidence.production_version} (production) and {version} (candidate)"
    console.print()
    console.print(table(title, slice_rows(evidence)))
    console.print("[dim]better, worse: one-sided paired confidence that the mean changed that way[/]")
    for rule in verdict.rules:
        colour = {"pass": "green", "fail": "red", "inconclusive": "yellow"}[rule.outcome]
        console.print(f"  [{colour}]{rule.outcome:12}[/] {rule.name}: {escape(rule.reason)}", highlight=False)


def slice_rows(evidence: GateEvidence) -> list[dict[str, Any]]:
    """Per slice, and for all items: how many, both means, the change, and how sure each direction is."""
    by_slice: dict[str, list[Any]] = {}
    for item in evidence.items:
        if item.reliable:
            by_slice.setdefault(item.slice, []).append(item)
    everything = [item for items in by_slice.values() for item in items]
    return [
        _slice_row(name, items) for name, items in [*sorted(by_slice.items()), ("all", everything)] if items
    ]


def _slice_row(name: str, items: list[Any]) -> dict[str, Any]:
    from iccm_assets.judging.statistics import confidence_above

    differences = [item.difference for item in items]
    return {
        "slice": name,
        "items": len(items),
        "before": sum(item.production for item in items) / len(items),
        "after": sum(item.candidate for item in items) / len(items),
        "change": sum(differences) / len(items),
        "better": confidence_above(differences, 0.0, -1.0),
        "worse": confidence_above([-one for one in differences], 0.0, -1.0),
    }


def _show_lineage(engine: sa.Engine, run: TrainingRun, console: Console) -> None:
    import sqlalchemy as sa

    from iccm_assets.store.lineage import conversation_lineage

    with engine.connect() as conn:
        example = conn.execute(
            sa.text(
                "select min(conversation_id) from iccm.training_run_examples"
                " where training_run_id = :id and role = 'new'"
            ),
            {"id": run.id},
        ).scalar_one()
        if example is None:
            return
        one = conversation_lineage(conn, example)
    console.print(f"\n[bold]Lineage[/] of conversation {one.conversation_id} (session {one.session_id})")
    console.print(
        f"  accepted {one.timestamp:%Y-%m-%d %H:%M} UTC, test pass rate {one.test_pass_rate:.3f},"
        f" variance {one.implementation_variance:.4f}, quality {one.quality_score:.3f}"
    )
    for use in one.uses:
        console.print(f"  training run {use.training_run_id} used it as {use.role}: {use.status}")
    for learner in one.versions:
        console.print(f"  {learner.version} ({learner.status}) learned from it")


def _show_outcome(engine: sa.Engine, run: TrainingRun, retrain: Launched, console: Console) -> None:
    from iccm_assets.learning import versions

    with engine.connect() as conn:
        serving = versions.production(conn)
    name = serving.version if serving else "nothing"
    console.print()
    if retrain.success and run.status == "gate_passed":
        gain = f", improvement {run.improvement:+.4f} on the canary set" if run.improvement else ""
        console.print(f"[bold green]The quality gate says pass[/]{gain}; {name} is in production now.")
    else:
        why = run.error or run.notes or retrain.error
        console.print(
            f"[bold yellow]Nothing was deployed ({run.status}), {name} stays in production[/]: {escape(why)}"
        )


def show_places(settings: Settings, seconds: float, console: Console) -> None:
    """Where the demo left its data, what to look at next, and how long it took."""
    console.print("\n[bold]Where everything lies[/]")
    embedded = f"embedded, {settings.home / 'postgres'}"
    console.print(f"  database  {(settings.database_url or embedded).split('@')[-1]}")
    console.print(f"  models    {settings.home / 'models'}")
    console.print(f"  datasets  {settings.home / 'datasets'}")
    console.print("\n[bold]What to try next[/]")
    for command, what in (
        ("make dev", "the Dagster UI, with these runs, materializations and lineage"),
        (".venv/bin/iccm status", "what is in production, and why"),
        (".venv/bin/iccm lineage VERSION", "which conversations taught a version"),
        (".venv/bin/iccm simulate", "another week of conversations; then .venv/bin/iccm retrain"),
    ):
        console.print(f"  {command:32} {what}", highlight=False)
    console.print(f"\nThe demo took {seconds:.0f} s.")


def _verdict(engine: sa.Engine, version: str) -> tuple[Verdict, GateEvidence] | None:
    import sqlalchemy as sa

    from iccm_assets.judging.verdict import GateEvidence, Verdict
    from iccm_assets.store import tables as t

    gv = t.gate_verdicts.c
    with engine.connect() as conn:
        row = conn.execute(
            sa.select(gv.verdict, gv.evidence).where(gv.version == version).order_by(gv.id.desc()).limit(1)
        ).one_or_none()
    return (Verdict.from_json(row.verdict), GateEvidence.from_json(row.evidence)) if row else None


def _sparkline(values: list[float], width: int = 32) -> str:
    """Values as a line of blocks, averaged down to at most `width` of them."""
    size = -(-len(values) // width)
    means = [sum(values[i : i + size]) / len(values[i : i + size]) for i in range(0, len(values), size)]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)
