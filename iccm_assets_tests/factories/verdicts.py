"""Ten candidates with evidence of every kind, and their verdicts as the evaluation worker stores them."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.evaluation.gate_evidence import GateEvidence, ItemEvidence
from iccm_assets.evaluation.quality_gate import evaluate_gate
from iccm_assets.settings import EvaluationSettings

STEADY = tuple(2.0 + (i % 7) / 20 for i in range(40))
Pairs = list[tuple[float | None, float | None]]


def items(pairs: Pairs, slice_: str = "numbers", **changes: Any) -> tuple[ItemEvidence, ...]:
    values: dict[str, Any] = {"candidate_variance": 0.01, "production_variance": 0.01, **changes}
    return tuple(ItemEvidence(f"{slice_}-{i}", slice_, *pair, **values) for i, pair in enumerate(pairs))


BETTER = items([(1.0, 0.5)] * 30 + [(1.0, 1.0)] * 90)
# Drops by 0.2: more than 0.05 with evidence, not more than 0.19.
LOST = items([(0.0, 1.0)] * 6 + [(1.0, 1.0)] * 24, "strings")
# Six won and four lost: an improvement by chance, at a confidence between 0.5 and 0.9.
CHANCE = items([(1.0, 0.0)] * 6 + [(0.0, 1.0)] * 4 + [(1.0, 1.0)] * 110)
SPREAD = items([(1.0, 0.5)] * 120, candidate_variance=0.04, production_variance=0.02)

KINDS: dict[str, tuple[tuple[ItemEvidence, ...], dict[str, Any]]] = {
    "better": (BETTER, {}),
    "worse": (items([(0.0, 1.0)] * 40 + [(1.0, 1.0)] * 80), {}),
    "equal": (items([(0.8, 0.8)] * 120), {}),
    "chance": (CHANCE, {}),
    "forgetful": (BETTER + LOST, {}),
    "slow": (BETTER, {"candidate_latency": tuple(1.5 * latency for latency in STEADY)}),
    "spread": (SPREAD, {}),
    "gap": (BETTER + items([(None, 1.0)], "gap"), {}),
    "doubted": (BETTER + items([(1.0, 1.0)], "odd", unreliable_reason="suspect implementation by a"), {}),
    "unmeasured": ((), {"expected_items": 120}),
}
EXPECTED_STATUS = {
    **dict.fromkeys(("worse", "equal", "forgetful", "slow", "spread"), "fail"),
    **dict.fromkeys(("chance", "gap", "doubted", "unmeasured"), "inconclusive"),
    "better": "pass",
}


def build_evidence(kind: str, candidate: str = "", production: str = "base") -> GateEvidence:
    measured, changes = KINDS[kind]
    values = {"expected_items": len(measured), "candidate_latency": STEADY, **changes}
    return GateEvidence(candidate or kind, production, measured, production_latency=STEADY, **values)


def store_verdict(
    engine: sa.Engine,
    candidate: str,
    production: str,
    kind: str,
    run_id: str | None = None,
    gate: EvaluationSettings | None = None,
    emergency: bool = False,
) -> str:
    """Store a verdict on such evidence as the evaluation worker does; return its status."""
    gate = gate or EvaluationSettings()
    evidence = build_evidence(kind, candidate, production)
    verdict = evaluate_gate(evidence, gate, emergency)
    with engine.begin() as conn:
        conn.execute(
            t.gate_verdicts.insert().values(
                version=candidate,
                production_version=production,
                status=verdict.status,
                improvement=verdict.improvement,
                verdict=json.loads(verdict.to_json()),
                evidence=json.loads(evidence.to_json()),
                gate=gate.model_dump(mode="json"),
                canary_set_digest="c",
                orchestra="o",
                judge_version="j",
                dagster_run_id=run_id,
            )
        )
    return verdict.status


def store_verdicts(engine: sa.Engine, gate: EvaluationSettings, emergency: bool = False) -> list[str]:
    """Store all ten as candidates of `base` with their verdicts; return their names in that order."""
    with engine.begin() as conn:
        for name in ("base", *KINDS):
            values = {"version": name, "parent_version": None if name == "base" else "base", "digest": name}
            status = "production" if name == "base" else "candidate"
            conn.execute(t.model_versions.insert().values(**values, path=f"/{name}", status=status))
    for name in KINDS:
        store_verdict(engine, name, "base", name, gate=gate, emergency=emergency)
    return list(KINDS)


def read_tables(engine: sa.Engine) -> dict[str, int | list[str]]:
    """Return every row of the tables that a verdict could change, with its row version."""
    with engine.connect() as conn:
        return {
            table: [
                str(row)
                for row in conn.execute(sa.text(f"select xmin, t::text from iccm.{table} t order by 2"))
            ]
            for table in ("gate_verdicts", "model_versions", "alerts", "phase4_training_runs")
        }
