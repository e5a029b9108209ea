"""The loop, end to end, as a person runs it: real PostgreSQL, Dagster, sandbox, training and gate."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from iccm_assets.registry import versions
from iccm_assets.registry.manifest import Manifest
from iccm_assets.registry.model_store import ModelStore
from iccm_assets_tests.factories.commands import run
from iccm_assets_tests.factories.demo_platforms import Platform

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.xdist_group("loop")]


def test_the_demo_ends_with_a_report(platform: Platform) -> None:
    assert platform.demo.returncode == 0, platform.demo.stderr[-3000:]
    for part in (
        "Funnel",
        "Scored by origin of their test suites",
        "Training curve",
        "Before and after",
        "Lineage",
        "Locations",
        "try next",
    ):
        assert part in platform.demo.stdout, platform.demo.stdout


def test_the_funnel_narrows_and_adds_up(platform: Platform) -> None:
    [[captured, filtered, pool, rejected]] = platform.rows(
        """
        select (select count(*) from iccm.conversations), (select count(*) from iccm.filtered_conversations),
               (select count(*) from iccm.phase4_training_data),
               (select count(distinct conversation_id) from iccm.phase4_rejections)
        """
    )
    assert captured == 130
    assert captured > filtered >= pool >= 20
    assert pool + rejected == captured


def test_the_verdict_is_stored_with_its_evidence_and_production_follows_it(platform: Platform) -> None:
    [[status, improvement, candidate, base]] = platform.rows(
        "select status, improvement, candidate_version, base_version from iccm.phase4_training_runs"
    )
    [[verdict, evidence]] = platform.rows("select verdict, evidence from iccm.gate_verdicts")
    assert (
        status
        == {"pass": "gate_passed", "fail": "gate_failed", "inconclusive": "inconclusive"}[verdict["status"]]
    )
    items = evidence["items"]
    mean = sum(item["candidate"] - item["production"] for item in items) / len(items)
    assert improvement == pytest.approx(mean, abs=1e-8)
    assert platform.production() == (candidate if verdict["status"] == "pass" else base)


def test_dagster_knows_every_materialization_of_the_demo(platform: Platform) -> None:
    script = """
import json, dagster as dg
instance = dg.DagsterInstance.get()
keys = ["reconstructions", "filtered_conversations", "training_pool"]
print(json.dumps({
    "days": {key: sorted(instance.get_materialized_partitions(dg.AssetKey(key))) for key in keys},
    "latest": [
        key for key in ["base_model", "canary_set", "fine_tuned_checkpoint", "canary_evaluation"]
        if instance.get_latest_materialization_event(dg.AssetKey(key))
    ],
    "runs": sorted(run.job_name for run in instance.get_runs()),
}))
"""
    done = run([sys.executable, "-c", script], platform.environment | platform.json("env"), 120)
    assert done.returncode == 0, done.stderr
    dagster = json.loads(done.stdout.splitlines()[-1])
    assert {len(days) for days in dagster["days"].values()} == {3}
    assert dagster["latest"] == ["base_model", "canary_set", "fine_tuned_checkpoint", "canary_evaluation"]
    assert dagster["runs"] == ["daily_data_job", "production_quality_job", "retrain_job"]


def test_lineage_connects_a_conversation_and_its_version_both_ways(platform: Platform) -> None:
    [[candidate, example]] = platform.rows(
        """
        select r.candidate_version, min(e.conversation_id) from iccm.phase4_training_runs r
        join iccm.training_run_examples e on e.training_run_id = r.id and e.role = 'new' group by 1
        """
    )
    forth = platform.json("lineage", "--conversation", str(example))
    assert candidate in [row["version"] for row in forth["versions"]]
    back = platform.json("lineage", candidate)
    assert example in [row["conversation_id"] for row in back["conversations"]]
    assert back["verdicts"]


def test_materializing_the_days_again_changes_no_row(platform: Platform) -> None:
    query = """
        select 'pool', conversation_id, day, quality_score::text, xmin::text from iccm.phase4_training_data
        union all select stage, conversation_id, day, reason, detail from iccm.phase4_rejections
        order by 1, 2
    """
    before = platform.rows(query)
    days = sorted({str(row[2]) for row in before})
    script = (
        "from datetime import date; from iccm_assets.cli.run_job import run_daily_data;"
        "day = date.fromisoformat;"
        f"assert run_daily_data(day('{days[0]}'), day('{days[-1]}'), title='again').success"
    )
    done = run([sys.executable, "-c", script], platform.environment, 280)
    assert done.returncode == 0, done.stderr
    assert platform.rows(query) == before


def make_noisy_candidate(platform: Platform, noise: float, tmp_path: Path) -> str:
    """Publish and register production's weights with noise as a candidate."""
    import numpy as np

    engine = platform.engine
    with engine.connect() as conn:
        serving = versions.get_production_version(conn)
    assert serving is not None
    staging = tmp_path / "staging"
    shutil.copytree(ModelStore(platform.home).get_path(serving.digest), staging)
    for path in [staging, *staging.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    (staging / "MANIFEST.json").unlink()
    weights = load_file(staging / "model.safetensors")
    rng = np.random.default_rng(1)
    noisy = {
        name: (value + noise * value.std() * rng.standard_normal(value.shape)).astype(value.dtype)
        for name, value in weights.items()
    }
    save_file(noisy, staging / "model.safetensors", metadata={"format": "pt"})
    published = ModelStore(platform.home).publish(staging, Manifest(kind="imported", base="noisy", files={}))
    with engine.begin() as conn:
        made = versions.register_version(
            conn,
            digest=published.digest,
            path=str(published.path),
            parent=serving.version,
            status="candidate",
        )
    engine.dispose()
    return made.version


def test_a_candidate_with_noise_on_its_weights_fails_and_cannot_be_deployed(
    platform: Platform, tmp_path: Path
) -> None:
    serving = platform.production()
    bad = make_noisy_candidate(platform, 0.5, tmp_path)
    refused = platform.iccm("deploy", bad)
    assert refused.returncode == 1 and "never evaluated" in refused.stderr
    report = platform.json("evaluate", bad, exit_code=3)
    assert report["verdict"]["status"] == "fail"
    assert any("test_pass_rate_degradation" in reason for reason in report["verdict"]["reasons"])
    refused = platform.iccm("deploy", bad)
    assert refused.returncode == 1 and "the quality gate says fail" in refused.stderr
    materialized = materialize_deployment(platform, bad)
    assert (
        materialized.returncode != 0
        and "the quality gate says fail" in materialized.stdout + materialized.stderr
    )
    assert platform.production() == serving
    [[status]] = platform.rows("select status from iccm.model_versions where version = :v", v=bad)
    assert status == "gate_failed"
    [[title]] = platform.rows("select title from iccm.alerts where body like :body", body=f"{bad} is not%")
    assert title == "Quality gate: fail"


def test_a_damaged_checkpoint_is_rejected_even_when_forced(platform: Platform, tmp_path: Path) -> None:
    serving = platform.production()
    damaged = make_noisy_candidate(platform, 0.01, tmp_path)
    [[path]] = platform.rows("select path from iccm.model_versions where version = :v", v=damaged)
    weights = platform.home / path / "model.safetensors"
    weights.chmod(0o644)
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)
    for command in (["evaluate", damaged], ["deploy", damaged, "--force", "--reason", "test"]):
        done = platform.iccm(*command)
        assert done.returncode == 1 and "model.safetensors" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    assert materialize_deployment(platform, damaged).returncode != 0
    assert platform.production() == serving


def materialize_deployment(platform: Platform, version: str):
    config = {"ops": {"deployed_model_version": {"config": {"version": version}}}}
    command = [
        str(Path(sys.executable).parent / "dagster"),
        *("asset", "materialize", "-m", "iccm_assets.definitions"),
        *("--select", "deployed_model_version", "--config-json", json.dumps(config)),
    ]
    return run(command, platform.environment | platform.json("env"), 180)
